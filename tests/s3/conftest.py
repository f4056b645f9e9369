"""A real store behind real HTTP: every test here runs against both ways of serving it,
hypercorn inside one trio program, and an index process with two granian workers."""

from __future__ import annotations

import hashlib
import http.client
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import trio
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from engine.secrets import read_root_keys
from engine.store import init_store, open_store
from gateway.app import Gateway
from gateway.serve import serve_hypercorn

ROOT = Path(__file__).resolve().parents[2]


class _Signer(S3SigV4Auth):  # type: ignore[misc]
    """botocore's signer, which lets a test say what the payload is declared as."""

    def _modify_request_before_signing(self, request: Any) -> None:
        self._declared = request.headers.get("x-amz-content-sha256")
        super()._modify_request_before_signing(request)

    def payload(self, request: Any) -> str:
        return self._declared or hashlib.sha256(request.data or b"").hexdigest()


@dataclass(frozen=True)
class Server:
    """A served store. `send` signs one request by hand, for what no SDK would send."""

    data: Path
    port: int
    access_key: str
    secret_key: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, *, access_key: str | None = None, secret_key: str | None = None, **config: Any) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=access_key or self.access_key,
            aws_secret_access_key=secret_key or self.secret_key,
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}, **config),
        )

    def sign(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> dict[str, str]:
        request = AWSRequest(method, self.url + path, headers=dict(headers or {}), data=body)
        _Signer(Credentials(self.access_key, self.secret_key), "s3", "us-east-1").add_auth(request)
        return {"Host": f"127.0.0.1:{self.port}", **dict(request.headers.items())}

    def send(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body=body, headers=self.sign(method, path, headers, body))
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _process(*command: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.strip() == b"ready", f"{command} said {line!r}"
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        assert process.wait(30) == 0, "a drain ends with exit code 0"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _serve_granian(data: Path, port: int) -> Iterator[None]:
    processes = [_process("engine.process", str(data))]
    try:
        for _ in range(2):
            processes.append(_process("gateway.worker", str(data), f"127.0.0.1:{port}"))
        yield
    finally:
        for process in reversed(processes):
            _end(process)


def _serve_hypercorn(data: Path, port: int) -> Iterator[None]:
    up = threading.Event()
    stop = trio.Event()
    failures: list[BaseException] = []
    tokens: list[trio.lowlevel.TrioToken] = []

    async def serve() -> None:
        tokens.append(trio.lowlevel.current_trio_token())
        async with open_store(data) as store:
            gateway = Gateway(store, users=store.users, log=lambda line: None)
            await serve_hypercorn(gateway, "127.0.0.1", port, started=up.set, shutdown=stop.wait)

    def run() -> None:
        try:
            trio.run(serve)
        except BaseException as error:  # noqa: BLE001 - shown by the fixture
            failures.append(error)
            up.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert up.wait(30), "the server did not start"
    if failures:
        raise failures[0]
    yield
    tokens[0].run_sync_soon(stop.set)
    thread.join(30)
    assert not thread.is_alive(), "the server did not end"
    if failures:
        raise failures[0]


@pytest.fixture(scope="session", params=["hypercorn", "granian"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp(str(request.param)) / "store"
    init_store(data)
    keys = read_root_keys(data)
    port = free_port()
    serve = _serve_granian if request.param == "granian" else _serve_hypercorn
    running = serve(data, port)
    next(running)
    try:
        yield Server(data, port, keys.access_key, keys.secret_key)
    finally:
        next(running, None)


@pytest.fixture(scope="session")
def s3(server: Server) -> Any:
    return server.client()


@pytest.fixture
def bucket(s3: Any) -> str:
    name = f"b-{secrets.token_hex(6)}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def versioned(s3: Any, bucket: str) -> str:
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    return bucket


def error_of(raised: pytest.ExceptionInfo[Any]) -> tuple[str, int]:
    answer = raised.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]
