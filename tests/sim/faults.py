"""What goes wrong with disks in a world, within what the code must survive.

A node is suspect from the moment something happened to it until everything on it was
seen to be whole again. At most m nodes are suspect at a time, so every promise must hold
throughout. All dice are the world's.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import anyio

from engine.care.scrub import scrub
from engine.errors import FragmentCorrupt, NodeFull, PiecesDamaged, StoreError, WritesStopped
from engine.index import snapshots
from engine.journal import archive
from engine.nodes.descriptor import read_node_descriptor
from engine.pieces import WRITING, PieceReader
from engine.segments.format import (
    FILE_HEADER_BYTES,
    FOOTER_BYTES,
    STRIPE_HEADER_BYTES,
    decode_file_header,
    decode_footer,
    decode_stripe_header,
    fragment_name,
    verify_payload,
)
from engine.store import Store
from engine.types import NodeState, Segment, SegmentState
from sim.checks import Violation
from sim.disk import SECTOR_BYTES, SimulatedDisk
from sim.machine import Machine

DISTRUST_SECONDS = 40  # a little more than the store's own
HEAL_SECONDS = 1000  # longer than repair waits before it tries again
PIECE_FILES = {"snapshot": snapshots.MAGIC, "archive": archive.MAGIC}


class Faults:
    def __init__(self, machine: Machine, dice: random.Random, m: int) -> None:
        self.machine = machine
        self.dice = dice
        self.m = m
        self.suspects: dict[str, str] = {}  # path → gone, empty, failing, full, rotten, stale, back
        self.been_full: set[str] = set()  # at some time: how full a node is, is looked at now and then
        self.nodes: set[str] = set()  # paths of those the store held for healthy after the last step
        self.whole_since: dict[str, int] = {}  # when it was suspect no more
        self.images: dict[str, dict[str, bytes]] = {}
        self.were: dict[str, str] = {}  # rotten or stale nodes that went away → which of the two

    def excuse(self, error: StoreError) -> bool:
        """Whether an error that is not the change's fault has a reason."""
        if isinstance(error, WritesStopped):
            return not self.enough_to_write()
        recently = {path for path in self.been_full if self._suspect_lately(path)}
        return isinstance(error, NodeFull) and bool(recently)

    def enough_to_write(self) -> bool:
        return sum(not self._suspect_lately(path) for path in self.nodes) >= self.m + 1

    def _suspect_lately(self, path: str) -> bool:
        """Is, or was a moment ago: the store distrusts it still."""
        ago = self.machine.now_ns() - self.whole_since.get(path, 0)
        return path in self.suspects or ago < DISTRUST_SECONDS * 10**9

    def beyond_reading(self) -> bool:
        return False

    # -- while a process runs --------------------------------------------------------------

    async def change(self, store: Store, tell: Callable[[str], None]) -> None:
        """Something happens to a disk, or ends."""
        act = self.dice.choice([self._strike, self._strike, self._relieve])
        line = await act(store)
        if line:
            tell(line)

    async def _strike(self, store: Store) -> str:
        healthy = [path for path in sorted(self.machine.disks) if path not in self.suspects]
        if len(self.suspects) >= self.m or not healthy:
            return await self._relieve(store)
        path = self.dice.choice(healthy)
        disk = self.machine.disks[path]
        match self.dice.randrange(5):
            case 0 | 1:
                self.machine.vanish(path)
                self.suspects[path] = "gone"
            case 2:
                rate = self.dice.choice((0.05, 0.5, 1.0))
                disk.failing = {kind: rate for kind in ("read", "write", "sync") if self.dice.random() < 0.6}
                self.suspects[path] = "failing"
            case 3:
                disk.capacity = disk.used() + self.dice.choice((0, 100, 5000, 40_000))
                self.suspects[path] = "full"
                self.been_full.add(path)
            case _:
                self._rot(path)
                self.suspects[path] = "rotten"
        return f"{path[-1]} is {self.suspects[path]} {disk.failing or ''}"

    def _rot(self, path: str) -> None:
        """A burst of flipped bits in some files, or of sectors that cannot be read any more."""
        disk = self.machine.disks[path]
        names = sorted(name for name, file in disk.files.items() if file.content and "quarantine" not in name)
        for name in self.dice.sample(names, min(len(names), self.dice.randint(1, 4))):
            for _ in range(self.dice.randint(1, 3)):
                offset = self.dice.randrange(len(disk.files[name].content))
                if self.dice.random() < 0.3:
                    disk.files[name].pending.add(offset // SECTOR_BYTES)
                else:
                    disk.rot(name, offset, self.dice.randint(1, 255))

    async def _relieve(self, store: Store) -> str:
        """A fault ends; the node is suspect until it is seen to be whole."""
        waiting = [path for path, state in sorted(self.suspects.items()) if state != "back"]
        if not waiting:
            return ""
        path = self.dice.choice(waiting)
        state = self.suspects[path]
        self._mend(path)
        if state == "empty" or (state in ("gone", "rotten", "stale") and self.dice.random() < 0.4):
            await self._replace(store, path)
            return f"{path[-1]} is replaced by an empty disk"
        if state in ("rotten", "stale"):
            await self._scrub(store, path)
            return f"all is scrubbed, as {path[-1]} is {state}"
        if state == "gone":
            self.machine.come_back(path)
        self.suspects[path] = self.were.pop(path, "back")
        return f"{path[-1]} is no longer {state}"

    async def _scrub(self, store: Store, path: str) -> None:
        """Whatever is wrong is found, and then repaired by itself."""
        try:
            await scrub(store.parts, seal=True)
        except WritesStopped:
            if self.enough_to_write():
                raise
            return  # what was found could not be noted: more nodes must come back first
        self.suspects[path] = "back"

    def forget(self, path: str) -> None:
        """The node is one no more."""
        self.suspects.pop(path, None)
        self.images.pop(path, None)
        self.were.pop(path, None)
        self.machine.disks.pop(path, None)

    def _mend(self, path: str) -> None:
        disk = self.machine.disks.get(path)
        if disk is not None:  # else it is empty and nobody looked at it yet
            disk.failing, disk.capacity = {}, self.machine.capacity

    async def _replace(self, store: Store, path: str) -> None:
        """An empty disk takes the node's place. Any part of it may be the last of a process."""
        self.images.pop(path, None)
        if self.suspects[path] not in ("gone", "empty"):
            self.machine.vanish(path)
            if self.suspects[path] in ("rotten", "stale"):
                self.were[path] = self.suspects[path]
            self.suspects[path] = "gone"
        await anyio.sleep(2.5)  # until it is found to be lost
        place = next(place for place in store.keymap.nodes() if place.path == path)
        if self.suspects[path] == "empty" and place.generation == _generation(store, path):
            self.suspects[path] = "back"  # an earlier attempt got further than it could tell
            return
        self.machine.come_back_empty(path)
        self.suspects[path] = "empty"
        self.were.pop(path, None)
        if place.state is not NodeState.LOST and self.enough_to_write():
            raise Violation(f"node {place.node_id} was away for 2.5 s and is {place.state}")
        try:
            await store.replace_node(place.node_id)
        except WritesStopped:
            if self.enough_to_write():
                raise
            return  # more nodes must come back or be replaced first
        self.suspects[path] = "back"

    # -- between processes -----------------------------------------------------------------

    def between_processes(self, power_cut: bool) -> None:
        for path, disk in sorted(self.machine.disks.items()):
            if path not in self.suspects and self.dice.random() < 0.05:
                self.images[path] = disk.image()
        if len(self.suspects) < self.m and self.dice.random() < 0.1:
            path = self.dice.choice([path for path in sorted(self.machine.disks) if path not in self.suspects])
            if path in self.images:
                self.machine.disks[path].restore(self.images[path])
                self.suspects[path] = "stale"
        index = self.machine.data / "index"
        backup = self.machine.folder / "index.old"
        match self.dice.randrange(14):
            case 2:  # the disk of DATA/index is copied …
                shutil.rmtree(backup, ignore_errors=True)
                shutil.copytree(index, backup, ignore=shutil.ignore_patterns("*.sock", "pins"))
            case 3 if backup.exists():  # … and comes back as it was
                shutil.rmtree(index)
                shutil.copytree(backup, index)
            case 0:
                for found in index.iterdir():
                    if found.is_file():
                        found.unlink()
            case 1:
                keymap = index / "keymap.sqlite"
                if keymap.exists():
                    content = bytearray(keymap.read_bytes())
                    for _ in range(self.dice.randint(1, 20)):
                        content[self.dice.randrange(100)] ^= self.dice.randint(1, 255)
                    keymap.write_bytes(content)

    def calm(self) -> None:
        """All faults end."""
        for path, state in self.suspects.items():
            self._mend(path)
            if state == "gone":
                self.machine.come_back(path)
            if state in ("gone", "full", "failing"):
                self.suspects[path] = self.were.pop(path, "back")

    async def heal_all(self, store: Store) -> None:
        """Every node becomes whole by itself, or once its rotten disk is replaced."""
        for path, state in sorted(self.suspects.items()):
            if state == "empty":
                await self._replace(store, path)
            elif state in ("rotten", "stale"):
                await self._scrub(store, path)
        await store.parts.plane.seal()
        for _ in range(HEAL_SECONDS):
            await self.note_clean(store)
            if not self.suspects and (await store.status())["under_redundancy"] == 0:
                return
            await anyio.sleep(1)
        status = await store.status()
        raise Violation(
            f"after {HEAL_SECONDS} s without faults {status['under_redundancy']} are below full protection, "
            f"suspect: { {path: self._lacking(store, path) for path in self.suspects} }, nodes: {status['nodes']}"
        )

    def check_no_strays(self, store: Store) -> None:
        """After a collection no fragment lies anywhere but where the index says."""
        places = {place.path: place.node_id for place in store.keymap.nodes()}
        expected = {
            (node_id, fragment_name(segment.segment_id, index))
            for segment in store.keymap.segments()
            for index, node_id in enumerate(segment.node_ids)
        }
        for path, disk in sorted(self.machine.disks.items()):
            strays = [
                name
                for name in sorted(disk.files)
                if name.startswith("segments/") and (places.get(path, ""), name) not in expected
            ]
            if strays:
                raise Violation(f"{path} still holds {strays}")

    # -- whole again -------------------------------------------------------------------------

    async def note_clean(self, store: Store) -> None:
        """Which suspects are whole again, and which nodes there are."""
        self.nodes = {place.path for place in store.keymap.nodes() if place.state is NodeState.HEALTHY}
        for path, state in list(self.suspects.items()):
            if state == "back" and self._lacking(store, path) is None:
                del self.suspects[path]
                self.whole_since[path] = self.machine.now_ns()

    def _lacking(self, store: Store, path: str) -> str | None:
        """What keeps the node from being whole."""
        place = next(place for place in store.keymap.nodes() if place.path == path)
        disk = self.machine.disks.get(path)
        if disk is None or place.state not in (NodeState.HEALTHY, NodeState.DRAINING):
            return f"it is {place.state}"
        if place.node_id not in store.parts.nodes.nodes:
            return "the store has not opened it again"
        for name in disk.files:
            replicated = not name.startswith(("segments/", "quarantine/")) and not name.endswith(WRITING)
            counts = replicated and place.state is NodeState.HEALTHY  # a node that drains is no place for copies
            if counts and not self._agrees(path, name):
                return f"{name} differs from all others"
        for segment in store.keymap.segments():
            if place.node_id not in segment.node_ids:
                continue
            problem = _problem(disk, segment, segment.node_ids.index(place.node_id))
            if problem is not None:
                return f"segment {segment.segment_id:016x} is not whole there: {problem}"
        return None

    def _agrees(self, path: str, name: str) -> bool:
        """Whether a replicated file is, as far as it goes, what it is on some other node. A
        snapshot or archive is whole by its own sum: one that was made again has another time."""
        file = self.machine.disks[path].files[name]
        content = file.content
        others = [
            disk.files[name].content
            for other, disk in self.machine.disks.items()
            if other != path and other not in self.suspects and name in disk.files
        ]
        if others and file.pending:
            return False
        magic = PIECE_FILES.get(name.rpartition(".")[2])
        if magic is not None:
            return not others or _is_whole_piece_file(content, magic, name)
        return not others or any(other.startswith(content) or content.startswith(other) for other in others)


def _generation(store: Store, path: str) -> int | None:
    """Of the disk that is there."""
    try:
        return read_node_descriptor(Path(path), store.parts.descriptor.store_id).generation
    except StoreError:
        return None


def _problem(disk: SimulatedDisk, segment: Segment, index: int) -> str | None:
    """Why the fragment is not whole on the node it is to be on."""
    file = disk.files.get(fragment_name(segment.segment_id, index))
    if segment.state is SegmentState.OPEN:
        return "it is open"
    if index in segment.fragments_lost:
        return "it is known to be lost"
    if file is None or file.doomed:
        return "the file is missing"
    if file.pending:
        return "the file is unreadable in part"
    if len(file.content) != segment.size:
        return f"{len(file.content)} bytes of {segment.size}"
    return None if _verifies(segment, index, bytes(file.content)) else "a checksum is wrong"


def _is_whole_piece_file(content: bytes | bytearray, magic: bytes, name: str) -> bool:
    try:
        for _ in PieceReader(lambda offset, length: bytes(content[offset : offset + length]), magic, name).pieces():
            pass
    except PiecesDamaged:
        return False
    return True


def _verifies(segment: Segment, index: int, content: bytes) -> bool:
    """Whether a sealed fragment file is whole, by its own checksums alone."""
    try:
        decode_file_header(content[:FILE_HEADER_BYTES])
        footer = decode_footer(content[-FOOTER_BYTES:], segment.segment_id, index)
        offset = FILE_HEADER_BYTES
        for _ in range(footer.stripes + footer.directory_stripes):
            header = decode_stripe_header(content[offset : offset + STRIPE_HEADER_BYTES], segment.segment_id, index)
            start = offset + STRIPE_HEADER_BYTES
            offset = start + header.fragment_length
            if not verify_payload(header, content[start:offset]):
                return False
    except FragmentCorrupt:
        return False
    return offset == len(content) - FOOTER_BYTES
