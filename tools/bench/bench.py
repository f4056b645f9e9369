"""The benchmark: small-object rates, large-object throughput and mount rates, as JSON.

    .venv/bin/python tools/bench/bench.py [--workers N] [--seconds S] [--connections C]

Starts a server on a store of its own, measures, and stops it. The clients are processes
with raw keep-alive connections and presigned URLs, made ahead, so that they cost little
beside the server; they still share the machine's processors with it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from running import RunningStore, can_mount

BUCKET = "bench"
SMALL_BYTES = 4096
LARGE_BYTES = 256 * 1024**2
PIECE_BYTES = 1024**2
LIST_KEYS = 1000
Request = tuple[bytes, bytes]  # request head, body


def main() -> int:
    options = parse()
    directory = Path(tempfile.mkdtemp(prefix="objfs-bench-", dir=options.directory))
    store = None
    try:
        store = RunningStore(directory, workers=options.workers, mounted=can_mount())
        store.start()
        report = {"machine": machine(directory), "settings": settings(options), **measure(store, options)}
        store.stop()
        print(json.dumps(report, indent=2))
        return 0
    finally:
        if store is not None:
            store.abandon()
        shutil.rmtree(directory)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures objfs and prints the rates as JSON.")
    parser.add_argument("--workers", type=int, help="as for objfs serve (default: its default)")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="how long each rate is measured (default %(default)s)"
    )
    parser.add_argument("--connections", type=int, default=16, help="at once, for small objects (default %(default)s)")
    parser.add_argument("--objects", type=int, default=5000, help="small objects put in (default %(default)s)")
    parser.add_argument("--directory", help="where the store is made (default: the system's temporary directory)")
    return parser.parse_args()


def machine(directory: Path) -> dict[str, Any]:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    filesystem = max((mount for mount in mounts if directory.is_relative_to(mount[0])), key=lambda mount: len(mount[0]))
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "filesystem": filesystem[1],
        "python": platform.python_version(),
        "objfs": version("objfs"),
    }


def settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "workers": options.workers if options.workers is not None else os.cpu_count(),
        "connections": options.connections,
        "seconds": options.seconds,
        "small_object_bytes": SMALL_BYTES,
        "large_object_bytes": LARGE_BYTES,
        "code": "4+2",
        "nodes": 6,
    }


def measure(store: RunningStore, options: argparse.Namespace) -> dict[str, Any]:
    s3 = client(store)
    s3.create_bucket(Bucket=BUCKET)
    signer = Signer(s3)
    report: dict[str, Any] = {"small_objects_per_second": small_objects(store, signer, options)}
    report["large_object_mb_per_second"] = large_object(store, signer)
    if store.mount is not None:
        report["mount"] = mount_rates(store.mount / BUCKET, options)
    report["resident_bytes_by_process"] = {str(pid): resident(pid) for pid in store.processes()}
    return report


def client(store: RunningStore) -> Any:
    keys = store.environment
    return boto3.client(
        "s3",
        endpoint_url=keys["AWS_ENDPOINT_URL"],
        region_name=keys["AWS_DEFAULT_REGION"],
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )


class Signer:
    """Request heads with presigned URLs, made before the clock runs."""

    def __init__(self, s3: Any) -> None:
        self._s3 = s3

    def head(self, operation: str, method: str, body_bytes: int = 0, **parameters: Any) -> bytes:
        url = self._s3.generate_presigned_url(operation, Params={"Bucket": BUCKET, **parameters}, HttpMethod=method)
        host, _, target = url.removeprefix("http://").partition("/")
        length = f"Content-Length: {body_bytes}\r\n" if method == "PUT" else ""
        return f"{method} /{target} HTTP/1.1\r\nHost: {host}\r\n{length}\r\n".encode()


# -- small objects -----------------------------------------------------------------


def small_objects(store: RunningStore, signer: Signer, options: argparse.Namespace) -> dict[str, float]:
    keys = [f"small/{number:06}" for number in range(options.objects)]
    puts = [
        (signer.head("put_object", "PUT", SMALL_BYTES, Key=key), hashlib.shake_256(key.encode()).digest(SMALL_BYTES))
        for key in keys
    ]
    gets = [(signer.head("get_object", "GET", Key=key), b"") for key in keys]
    heads = [(signer.head("head_object", "HEAD", Key=key), b"") for key in keys]
    lists = [(signer.head("list_objects_v2", "GET", Prefix="small/", MaxKeys=LIST_KEYS), b"")]
    deletes = [(signer.head("delete_object", "DELETE", Key=key), b"") for key in keys]
    rates = {"put": rate(store, puts, options, repeat=False)}
    for name, requests in (("get", gets), ("head", heads), (f"list_{LIST_KEYS}_keys", lists)):
        rates[name] = rate(store, requests, options, repeat=True)
    rates["delete"] = rate(store, deletes, options, repeat=False)
    return rates


def rate(store: RunningStore, requests: list[Request], options: argparse.Namespace, *, repeat: bool) -> float:
    """Requests per second: each connection is a process with its share; with `repeat`
    they go round until the time is over, otherwise each request is made once."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(options.connections + 1)
    results: Any = context.SimpleQueue()
    workers = [
        context.Process(
            target=connection,
            args=(store.listen, requests[start :: options.connections] or requests, options.seconds, repeat),
            kwargs={"barrier": barrier, "results": results},
        )
        for start in range(options.connections)
    ]
    for worker in workers:
        worker.start()
    barrier.wait()
    began = time.perf_counter()
    answers = [results.get() for _ in workers]
    took = time.perf_counter() - began
    for worker in workers:
        worker.join()
    for answer in answers:
        if isinstance(answer, str):
            raise SystemExit(answer)
    return round(sum(answers) / took, 1)


def connection(
    listen: str, requests: list[Request], seconds: float, repeat: bool, *, barrier: Any, results: Any
) -> None:
    """One client process; puts how many requests were answered, or what went wrong."""
    try:
        with connected(listen) as (sock, buffer):
            barrier.wait()
            results.put(converse(sock, buffer, requests, time.perf_counter() + seconds, repeat))
    except (SystemExit, OSError) as error:
        results.put(str(error))


def converse(sock: socket.socket, buffer: bytearray, requests: list[Request], end: float, repeat: bool) -> int:
    answered = 0
    while True:
        for head, body in requests:
            sock.sendall(head + body)
            read_answer(sock, buffer, is_head=head.startswith(b"HEAD"))
            answered += 1
            if repeat and time.perf_counter() > end:
                return answered
        if not repeat:
            return answered


@contextmanager
def connected(listen: str) -> Iterator[tuple[socket.socket, bytearray]]:
    host, _, port = listen.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=60) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield sock, bytearray()


def read_answer(
    sock: socket.socket, buffer: bytearray, *, is_head: bool, take: Callable[[bytes], None] | None = None
) -> None:
    """One answer off the connection; anything but 2xx ends the benchmark."""
    while (split := buffer.find(b"\r\n\r\n")) < 0:
        more(sock, buffer)
    lines = bytes(buffer[:split]).lower().split(b"\r\n")
    del buffer[: split + 4]
    status = int(lines[0].split()[1])
    fields = dict(line.split(b": ", 1) for line in lines[1:])
    if b"chunked" in fields.get(b"transfer-encoding", b""):
        left = -1
    else:
        left = 0 if is_head or status == 204 else int(fields.get(b"content-length", b"0"))
    if status >= 300:
        raise SystemExit(f"the server answered {lines[0].decode()}")
    while left > 0:
        if not buffer:
            more(sock, buffer)
        piece = bytes(buffer[:left])
        del buffer[: len(piece)]
        left -= len(piece)
        if take is not None:
            take(piece)
    while left < 0 and not is_head:
        if buffer.endswith(b"0\r\n\r\n"):
            buffer.clear()
            return
        more(sock, buffer)


def more(sock: socket.socket, buffer: bytearray) -> None:
    received = sock.recv(PIECE_BYTES)
    if not received:
        raise SystemExit("the server closed a connection")
    buffer += received


# -- large objects and the mount -----------------------------------------------------


def large_object(store: RunningStore, signer: Signer) -> dict[str, float]:
    """One connection, one object: bytes that do not compress, new each time they are put."""
    pieces = [os.urandom(PIECE_BYTES) for _ in range(LARGE_BYTES // PIECE_BYTES)]
    head = signer.head("put_object", "PUT", LARGE_BYTES, Key="large")
    with connected(store.listen) as (sock, buffer):
        began = time.perf_counter()
        sock.sendall(head)
        for piece in pieces:
            sock.sendall(piece)
        read_answer(sock, buffer, is_head=False)
        put = time.perf_counter() - began
        began = time.perf_counter()
        sock.sendall(signer.head("get_object", "GET", Key="large"))
        received = 0

        def take(piece: bytes) -> None:
            nonlocal received
            received += len(piece)

        read_answer(sock, buffer, is_head=False, take=take)
        get = time.perf_counter() - began
    if received != LARGE_BYTES:
        raise SystemExit(f"{received} bytes came back of {LARGE_BYTES}")
    return {"put": round(LARGE_BYTES / put / 1e6, 1), "get": round(LARGE_BYTES / get / 1e6, 1)}


def mount_rates(directory: Path, options: argparse.Namespace) -> dict[str, float]:
    files = directory / "files"
    files.mkdir()
    count = min(options.objects, 1000)
    content = os.urandom(SMALL_BYTES)
    paths = [files / f"{number:06}" for number in range(count)]
    rates = {
        "create_files_per_second": per_second(paths, lambda path: path.write_bytes(content)),
        "stat_files_per_second": per_second(paths, lambda path: path.stat()),
        "read_files_per_second": per_second(paths, lambda path: path.read_bytes()),
        "fsync_files_per_second": per_second(paths[:200], overwrite_durably),
        "list_names_per_second": per_second(os.listdir(files), lambda _: None, prepare=lambda: os.listdir(files)),
        "unlink_files_per_second": per_second(paths, lambda path: path.unlink()),
    }
    return rates | mount_throughput(directory / "large-file")


def per_second(items: list[Any], act: Callable[[Any], Any], prepare: Callable[[], Any] | None = None) -> float:
    began = time.perf_counter()
    if prepare is not None:
        prepare()
    for item in items:
        act(item)
    return round(len(items) / (time.perf_counter() - began), 1)


def overwrite_durably(path: Path) -> None:
    with open(path, "r+b") as file:
        file.write(b"changed")
        file.flush()
        os.fsync(file.fileno())


def mount_throughput(path: Path) -> dict[str, float]:
    pieces = [os.urandom(PIECE_BYTES) for _ in range(LARGE_BYTES // PIECE_BYTES)]
    began = time.perf_counter()
    with open(path, "wb") as file:
        for piece in pieces:
            file.write(piece)
        os.fsync(file.fileno())
    write = time.perf_counter() - began
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # not out of the kernel's cache
        began = time.perf_counter()
        while os.read(descriptor, PIECE_BYTES):
            continue
        read = time.perf_counter() - began
    finally:
        os.close(descriptor)
    return {
        "write_and_fsync_mb_per_second": round(LARGE_BYTES / write / 1e6, 1),
        "read_mb_per_second": round(LARGE_BYTES / read / 1e6, 1),
    }


def resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
