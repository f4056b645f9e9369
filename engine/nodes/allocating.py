"""Room taken in a file before anything is written there, so that it is not lacking later.

posix_fallocate(3) does that too. But on a filesystem that cannot allocate (FUSE, older NFS)
glibc makes up for it with a write of one byte for every block, 16,384 of them for a reserve
of 64 MiB. So the system call is made here, and what it cannot do is done by writing zeros
in large pieces. Blocking; knows file descriptors only.
"""

from __future__ import annotations

import ctypes
import errno
import os

PIECE_BYTES = 1024 * 1024
_CANNOT = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})
_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", _libc.fallocate)  # 64 bits wide on every machine
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def allocate(descriptor: int, offset: int, length: int) -> None:
    """Make the file at least offset + length long; that stretch, zeros as far as it is new,
    has its room. Raises OSError (ENOSPC); part of it may be there then."""
    try:
        fallocate(descriptor, offset, length)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        _write_zeros(descriptor, offset, length)


def fallocate(descriptor: int, offset: int, length: int) -> None:
    """fallocate(2). Raises OSError."""
    while _fallocate(descriptor, 0, offset, length) != 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def _write_zeros(descriptor: int, offset: int, length: int) -> None:
    """Over what is no file content yet."""
    zeros = memoryview(bytes(min(PIECE_BYTES, length)))
    end = offset + length
    while offset < end:
        offset += os.pwrite(descriptor, zeros[: end - offset], offset)
