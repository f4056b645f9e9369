"""Mounting, serving and unmounting.

pyfuse3 keeps its session in module globals, so a process has at most one mount. The mount
shares its trio loop with whatever else runs there; nothing on that loop may touch the
mounted directory, which only the loop itself can answer for.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pyfuse3
import trio

from engine.errors import StoreError
from objfs.mount.errors import MountFailed
from objfs.mount.follower import Follower
from objfs.mount.operations import Operations

if TYPE_CHECKING:
    from engine.store import Store

MAX_BACKGROUND = 32  # the kernel's 12 starves read-ahead
MNT_DETACH = 2
TASKS_MAX = 32  # requests worked on at once; each holds a buffer of 1 MiB
END_SECONDS = 0.5  # a session whose mount is gone ends at once; a busy one is ended

logger = logging.getLogger("objfs.mount")
_libc = ctypes.CDLL(None, use_errno=True)


async def run_mount(store: Store, directory: str, *, ready: Callable[[], None], stop: trio.Event | None = None) -> None:
    """Mount `store` on `directory` and serve it until it is unmounted, `stop` is set or the
    call is cancelled; the latter two publish every open file and unmount before this
    returns. `ready` is called once the mount answers. Raises MountFailed, StoreError."""
    await trio.to_thread.run_sync(prepare_directory, directory)
    operations = Operations(store)
    try:
        pyfuse3.init(operations, directory, _options())
    except RuntimeError as error:
        raise MountFailed(f"{directory} cannot be mounted ({error}); is /dev/fuse there and fuse3 installed?") from None
    try:
        await _serve(operations, directory, ready, stop)
    finally:
        pyfuse3.close(unmount=True)


async def _serve(operations: Operations, directory: str, ready: Callable[[], None], stop: trio.Event | None) -> None:
    """The kernel is answered in a shielded task, so that a cancelled caller still drains."""
    served = trio.Event()
    async with trio.open_nursery() as nursery:
        follower = await nursery.start(_follow, operations)
        nursery.start_soon(_answer_kernel, served)
        renewal = await nursery.start(_renew_pins, operations)
        try:
            await trio.to_thread.run_sync(tune, directory)
            ready()
            await _until_either(served, trio.Event() if stop is None else stop)
        finally:
            with trio.CancelScope(shield=True):
                await _drain(operations, directory, served, follower)
                renewal.cancel()


async def _answer_kernel(served: trio.Event) -> None:
    try:
        with trio.CancelScope(shield=True):
            await pyfuse3.main(max_tasks=TASKS_MAX)
    finally:
        served.set()


async def _renew_pins(operations: Operations, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await operations.pin_renewal.run()


class _Following:
    """The follower's task, to be ended and waited for."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope(shield=True)
        self.ended = trio.Event()

    async def end(self) -> None:
        self.scope.cancel()
        await self.ended.wait()


async def _follow(operations: Operations, *, task_status: trio.TaskStatus[_Following]) -> None:
    following = _Following()
    try:
        with following.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(Follower(operations.state).follow)
                task_status.started(following)
    finally:
        operations.state.followed = False
        following.ended.set()


async def _until_either(one: trio.Event, other: trio.Event) -> None:
    async with trio.open_nursery() as nursery:

        async def wait_for(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(wait_for, one)
        nursery.start_soon(wait_for, other)


async def _drain(operations: Operations, directory: str, served: trio.Event, follower: _Following) -> None:
    """Publish what is open and unmount while still answering the kernel, then end the
    session; what a busy process writes until then is published too."""
    await _publish_all(operations)
    await follower.end()
    if not served.is_set():
        try:
            await trio.to_thread.run_sync(unmount, directory)
        except MountFailed as error:
            logger.warning("%s", error)
        with trio.move_on_after(END_SECONDS):
            await served.wait()
    if not served.is_set():
        pyfuse3.terminate()
        await served.wait()
    await _publish_all(operations)


async def _publish_all(operations: Operations) -> None:
    try:
        await operations.publish_all()
    except (StoreError, OSError, pyfuse3.FUSEError) as error:
        logger.error("an open file could not be published: %s", error)


def _options() -> set[str]:
    options = set(pyfuse3.default_options) | {"fsname=objfs", "subtype=objfs", "default_permissions"}
    if os.getuid() == 0:
        options.add("allow_other")
    return options


def prepare_directory(directory: str) -> None:
    """Make `directory` fit to be mounted on: it is made if missing, and a dead mount on it
    is cleared. Raises MountFailed."""
    try:
        os.statvfs(directory)  # stat() may be answered from what the kernel kept of a dead mount
    except FileNotFoundError:
        try:
            os.makedirs(directory)
        except OSError as error:
            raise MountFailed(f"{directory} cannot be made: {error.strerror}") from None
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.EIO):
            raise MountFailed(f"{directory} cannot be used: {error.strerror}") from None
        logger.info("clearing a dead mount on %s", directory)
        unmount(directory, lazy=True)
    if not os.path.isdir(directory):
        raise MountFailed(f"{directory} is not a directory")
    if os.path.ismount(directory):
        raise MountFailed(f"something is mounted on {directory}; unmount it first: objfs umount {directory}")


def unmount(directory: str, *, lazy: bool | None = None) -> None:
    """Unmount `directory`. `lazy` detaches it at once though processes still use it; None
    tries without first. Blocking: never on the loop that serves the mount. Raises
    MountFailed."""
    if lazy is None:
        try:
            unmount(directory, lazy=False)
        except MountFailed:
            unmount(directory, lazy=True)
        return
    if os.getuid() == 0:
        if _libc.umount2(os.fsencode(os.path.abspath(directory)), MNT_DETACH if lazy else 0) != 0:
            raise MountFailed(f"{directory} cannot be unmounted: {os.strerror(ctypes.get_errno())}")
        return
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", directory]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise MountFailed("fusermount3 is not installed; install the package fuse3") from None
    if done.returncode != 0:
        raise MountFailed(f"{directory} cannot be unmounted: {done.stderr.strip()}")


def tune(directory: str) -> None:
    """Let the kernel keep more requests in flight. Blocking: asks the mount itself, so it
    also proves that it answers."""
    device = os.stat(directory).st_dev
    setting = Path(f"/sys/fs/fuse/connections/{os.minor(device)}/max_background")
    if os.access(setting, os.W_OK):
        setting.write_text(f"{MAX_BACKGROUND}\n")
