"""A store in directories with known contents, as an image that is put back before each
case: closed in order, or as kill -9 leaves it (segment and journal open).

`Image.restore()` lays the same bytes at the same path again, so that what a case damaged
never reaches the next one.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import anyio

from engine.changes import CreateBucket, DeleteKey, Origin, PutVersion
from engine.errors import StoreError
from engine.store import Store, init_store, open_store
from engine.types import SegmentState

ORIGIN = Origin(requester="test")
SIZES = (0, 10, 5_000, 60_000, 70_000, 300_000, 2_500_000)
Contents = dict[str, bytes]
Result = TypeVar("Result")


def run(work: Callable[[], Awaitable[Result]]) -> Result:
    return anyio.run(work)


async def put(store: Store, key: str, content: bytes, request_id: str = "") -> None:
    with store.pins.hold():
        writer = store.open_writer()
        await writer.write(content)
        change = PutVersion("bucket", key, await writer.finish(), hashlib.md5(content).hexdigest())
        await store.commit(change, Origin(requester="test", request_id=request_id))


async def get(store: Store, key: str) -> bytes:
    head = store.keymap.head("bucket", key)
    assert head is not None, f"{key} is gone"
    return b"".join([bytes(piece) async for piece in store.read(head.manifest)])


async def put_all(store: Store, contents: Contents) -> None:
    for key, content in contents.items():
        await put(store, key, content)


def some_contents(name: str, seed: int, sizes: tuple[int, ...] = SIZES) -> Contents:
    rng = random.Random(seed)
    return {f"{name}/{size}": rng.randbytes(size) for size in sizes}


class Image:
    """A store at `data` and a copy of it to put back. `contents` is what was acknowledged."""

    def __init__(self, data: Path, contents: Contents) -> None:
        self.data = data
        self.contents = contents
        self._copy = data.with_name(data.name + ".image")

    def take(self) -> None:
        shutil.copytree(self.data, self._copy, ignore=lambda _, names: [name for name in names if name[-5:] == ".sock"])

    def restore(self) -> None:
        shutil.rmtree(self.data)
        shutil.copytree(self._copy, self.data)

    # -- what lies where -----------------------------------------------------------

    def node(self, number: int) -> Path:
        return self.data / "nodes" / str(number)

    def fragments(self, segment: str = "") -> list[Path]:
        """Of all segments or one, in order of segment and fragment index."""
        found = self.data.glob(f"nodes/*/segments/*/{segment or '*'}.*")
        return sorted((path for path in found if path.suffix[1:].isdigit()), key=lambda path: path.name)

    def segments(self) -> list[str]:
        """By size of their files, largest first."""
        sizes = {path.stem: path.stat().st_size for path in self.fragments()}
        return sorted(sizes, key=lambda segment: -sizes[segment])

    def journals(self) -> dict[str, list[Path]]:
        """The replicas of every journal file, by name, in order."""
        found: dict[str, list[Path]] = {}
        for path in sorted(self.data.glob("nodes/*/journal/*.journal")):
            found.setdefault(path.name, []).append(path)
        return dict(sorted(found.items()))

    def sums(self) -> dict[str, str]:
        """What must not change when a store is refused: everything but DATA/index and the lock."""
        return {
            str(path.relative_to(self.data)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.data.rglob("*"))
            if path.is_file() and path.relative_to(self.data).parts[0] not in ("index", "lock")
        }

    # -- judging ---------------------------------------------------------------------

    def check(self, *, whole: bool = True) -> None:
        """Open the store; every content is right, and (`whole`) fsck finds nothing."""

        async def work() -> None:
            async with open_store(self.data) as store:
                await self.check_open(store)
                if whole:
                    assert await store.fsck() == []

        run(work)

    async def check_open(self, store: Store) -> None:
        listed = [version.key for version in store.keymap.list_objects("bucket").versions]
        assert listed == sorted(self.contents)
        for key, content in self.contents.items():
            assert await get(store, key) == content, f"{key} is wrong"

    async def right_or_refused(self, store: Store) -> int:
        """Read everything: how many keys were refused. What is read is right."""
        refused = 0
        for key, content in self.contents.items():
            try:
                assert await get(store, key) == content, f"{key} is wrong"
            except StoreError:
                refused += 1
        return refused

    def refused(self) -> str:
        """Open the store, which must be refused without touching the nodes: the message."""
        before = self.sums()

        async def work() -> str:
            try:
                async with open_store(self.data):
                    pass
            except StoreError as error:
                return f"{type(error).__name__}: {error}"
            raise AssertionError("the store was opened")

        message = run(work)
        assert "\n" not in message, "an error is one line"
        assert self.sums() == before, "a store that is refused is left as it is"
        return message


def make_image(directory: Path, *, killed: bool = False) -> Image:
    """Two sealed segments and two epochs, then, in a `killed` image, a third epoch with an
    open segment."""
    data = directory / "data"
    init_store(data)
    image = Image(data, {})

    async def work() -> None:
        async with open_store(data) as store:
            await store.commit(CreateBucket("bucket"), ORIGIN)
            await add(store, "first", 1)
        async with open_store(data) as store:
            await add(store, "second", 2)
            await put(store, "gone", b"gone" * 5_000)
            await store.commit(DeleteKey("bucket", "gone"), ORIGIN)
        if killed:
            async with open_store(data) as store:
                await add(store, "third", 3)
                states = [segment.state for segment in store.keymap.segments()]
                assert SegmentState.OPEN in states
                image.take()

    async def add(store: Store, name: str, seed: int) -> None:
        contents = some_contents(name, seed)
        await put_all(store, contents)
        image.contents.update(contents)

    run(work)
    if not killed:
        image.take()
    return image


# -- damage ------------------------------------------------------------------------


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        assert byte, f"{path} ends before {offset}"
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x10]))


def zero(path: Path, offset: int, length: int = 64) -> None:
    length = min(length, path.stat().st_size - offset)
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(bytes(length))


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def extend(path: Path, garbage: bytes) -> None:
    with open(path, "ab") as file:
        file.write(garbage)


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


__all__ = [
    "ORIGIN",
    "Contents",
    "Image",
    "cut",
    "extend",
    "flip",
    "get",
    "make_image",
    "put",
    "put_all",
    "run",
    "some_contents",
    "swap",
    "zero",
]
