"""Unix sockets at paths longer than sun_path allows (107 bytes): bind and connect go
through /proc/self/fd, the directory held open meanwhile."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
from anyio.abc import SocketListener, SocketStream

_SUN_PATH_BYTES_MAX = 107


@contextmanager
def _short(path: Path) -> Iterator[str]:
    if len(os.fsencode(path)) <= _SUN_PATH_BYTES_MAX:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


async def listen(path: Path) -> SocketListener:
    """Bind at `path`, replacing what a dead process left there; mode 0600."""
    path.unlink(missing_ok=True)
    with _short(path) as short:
        listener = await anyio.create_unix_listener(short, mode=0o600)
    return listener


async def connect(path: Path) -> SocketStream:
    """Raises OSError when nobody listens."""
    with _short(path) as short:
        return await anyio.connect_unix(short)


def answers(path: Path) -> bool:
    """Whether somebody listens at `path` right now. Blocking, quick."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            with _short(path) as short:
                probe.connect(short)
        except OSError:
            return False
        return True
