"""Directories to mount on, for processes that serve no mount themselves.

objfs/mount/mount.py does the work; it loads pyfuse3, which the supervisor and `objfs
umount` need only when there is something to clear.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from engine.errors import StoreError

DEVICE = "/dev/fuse"
MNT_FORCE, MNT_DETACH = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)


class BadMountpoint(StoreError):
    """The store cannot be mounted there, or is not mounted there."""


def make_ready(directory: Path) -> None:
    """Raises MountFailed or BadMountpoint, with what is in the way."""
    from objfs.mount.mount import prepare_directory

    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise BadMountpoint(
            f"cannot mount: {DEVICE} is missing or not yours to use; load fuse, or serve without --mount"
        )
    prepare_directory(str(directory))


def clear_dead_mount(directory: Path) -> None:
    """Unmount the directory if whoever served it is gone."""
    if is_dead(directory):
        _unmount(directory, lazy=True)


def abort_mount(directory: Path) -> None:
    """Let go of everybody who waits for a mount whose process was killed. A thread that was
    telling the kernel what to drop may wait for a directory that is locked by a request to
    this very mount: neither ends by itself, nor does the process."""
    if os.getuid() == 0 and is_mounted(directory):
        _libc.umount2(os.fsencode(os.path.abspath(directory)), MNT_FORCE | MNT_DETACH)


def is_dead(directory: Path) -> bool:
    try:
        os.stat(directory)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def unmount(directory: Path) -> None:
    """Raises BadMountpoint when no store is mounted there, MountFailed when it is in use."""
    if not is_mounted(directory):
        raise BadMountpoint(f"no objfs store is mounted on {directory}")
    _unmount(directory, lazy=is_dead(directory))


def is_mounted(directory: Path) -> bool:
    """Whether a store is mounted there, dead or alive; asks the kernel, not the mount."""
    place = Path(os.path.realpath(directory.parent), directory.name)
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _source, mounted_on, kind, *_ = line.split(" ")
        if kind == "fuse.objfs" and _unescaped(mounted_on) == os.fsencode(place):
            return True
    return False


def _unescaped(field: str) -> bytes:
    """A path of /proc/mounts: space, tab, newline and backslash stand there in octal."""
    raw = os.fsencode(field)
    for character in b" \t\n\\":
        raw = raw.replace(b"\\%03o" % character, bytes([character]))
    return raw


def _unmount(directory: Path, *, lazy: bool) -> None:
    from objfs.mount.mount import unmount as unmount_now

    unmount_now(str(directory), lazy=lazy)
