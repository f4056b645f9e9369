"""The two doors as a client sees them, with every outcome told apart: it happened, it was
refused, or nobody knows (the connection broke, the server answered 5xx, the mount died).

One object per thread.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import http.client
import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import unescape

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

SECONDS_MAX = 20.0
RENAME_NOREPLACE = 1
MULTIPART_BYTES_MIN = 5 * 1024 * 1024
_DEAD_MOUNT = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV, errno.EIO, errno.EINTR, errno.ESTALE})
_libc = ctypes.CDLL(None, use_errno=True)


class Unknown(Exception):
    """No answer that says whether it happened."""


class NotSent(Exception):
    """Nobody listens: it surely did not happen."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def etag(self) -> str:
        return self.headers.get("etag", "")


class S3Door:
    """Keys of one bucket over HTTP; one connection, opened anew when it breaks."""

    def __init__(self, environment: Mapping[str, str], bucket: str) -> None:
        self._url = environment["AWS_ENDPOINT_URL"]
        self._credentials = Credentials(environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
        self._bucket = bucket
        self._connection: http.client.HTTPConnection | None = None

    # -- requests --------------------------------------------------------------

    def request(
        self,
        method: str,
        key: str = "",
        *,
        query: str = "",
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Raises Unknown, NotSent."""
        path = f"/{self._bucket}" + (f"/{urllib.parse.quote(key)}" if key else "") + (f"?{query}" if query else "")
        signed = AWSRequest(method, self._url + path, headers=dict(headers or {}), data=body)
        signed.headers["x-amz-content-sha256"] = "UNSIGNED-PAYLOAD"
        S3SigV4Auth(self._credentials, "s3", "us-east-1").add_auth(signed)
        signed.headers["Host"] = urllib.parse.urlsplit(self._url).netloc
        try:
            connection = self._connect()
        except OSError as error:
            self.close()
            raise NotSent(str(error)) from error
        try:
            connection.request(method, path, body=body, headers=dict(signed.headers.items()))
            response = connection.getresponse()
            answer = Answer(
                response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
            )
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unknown(f"{method} {path}: {error!r}") from error
        if answer.status >= 500:
            raise Unknown(f"{method} {path}: {answer.status} {answer.body[:200]!r}")
        return answer

    def _connect(self) -> http.client.HTTPConnection:
        if self._connection is None:
            host = urllib.parse.urlsplit(self._url).netloc
            self._connection = http.client.HTTPConnection(host, timeout=SECONDS_MAX)
        if self._connection.sock is None:
            self._connection.connect()
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # -- operations ------------------------------------------------------------

    def put(self, key: str, content: bytes, *, only_new: bool = False, only_over: bytes | None = None) -> bool:
        """False if its condition failed."""
        headers = {}
        if only_new:
            headers["If-None-Match"] = "*"
        if only_over is not None:
            headers["If-Match"] = etag_of(only_over)
        return self._decided(self.request("PUT", key, body=content, headers=headers))

    def delete(self, key: str, *, only_over: bytes | None = None) -> bool:
        headers = {} if only_over is None else {"If-Match": etag_of(only_over)}
        return self._decided(self.request("DELETE", key, headers=headers))

    def put_in_parts(self, key: str, parts: list[bytes]) -> None:
        """Raises Unknown only when the upload may have been completed; NotSent before."""
        try:
            upload = xml_text(self._good(self.request("POST", key, query="uploads=")), "UploadId")
            tags = []
            for number, part in enumerate(parts, 1):
                answer = self.request("PUT", key, query=f"partNumber={number}&uploadId={upload}", body=part)
                self._good(answer)
                tags.append(f"<Part><PartNumber>{number}</PartNumber><ETag>{answer.etag}</ETag></Part>")
        except Unknown as error:
            raise NotSent(str(error)) from error
        body = f"<CompleteMultipartUpload>{''.join(tags)}</CompleteMultipartUpload>".encode()
        answer = self._good(self.request("POST", key, query=f"uploadId={upload}", body=body))
        if b"<Error>" in answer:
            raise Unknown(f"completing {key}: {answer[:200]!r}")

    def get(self, key: str) -> bytes | None:
        answer = self.request("GET", key)
        if answer.status == 404:
            return None
        assert answer.status == 200, answer
        return answer.body

    def exists(self, key: str) -> bool:
        answer = self.request("HEAD", key)
        assert answer.status in (200, 404), answer
        return answer.status == 200

    def keys(self, prefix: str) -> list[str]:
        found = self._good(self.request("GET", query=f"list-type=2&prefix={urllib.parse.quote(prefix, safe='')}"))
        return [unescape(key) for key in re.findall(r"<Key>([^<]*)</Key>", found.decode())]

    def contents(self, prefix: str) -> dict[str, bytes]:
        """Everything below the prefix, directories' markers apart."""
        found = {key: self.get(key) for key in self.keys(prefix) if not key.endswith("/")}
        assert None not in found.values(), f"listed but not there: {[key for key in found if found[key] is None]}"
        return {key: content for key, content in found.items() if content is not None}

    def _decided(self, answer: Answer) -> bool:
        if answer.status in (404, 409, 412):
            return False
        self._good(answer)
        return True

    def _good(self, answer: Answer) -> bytes:
        assert answer.status < 300, answer
        return answer.body


def etag_of(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


def xml_text(body: bytes, tag: str) -> str:
    found = re.search(f"<{tag}>([^<]*)</{tag}>".encode(), body)
    assert found is not None, body
    return unescape(found.group(1).decode())


class MountDoor:
    """Files of one directory of a mount, reached through a descriptor of the directory: so
    nothing is ever done to the empty directory that is there while nothing is mounted."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptor = -1

    def open_directory(self) -> None:
        """Raises NotSent while nothing is mounted."""
        if self._descriptor < 0:
            try:
                self._descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
            except OSError as error:
                raise NotSent(str(error)) from error

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def open(self, name: str, flags: int) -> int:
        """A file descriptor. Raises FileNotFoundError, FileExistsError, Unknown."""
        return int(self._guarded(os.open, name, flags | os.O_CLOEXEC, 0o644, dir_fd=self._descriptor))

    def write(self, descriptor: int, content: bytes, offset: int) -> int:
        """One write(2): how many bytes it took, fewer if the mount dies meanwhile. Raises
        Unknown."""
        return int(self._guarded(os.pwrite, descriptor, content, offset))

    def sync(self, descriptor: int) -> None:
        self._guarded(os.fsync, descriptor)

    def sync_directory(self) -> None:
        self._guarded(os.fsync, self._descriptor)

    def size(self, descriptor: int) -> int:
        return int(self._guarded(os.fstat, descriptor).st_size)

    def unlink(self, name: str) -> None:
        self._guarded(os.unlink, name, dir_fd=self._descriptor)

    def exists(self, name: str) -> bool:
        try:
            self._guarded(os.lstat, name, dir_fd=self._descriptor)
        except FileNotFoundError:
            return False
        return True

    def link(self, name: str, target: str) -> None:
        self._guarded(os.link, name, target, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def symlink(self, name: str) -> None:
        self._guarded(os.symlink, "nowhere", name, dir_fd=self._descriptor)

    def rename(self, name: str, target: str, *, replace: bool = True) -> None:
        self._guarded(self._rename, name, target, 0 if replace else RENAME_NOREPLACE)

    def _rename(self, name: str, target: str, flags: int) -> None:
        here = self._descriptor
        if _libc.renameat2(here, os.fsencode(name), here, os.fsencode(target), flags) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def read(self, name: str) -> bytes:
        descriptor = self.open(name, os.O_RDONLY)
        try:
            pieces = []
            while piece := self._guarded(os.read, descriptor, 1 << 20):
                pieces.append(piece)
            return b"".join(pieces)
        finally:
            self.close_file(descriptor)

    def names(self) -> list[str]:
        return list(self._guarded(os.listdir, self._descriptor))

    def close_file(self, descriptor: int) -> None:
        """What close() says is of no interest: fsync said what matters."""
        try:
            os.close(descriptor)
        except OSError as error:
            if error.errno not in _DEAD_MOUNT:
                raise

    def _guarded(self, act: Any, *arguments: Any, **named: Any) -> Any:
        if self._descriptor < 0:
            raise NotSent("the mount died a moment ago")
        try:
            return act(*arguments, **named)
        except OSError as error:
            if error.errno not in _DEAD_MOUNT:
                raise
            if error.errno != errno.EIO:
                self.close()
            raise Unknown(str(error)) from error
