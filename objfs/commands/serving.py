"""objfs serve, mount and umount."""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from engine.errors import StoreInUse
from objfs.commands.common import only_error
from objfs.listening import Address, answers, parse_address, reserved
from objfs.mountpoints import abort_mount, clear_dead_mount, is_mounted, make_ready, unmount
from objfs.supervisor import Announcement, Role, Supervisor, remove_announcement, write_announcement

LOG_FORMAT = "%(asctime)s %(name)s %(levelname)s %(message)s"


def serve(arguments: argparse.Namespace) -> int:
    from engine.nodes.descriptor import read_store_descriptor

    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    data = Path(arguments.data).absolute()
    read_store_descriptor(data)
    refuse_if_open(data)
    mount = Path(arguments.mount).absolute() if arguments.mount else None
    if mount is not None:
        make_ready(mount)
    workers = len(os.sched_getaffinity(0)) if arguments.workers is None else arguments.workers
    with reserved(parse_address(arguments.listen)) as address:
        on_ready = partial(say_ready, data, address, mount, workers)
        try:
            if workers == 0:
                from objfs.one_process import serve_in_one_process

                return serve_in_one_process(data, address, mount, on_ready)
            roles = roles_of(data, address, mount, workers)
            return Supervisor(roles, doors_answer=partial(doors_answer, data, address, mount), on_ready=on_ready).run()
        finally:
            remove_announcement(data)


def refuse_if_open(data: Path) -> None:
    """Raises StoreInUse. Whoever opens the store first still wins; this only says it early."""
    try:
        with open(data / "lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return
    except BlockingIOError:
        raise StoreInUse(f"{data} is open in another process, perhaps a running objfs serve; stop it first") from None


def roles_of(data: Path, address: Address, mount: Path | None, workers: int) -> list[Role]:
    """The processes of a server, in the order they start: the index, what stands on it, and
    last the gateways, so that draining stops requests first and the index last."""
    python = [sys.executable, "-P", "-m"]  # -P: never import from the directory we are started in
    roles = [
        Role("index", [*python, "engine.process", str(data)], stage=0),
        Role("tables", [*python, "objfs.processes", "tables", str(data)], stage=1),
        Role("caretaker", [*python, "objfs.processes", "caretaker", str(data)], stage=1),
    ]
    if mount is not None:
        roles.append(
            Role(
                "mount",
                [*python, "objfs.processes", "mount", str(data), str(mount)],
                stage=2,
                before=partial(clear_dead_mount, mount),
                release=partial(abort_mount, mount),
            )
        )
    for number in range(1, workers + 1):
        command = [*python, "gateway.worker", str(data), str(address)]
        roles.append(Role(f"gateway {number}", command, stage=3))
    return roles


def doors_answer(data: Path, address: Address, mount: Path | None) -> bool:
    from engine.index.sockets import answers as socket_answers

    sockets = (data / "index" / "index.sock", data / "index" / "tables.sock")
    return answers(address) and all(map(socket_answers, sockets)) and (mount is None or is_mounted(mount))


def say_ready(data: Path, address: Address, mount: Path | None, workers: int) -> None:
    write_announcement(data, Announcement(os.getpid(), str(address.reachable), str(mount) if mount else None))
    where = f", mounted on {mount}" if mount else ""
    how = f"{workers} worker{'s' if workers > 1 else ''}" if workers else "in one process"
    print(f"ready: S3 on http://{address}{where}, {how}", flush=True)


def mount(arguments: argparse.Namespace) -> int:
    from engine.nodes.descriptor import read_store_descriptor

    logging.basicConfig(level=logging.WARNING, format=LOG_FORMAT, stream=sys.stderr)
    data, directory = Path(arguments.data).absolute(), Path(arguments.directory).absolute()
    read_store_descriptor(data)
    make_ready(directory)
    mount_until_signalled(data, directory, lambda: print(f"ready: mounted on {directory}", flush=True))
    return 0


def mount_until_signalled(data: Path, directory: Path, on_ready: Callable[[], None]) -> None:
    """Mount the store and serve the mount until it is unmounted, or SIGTERM or SIGINT."""
    import trio

    from engine.store import open_store
    from objfs.mount.mount import run_mount

    async def run() -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            stop = trio.Event()

            async def wait_for_signal() -> None:
                await anext(signals)
                stop.set()

            async with open_store(data) as store, trio.open_nursery() as nursery:
                nursery.start_soon(wait_for_signal)
                await run_mount(store, str(directory), ready=on_ready, stop=stop)
                nursery.cancel_scope.cancel()

    try:
        trio.run(run)
    except BaseExceptionGroup as group:
        raise only_error(group) from None


def umount(arguments: argparse.Namespace) -> int:
    unmount(Path(arguments.directory).absolute())
    return 0
