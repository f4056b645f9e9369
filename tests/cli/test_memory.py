"""No process of a server holds an object whole, whatever door it comes and goes by."""

from __future__ import annotations

import http.client
import random
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from running import RunningStore, can_mount

PIECE_BYTES = 1024 * 1024
SMALL_PIECES = 64  # fills what is bounded: caches of decoded chunks, windows, the mount's buffers
LARGE_PIECES = 224
GROWTH_BYTES_MAX = 100 * PIECE_BYTES  # who holds an object whole needs more for the large one by all they differ

assert GROWTH_BYTES_MAX < (LARGE_PIECES - SMALL_PIECES) * PIECE_BYTES


@pytest.fixture
def served(tmp_path: Path) -> Iterator[RunningStore]:
    store = RunningStore(tmp_path, workers=1, mounted=can_mount())
    try:
        store.start()
        yield store
        store.stop()
    finally:
        store.abandon()


def pieces(seed: str, count: int) -> Iterator[bytes]:
    """Content that is not held by whoever sends it, and that nothing else in the store equals."""
    chance = random.Random(seed)
    for _ in range(count):
        yield chance.randbytes(PIECE_BYTES)


class PeakMemory:
    """The largest resident size each process of a server had while something was done."""

    def __init__(self, store: RunningStore) -> None:
        self._processes = {pid: _command(pid) for pid in store.processes()}

    def of(self, deed: Callable[[], object]) -> dict[str, int]:
        """By the processes' command lines; each must still run afterwards."""
        for pid in self._processes:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # proc(5): the peak counts from now
        deed()
        return {command: _peak_bytes(pid) for pid, command in self._processes.items()}


def _peak_bytes(pid: int) -> int:
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _command(pid: int) -> str:
    return f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode()}"


class Doors:
    """What a user does with an object at S3 and at the mount, content streaming in pieces."""

    def __init__(self, store: RunningStore) -> None:
        environment = store.environment
        self.mount = store.mount
        self.s3 = boto3.client(
            "s3",
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
            config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
        )

    def put(self, key: str, count: int) -> None:
        self._send("put_object", count, Key=key)

    def put_in_parts(self, key: str, count: int) -> None:
        """A large part and a small one: a part is not to be held whole either."""
        upload = self.s3.create_multipart_upload(Bucket="bucket", Key=f"{key} in parts")
        upload_id, name = upload["UploadId"], upload["Key"]
        sizes = (count - 6, 6)
        etags = [
            self._send("upload_part", size, Key=name, UploadId=upload_id, PartNumber=number)
            for number, size in enumerate(sizes, start=1)
        ]
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, start=1)]
        self.s3.complete_multipart_upload(
            Bucket="bucket", Key=name, UploadId=upload_id, MultipartUpload={"Parts": parts}
        )

    def _send(self, operation: str, count: int, **params: object) -> str:
        """Send `count` pieces as the body of one request; its ETag."""
        url = urlsplit(self.s3.generate_presigned_url(operation, Params={"Bucket": "bucket", **params}))
        assert url.hostname is not None
        connection = http.client.HTTPConnection(url.hostname, url.port)
        try:
            headers = {"Content-Length": str(count * PIECE_BYTES)}
            body = pieces(f"{operation} {params}", count)
            connection.request("PUT", f"{url.path}?{url.query}", body=body, headers=headers)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()
            return str(answer.headers["ETag"])
        finally:
            connection.close()

    def get(self, key: str, count: int) -> None:
        body = self.s3.get_object(Bucket="bucket", Key=key)["Body"]
        assert sum(map(len, body.iter_chunks(PIECE_BYTES))) == count * PIECE_BYTES

    def write_file(self, key: str, count: int) -> None:
        assert self.mount is not None
        with open(self.mount / "bucket" / f"{key} file", "wb", buffering=0) as file:
            for piece in pieces(file.name, count):
                file.write(piece)

    def read_file(self, key: str, count: int) -> None:
        assert self.mount is not None
        with open(self.mount / "bucket" / key, "rb", buffering=0) as file:
            assert sum(len(piece) for piece in iter(partial(file.read, PIECE_BYTES), b"")) == count * PIECE_BYTES


def test_memory_does_not_grow_with_the_size_of_an_object(served: RunningStore) -> None:
    doors = Doors(served)
    doors.s3.create_bucket(Bucket="bucket")
    deeds = [doors.put, doors.get, doors.put_in_parts]
    if doors.mount is not None:
        deeds += [doors.write_file, doors.read_file]
    peak = PeakMemory(served)
    for deed in deeds:
        small = peak.of(partial(deed, "small", SMALL_PIECES))
        large = peak.of(partial(deed, "large", LARGE_PIECES))
        grown = {command: large[command] - small[command] for command in large}
        assert max(grown.values()) < GROWTH_BYTES_MAX, f"{deed.__name__}, {LARGE_PIECES} MiB: {grown}"
