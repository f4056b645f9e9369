"""Scenarios that certainly reach a crash site, and what must hold after a crash there.

A scenario is a script over one small store: something is prepared, in one process or
several; then a process works until it reaches the site and ends there. Everything that was
answered before must be there when the next process opens what is left, what was in flight
wholly or not at all, and the work that was interrupted must succeed and leave nothing
behind. Sizes are the machine's small ones; one seed replays one run.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio

from engine.care.checkpoint import checkpoint
from engine.care.collect import collect, sweep
from engine.care.nodes import add_node, drain_node, remove_node, set_domain
from engine.care.repair import repair
from engine.care.scrub import scrub
from engine.care.sweep import Swept
from engine.changes import CreateBucket, DeleteKey, FragmentsDamaged, Origin, PutVersion
from engine.crash_sites import CrashSite
from engine.index.snapshots import KEPT, list_snapshots
from engine.journal.reading import list_files, read_epochs
from engine.journal.recovery import superfluous_epochs, superfluous_files
from engine.pieces import WRITING
from engine.segments.format import fragment_name
from engine.store import Opening, Store, init_store, open_store
from engine.types import NodeState, Segment, SegmentState
from sim.checks import Violation, check_books
from sim.disk import ProcessEnded
from sim.faults import _verifies
from sim.machine import Machine

ORIGIN = Origin(requester="test")
BUCKET = "bucket"
LAYOUTS = ((2, 1, 4), (2, 2, 5), (4, 2, 7))  # k, m and one node more than they need
SMALL, LARGE = 300, 20_000  # rides in the journal; takes several stripes
HEAL_SECONDS = 1500
DATA_NAMES = {"store.json", "store.key", "credentials", "lock", "care.lock", "scrub.lock", "measured.json", "index"}
INDEX_NAMES = ("keymap.sqlite", "page", "pins", "underway", "index.sock")


class CrashMachine(Machine):
    """A machine that keeps DATA as it was when the process reached the site: what the
    unwinding of the ended process still does to real files is undone. (SQLite would tidy
    up behind itself, which nothing does for a process that is killed.)"""

    def __init__(self, seed: int, folder: Path) -> None:
        super().__init__(seed, folder)
        self._image = folder / "data.image"

    def _reached(self, site: CrashSite) -> None:
        ended = self.process.ended
        try:
            super()._reached(site)
        except ProcessEnded:
            if not ended:
                shutil.copytree(self.data, self._image, ignore=_sockets)
            raise

    def crash(self, *, power: bool) -> None:
        """The process reached its site: what is left of it; `power`: and of what it had not synced."""
        shutil.rmtree(self.data)
        self._image.rename(self.data)
        if power:
            self.power_cut()
            wal = self.data / "index" / "keymap.sqlite-wal"
            if wal.exists():
                with wal.open("r+b") as file:  # SQLite never synced it: this small one was never checkpointed
                    file.truncate(self.dice.randint(0, wal.stat().st_size))


def _sockets(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_socket()]


@dataclass
class Asked:
    """What may be found at a key: several contents (None: no such key) while it is in doubt."""

    contents: list[bytes | None]
    unsynced: bytes | None = None  # answered before it was durable: only a power cut takes it back


class Play:
    """The store of one scenario, and what was asked of it."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.machine = CrashMachine(seed, folder)
        self.dice = random.Random(f"scenario {seed}")
        self.k, self.m, count = LAYOUTS[seed % len(LAYOUTS)]
        self.paths = [str(folder / "nodes" / str(number)) for number in range(1, count + 1)]
        self.keys: dict[str, Asked] = {}
        self.store: Store
        self.gone: list[str] = []  # paths of nodes that are away
        init_store(self.machine.data, k=self.k, m=self.m, nodes=[(path, "") for path in self.paths])

    # -- processes ---------------------------------------------------------------------

    def run(self, work: Callable[[Play], Awaitable[None]], crash_at: tuple[CrashSite, int] | None = None) -> bool:
        """One process over the store; False if it ended at the site."""

        async def main() -> None:
            self.machine.process.crash_at = crash_at
            async with open_store(self.machine.data, Opening.OWN, node_opener=self.machine.open_node) as self.store:
                await work(self)

        return self.machine.run(main)

    # -- clients -----------------------------------------------------------------------

    async def put(self, key: str, size: int, *, durable: bool = True) -> None:
        content = self.dice.randbytes(size)
        self._ask(key, content)
        with self.store.pins.hold():
            writer = self.store.open_writer()
            await writer.write(content)
            change = PutVersion(BUCKET, key, await writer.finish(), etag="e")
            await self.store.commit(change, ORIGIN, durable=durable)
        self._answered(key, content, durable)

    async def delete(self, key: str) -> None:
        self._ask(key, None)
        await self.store.commit(DeleteKey(BUCKET, key), ORIGIN)
        self._answered(key, None, True)

    def _ask(self, key: str, content: bytes | None) -> None:
        self.keys.setdefault(key, Asked([None])).contents.append(content)

    def _answered(self, key: str, content: bytes | None, durable: bool) -> None:
        self.machine.process.go_on()  # an answer of a dead process is none
        asked = self.keys[key]
        if durable:
            asked.contents, asked.unsynced = [content], None
        else:
            asked.unsynced = content

    def killed(self, *, power: bool) -> None:
        self.machine.crash(power=power)
        for asked in self.keys.values():
            if asked.unsynced is not None and not power:
                asked.contents = asked.contents[asked.contents.index(asked.unsynced) :]
            asked.unsynced = None

    # -- what must hold -----------------------------------------------------------------

    async def check(self) -> None:
        """What was answered is there, what was in flight wholly or not at all; the books are right."""
        store = self.store
        listed = [version.key for version in store.keymap.list_objects(BUCKET, limit=1000).versions]
        for key, asked in self.keys.items():
            head = store.keymap.head(BUCKET, key)
            found = None if head is None else b"".join([bytes(some) async for some in store.read(head.manifest)])
            if found not in asked.contents or (key in listed) != (found is not None):
                raise Violation(f"{key} is not what was answered, nor what was in flight")
            asked.contents, asked.unsynced = [found], None
        _nothing_of("keys nobody wrote", sorted(set(listed).difference(self.keys)))
        await check_books(store)

    def missing_fragments(self) -> list[str]:
        """Of all segments: what is not whole where the index says it is."""
        found: list[str] = []
        paths = {place.node_id: place.path for place in self.store.keymap.nodes()}
        for segment in self.store.keymap.segments():
            name = f"segment {segment.segment_id:016x}"
            if segment.state is not SegmentState.SEALED:
                found.append(f"{name} is {segment.state}")
                continue
            found += [f"{name} lost {index}" for index in segment.fragments_lost]
            for index, node_id in enumerate(segment.node_ids):
                disk = self.machine.disks.get(paths[node_id])  # none: nobody has looked at it yet
                file = disk.files.get(fragment_name(segment.segment_id, index)) if disk is not None else None
                if file is None or len(file.content) != segment.size:
                    found.append(f"{name} has no whole fragment {index} on {node_id}")
                elif not _verifies(segment, index, bytes(file.content)):
                    found.append(f"{name} fragment {index} on {node_id} is damaged")
        return found

    async def unsettled(self) -> list[str]:
        """What is below full protection now, or not healthy."""
        found = self.missing_fragments()
        thin = await self.store.parts.journal_under_redundancy()
        found += [f"{thin} of the journal, snapshots and archives have too few copies"] * bool(thin)
        found += [
            f"{place.node_id} is {place.state}"
            for place in self.store.keymap.nodes()
            if place.state is not NodeState.HEALTHY
        ]
        return found

    async def settle(self) -> None:
        """Return once all is at full protection, by itself."""
        await self.store.parts.plane.seal()
        for _ in range(HEAL_SECONDS):
            if not await self.unsettled():
                return
            await anyio.sleep(1)
        _nothing_of(f"after {HEAL_SECONDS} s without faults", await self.unsettled())

    def strays(self) -> list[str]:
        """Files nobody has a use for, on the nodes and in DATA."""
        store, nodes = self.store, dict(self.store.parts.nodes.nodes)
        paths = {place.node_id: place.path for place in store.keymap.nodes()}
        used = {
            (paths[node_id], fragment_name(segment.segment_id, index))
            for segment in store.keymap.segments()
            for index, node_id in enumerate(segment.node_ids)
        }
        found = [
            f"{path}/{name}"
            for path, disk in self.machine.disks.items()
            if path in paths.values()
            for name in disk.files
            if (path, name) not in used
            and (not name.startswith(("journal/", "index/", "quarantine/")) or name.endswith(WRITING))
        ]
        first_lsn = store.keymap.journal_first_lsn()
        found += [f"journal file {key}" for key in superfluous_files(list_files(nodes), first_lsn) if first_lsn > 1]
        epochs = read_epochs(nodes, store.parts.descriptor.store_id)
        found += [f"epoch {number}" for number in superfluous_epochs(epochs, first_lsn) if first_lsn > 1]
        found += [f"snapshot {lsn}" for lsn in list(list_snapshots(nodes))[KEPT:]]
        found += [f"DATA/{entry.name}" for entry in self.machine.data.iterdir() if entry.name not in DATA_NAMES]
        index = self.machine.data / "index"
        found += [f"DATA/index/{entry.name}" for entry in index.iterdir() if not entry.name.startswith(INDEX_NAMES)]
        found += [f"DATA/index/pins/{entry.name}" for entry in list((index / "pins").iterdir())[1:]]
        return found

    # -- afterwards ---------------------------------------------------------------------

    async def finish(self) -> None:
        """Do again what was interrupted, whichever it was; then nothing is left of it."""
        await self.put("afterwards small", SMALL)
        await self.put("afterwards large", LARGE)
        await self.settle()
        parts = self.store.parts
        _nothing_of("repair left", (await repair(parts)).left)
        collected = await collect(parts, compact=True)
        _nothing_of("collection spared", [*collected.reasons, *collected.unsealed])
        _nothing_of("the checkpoint says", (await checkpoint(parts, force=True)).notes)
        await collect(parts, compact=True)
        scrubbed = await scrub(parts)
        _nothing_of("scrub found", [*scrubbed.damaged, *scrubbed.unreadable, *scrubbed.problems, *scrubbed.absent])
        swept = await sweep(parts)
        _nothing_of("a second sweep found", [swept] * (swept != Swept()))
        _nothing_of("still condemned", list(parts.index.keymap.condemned()))
        await self.settle()
        _nothing_of("files nobody has a use for", self.strays())
        await self.check()


def _nothing_of(what: str, found: Sequence[object]) -> None:
    if found:
        raise Violation(f"{what}: {', '.join(map(str, found))}")


# -- scripts ---------------------------------------------------------------------------

Work = Callable[[Play], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """`prepare` is done by a process that ends orderly; `befalls` what happens then. The
    process that does `work` (opening the store included) reaches each of `sites`. `relief`
    ends a fault before the store is opened again; `again` is what to do then, before what
    is done after every crash (Play.finish)."""

    name: str
    sites: tuple[CrashSite, ...]
    work: Work
    prepare: Work | None = None
    befalls: Callable[[Play], None] | None = None
    relief: Callable[[Play], None] | None = None
    again: Work | None = None


async def nothing(play: Play) -> None:
    """Opening the store is all."""


async def small_and_large(play: Play) -> None:
    for number in range(3):
        await play.put(f"small {number}", SMALL)
    await play.put("large", LARGE)
    await play.store.parts.plane.seal()


async def begin(play: Play) -> None:
    await play.store.commit(CreateBucket(BUCKET), ORIGIN)
    await small_and_large(play)


async def commits(play: Play) -> None:
    await play.put("small 0", SMALL)
    await play.put("unsynced", SMALL, durable=False)
    await play.put("small 1", 0)
    async with anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(play.put, f"together {number}", SMALL)
        tasks.start_soon(play.put, "large", LARGE)
        tasks.start_soon(play.delete, "small 2")
    for number in range(30):  # the journal goes on in another file
        await play.put(f"file {number}", 900)


def path_of(play: Play, node_id: str) -> str:
    return next(place.path for place in play.store.keymap.nodes() if place.node_id == node_id)


async def replica_fails(play: Play) -> None:
    await play.put("before", SMALL)
    failing = play.store.index._log.members[0]  # type: ignore[attr-defined]
    play.machine.disks[path_of(play, failing)].failing = {"sync": 1.0}
    for number in range(3):
        await play.put(f"answered before it is synced {number}", SMALL, durable=False)
    async with anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(play.put, f"while it fails {number}", SMALL)
    await play.put("after", SMALL)


async def segments(play: Play) -> None:
    """One that is filled, one that is sealed early."""
    for number in range(7):
        await play.put(f"more {number}", LARGE)
    await play.put("large", LARGE)
    await play.store.parts.plane.seal()


async def node_fails_in_segment(play: Play) -> None:
    await play.put("before", LARGE)
    segment = next(one for one in play.store.keymap.segments() if one.state is SegmentState.OPEN)
    play.machine.disks[path_of(play, segment.node_ids[0])].failing = {"sync": 1.0, "write": 1.0}
    await play.put("while it fails", LARGE)
    await play.put("after", SMALL)


def faults_end(play: Play) -> None:
    for path in play.gone:
        play.machine.come_back(path)
    play.gone.clear()
    for disk in play.machine.disks.values():
        disk.failing = {}


async def leave_orphan(play: Play) -> None:
    """End in the middle of a segment, a stripe of it written to one node only."""
    await begin(play)
    await play.put("synced", LARGE)
    play.machine.process.crash_at = (CrashSite.STRIPE_PARTLY_WRITTEN, 3)
    await play.put("torn", LARGE)


def orphan_left(play: Play) -> None:
    play.killed(power=False)


def orphan_left_and_rotten(play: Play) -> None:
    """A fragment file of the orphan is damaged before its end."""
    play.killed(power=False)
    path, name = newest_fragment(play)
    play.machine.disks[path].rot(name, 300, 1)


def newest_fragment(play: Play) -> tuple[str, str]:
    """Any of a segment that is not sealed: sealed ones end alike."""
    shortest = min(
        (len(file.content), path, name)
        for path, disk in sorted(play.machine.disks.items())
        for name, file in disk.files.items()
        if name.startswith("segments/") and file.content[-64:-56] != b"objfsEND"
    )
    return shortest[1], shortest[2]


async def repair_rot(play: Play) -> None:
    """Fragments are found rotten, and rebuilt in their places."""
    segment = whole_segment(play)
    for index in range(play.m):
        path = path_of(play, segment.node_ids[index])
        play.machine.disks[path].rot(fragment_name(segment.segment_id, index), 200, 1)
    change = FragmentsDamaged(segment.segment_id, list(range(play.m)), "rot")
    await play.store.commit(change, ORIGIN)
    await repair(play.store.parts)


def whole_segment(play: Play) -> Segment:
    return next(
        one for one in play.store.keymap.segments() if one.state is SegmentState.SEALED and one.size > LARGE / 9
    )


async def repair_elsewhere(play: Play) -> None:
    """A node is gone; its fragments move to others."""
    vanish(play, whole_segment(play).node_ids[0])
    await anyio.sleep(5)
    await repair(play.store.parts, grace_seconds=0)


def vanish(play: Play, node_id: str) -> None:
    path = path_of(play, node_id)
    play.gone.append(path)
    play.machine.vanish(path)


async def replace(play: Play) -> None:
    """A node is gone, and an empty disk takes its place."""
    vanish(play, whole_segment(play).node_ids[0])
    await anyio.sleep(5)
    for path in play.gone:
        play.machine.come_back_empty(path)
    play.gone.clear()
    await replace_lost(play)
    await play.settle()


async def replace_lost(play: Play) -> None:
    for place in play.store.keymap.nodes():
        if place.state is NodeState.LOST:
            await play.store.replace_node(place.node_id)


async def add(play: Play) -> None:
    """A node more; asked for again, it is there or is made."""
    path = str(play.machine.folder / "nodes" / "added")
    if path not in [place.path for place in play.store.keymap.nodes()]:
        await add_node(play.store.parts, path)
    await play.put("beside the new node", LARGE)


async def drain_and_remove(play: Play) -> None:
    node_id = whole_segment(play).node_ids[0]
    await drain_node(play.store.parts, node_id)
    await remove_node(play.store.parts, node_id)


async def remove_drained(play: Play) -> None:
    for place in play.store.keymap.nodes():
        if place.state is NodeState.DRAINING:
            await drain_node(play.store.parts, place.node_id)
            await remove_node(play.store.parts, place.node_id)


async def move_to_rack(play: Play) -> None:
    await set_domain(play.store.parts, "node1", "rack1")


def damage_keymap(play: Play) -> None:
    keymap = play.machine.data / "index" / "keymap.sqlite"
    keymap.write_bytes(b"no database" + keymap.read_bytes()[11:])


async def leave_log(play: Play) -> None:
    for number in range(3):
        await play.put(f"logged {number}", SMALL)
    play.machine.process.crash_at = (CrashSite.COMMIT_APPLIED, 1)
    await play.put("last", SMALL)


def keymap_lost_but_for_its_log(play: Play) -> None:
    """A process that had it open keeps SQLite from deleting the log with it."""
    play.run(leave_log)
    play.killed(power=False)
    (play.machine.data / "index" / "keymap.sqlite").unlink()


def forget_index(play: Play) -> None:
    shutil.rmtree(play.machine.data / "index")


def journal_copy_lost(play: Play) -> None:
    """A replica of the newest journal file is gone from one node."""
    holders = [
        (name, path)
        for path, disk in sorted(play.machine.disks.items())
        for name in disk.files
        if name.endswith(".journal")
    ]
    name, path = max(holders)
    del play.machine.disks[path].files[name]


async def begin_with_checkpoints(play: Play) -> None:
    await begin(play)
    for number in range(2):
        await play.put(f"between checkpoints {number}", SMALL)
        await checkpoint(play.store.parts, force=True)
    await play.put("small 2", SMALL)


async def third_checkpoint(play: Play) -> None:
    await checkpoint(play.store.parts, force=True)


async def begin_and_delete(play: Play) -> None:
    """Segments wholly and partly dead, and dead content in the journal."""
    await begin(play)
    await play.put("dead", LARGE)
    await play.store.parts.plane.seal()
    for key in ("half", "other half", "dead half"):
        await play.put(key, LARGE)
    await play.store.parts.plane.seal()
    for key in ("dead", "dead half", "half", "small 1"):
        await play.delete(key)


async def collection(play: Play) -> None:
    await collect(play.store.parts, compact=True)


S = CrashSite
SCENARIOS = (
    Scenario(
        "commits",
        (
            S.JOURNAL_EPOCH_NAMED,
            S.JOURNAL_EPOCH_OPENED,
            S.JOURNAL_FILE_CREATED,
            S.JOURNAL_PARTLY_WRITTEN,
            S.JOURNAL_WRITTEN,
            S.JOURNAL_TAIL_WRITTEN,
            S.JOURNAL_SYNCED,
            S.COMMIT_ORDERED,
            S.COMMIT_APPLIED,
        ),
        commits,
        begin,
    ),
    Scenario(
        "journal replica fails",
        (S.JOURNAL_EPOCH_NAMED, S.JOURNAL_EPOCH_OPENED, S.JOURNAL_TAIL_WRITTEN, S.JOURNAL_HEALED),
        replica_fails,
        begin,
        relief=faults_end,
    ),
    Scenario(
        "segments",
        (
            S.SEGMENT_ANNOUNCED,
            S.SEGMENT_PARTLY_CREATED,
            S.SEGMENT_CREATED,
            S.STRIPE_PARTLY_WRITTEN,
            S.STRIPE_WRITTEN,
            S.FRAGMENT_SYNCED,
            S.STRIPES_SYNCED,
            S.SEAL_PARTLY_WRITTEN,
            S.SEAL_WRITTEN,
            S.SEAL_ANNOUNCED,
        ),
        segments,
        begin,
    ),
    Scenario(
        "node fails in a segment",
        (S.SEAL_CUT, S.SEAL_PARTLY_WRITTEN, S.SEAL_WRITTEN, S.SEAL_ANNOUNCED),
        node_fails_in_segment,
        begin,
        relief=faults_end,
    ),
    Scenario(
        "orphan",
        (S.RECOVERY_SURVEYED, S.RECOVERY_CUT, S.RECOVERY_COMPLETED),
        nothing,
        leave_orphan,
        orphan_left,
    ),
    Scenario(
        "rotten orphan",
        (S.RECOVERY_SURVEYED, S.REBUILD_WRITTEN, S.REBUILD_QUARANTINED, S.REBUILD_RENAMED),
        nothing,
        leave_orphan,
        orphan_left_and_rotten,
    ),
    Scenario(
        "rot",
        (S.REBUILD_WRITTEN, S.REBUILD_QUARANTINED, S.REBUILD_RENAMED, S.REPAIR_PLACED, S.REPAIR_TOLD),
        repair_rot,
        begin,
    ),
    Scenario(
        "node gone",
        (S.REBUILD_WRITTEN, S.REBUILD_RENAMED, S.REPAIR_PLACED, S.REPAIR_TOLD),
        repair_elsewhere,
        begin,
        relief=faults_end,
    ),
    Scenario(
        "node replaced",
        (S.NODE_DESCRIBED, S.NODE_PLACED, S.REBUILD_WRITTEN, S.REBUILD_RENAMED, S.REPAIR_PLACED, S.REPAIR_TOLD),
        replace,
        begin,
        again=replace_lost,
    ),
    Scenario("node added", (S.NODE_DESCRIBED, S.NODE_PLACED), add, begin, again=add),
    Scenario(
        "node removed",
        (S.NODE_PLACED, S.REPAIR_PLACED, S.REPAIR_TOLD),
        drain_and_remove,
        begin,
        again=remove_drained,
    ),
    Scenario("domain set", (S.NODE_DESCRIBED, S.NODE_PLACED), move_to_rack, begin, again=move_to_rack),
    Scenario("opening", (S.KEYMAP_REPLAYED, S.JOURNAL_HEALED), nothing, begin, journal_copy_lost),
    Scenario("damaged keymap", (S.KEYMAP_SET_ASIDE, S.KEYMAP_REPLAYED), nothing, begin, damage_keymap),
    Scenario(
        "damaged keymap with snapshots",
        (S.KEYMAP_SET_ASIDE, S.KEYMAP_RESTORED, S.KEYMAP_REPLAYED),
        nothing,
        begin_with_checkpoints,
        damage_keymap,
    ),
    Scenario(
        "no keymap but its log",
        (S.KEYMAP_SET_ASIDE, S.KEYMAP_RESTORED, S.KEYMAP_REPLAYED),
        nothing,
        begin_with_checkpoints,
        keymap_lost_but_for_its_log,
    ),
    Scenario("no index", (S.KEYMAP_RESTORED, S.KEYMAP_REPLAYED), nothing, begin_with_checkpoints, forget_index),
    Scenario(
        "checkpoint",
        (
            S.JOURNAL_ROTATED,
            S.CHECKPOINT_MOVED,
            S.SNAPSHOT_COPIED,
            S.PIECES_PARTLY_WRITTEN,
            S.PIECES_VERIFIED,
            S.PIECES_NAMED,
            S.JOURNAL_ARCHIVED,
            S.JOURNAL_DROPPED,
            S.JOURNAL_PARTLY_DELETED,
            S.SNAPSHOT_PARTLY_PRUNED,
        ),
        third_checkpoint,
        begin_with_checkpoints,
    ),
    Scenario(
        "collection",
        (
            S.COLLECTION_CONDEMNED,
            S.COLLECTION_MOVED,
            S.COLLECTION_MARKED,
            S.SEGMENTS_DELETED,
            S.FRAGMENT_DELETED,
            S.JOURNAL_DROPPED,
            S.JOURNAL_PARTLY_DELETED,
        ),
        collection,
        begin_and_delete,
    ),
)


def crash(scenario: Scenario, site: CrashSite, times: int, seed: int, folder: Path, *, power: bool) -> bool:
    """Play it; False if the site was not reached so often."""
    play = Play(seed, folder)
    if scenario.prepare is not None:
        play.run(scenario.prepare)
    if scenario.befalls is not None:
        scenario.befalls(play)
    if play.run(scenario.work, (site, times)):
        return False
    play.killed(power=power)
    if scenario.relief is not None:
        scenario.relief(play)

    async def go_on(play: Play) -> None:
        await play.check()
        if scenario.again is not None:
            await scenario.again(play)
        await play.finish()

    assert play.run(go_on)
    assert play.run(Play.check)
    return True
