"""Opening the journal: what is whole anywhere, in order; and bringing files back to m+1
replicas. Blocking.

The highest epoch wins; records of an earlier epoch from a later one's first LSN on are
overruled. In the last epoch the journal ends at the first record that is whole nowhere,
unless a record behind it says that it had been durable: that is damage, not a torn tail.
Then, and wherever a record of an earlier epoch is missing, opening is refused.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from engine.crash_sites import CrashSite, reached
from engine.errors import JournalCorrupt, NodeFull, NodeUnavailable, StoreError
from engine.interfaces import Node
from engine.journal.reading import FileKey, MergedFile, epochs_on, list_files, read_epochs
from engine.journal.records import (
    Epoch,
    RawRecord,
    decode_payload,
    encode_epoch,
    epoch_name,
    journal_name,
    parse_journal_name,
)

SECTOR_BYTES = 4096  # as much as a disk cannot read for one bad place

logger = logging.getLogger("objfs.journal")


class JournalScan:
    """What the nodes hold of the journal, found at open."""

    def __init__(self, nodes: Mapping[str, Node], store_id: str) -> None:
        self._known = {node_id: epochs_on(node, store_id) for node_id, node in nodes.items()}
        found = {number: epoch for known in self._known.values() for number, epoch in known.items()}
        void = _void_epochs(found)
        self.epochs = {number: epoch for number, epoch in found.items() if not void(number)}
        self.files = {key: sizes for key, sizes in list_files(nodes).items() if not void(key[0])}
        for number, first_lsn in sorted(self.files, reverse=True):
            if number not in self.epochs or self.epochs[number].first_lsn > first_lsn:
                # Its epoch file is damaged everywhere, but a journal file's header says as much.
                self.epochs[number] = Epoch(number, first_lsn, [], store_id)
        self._nodes = nodes
        self._store_id = store_id
        self.last_number = max(found, default=0)  # of any epoch ever begun, as far as these nodes know
        self.unfinished: set[int] = set()
        while (number := max(self.epochs, default=0)) and self._is_unfinished(self.epochs[number]):
            # Nobody was answered out of it, and what it was to take over stands in the one before.
            self.unfinished.add(number)
            del self.epochs[number]
            self.files = {key: sizes for key, sizes in self.files.items() if key[0] != number}
        self.last_epoch = max(self.epochs, default=0)

    def _is_unfinished(self, epoch: Epoch) -> bool:
        """Whether the newest epoch's opening was cut short: it lacks a part of the tail it
        was to take over, and nothing in it says that it had been there."""
        if epoch.tail_lsn < epoch.first_lsn or any(
            number == epoch.number and first > epoch.first_lsn for number, first in self.files
        ):
            return False
        merged = MergedFile(self._nodes, (epoch.number, epoch.first_lsn), self._store_id)
        if any(record.lsn >= epoch.tail_lsn for _, record in merged.records()):
            return False
        return merged.proven_durable() < merged.next_lsn

    def check_available(self, missing: Mapping[str, str], m: int) -> None:
        """Refuse to open when what is missing could hide acknowledged records. `missing`
        maps node ids to reasons. Raises NodeUnavailable naming them."""
        if len(missing) > m:
            reasons = "; ".join(missing.values())
            raise NodeUnavailable(
                f"{len(missing)} nodes are missing, the store survives {m}: {reasons}; bring nodes back and try again"
            )

    def records(self, from_lsn: int) -> Iterator[tuple[FileKey, int, RawRecord]]:
        """(file, offset, record) of every record from `from_lsn` on, in order."""
        expected = from_lsn
        for key in self._order(from_lsn):
            limit = self._overruled_from(key[0])
            merged = MergedFile(self._nodes, key, self._store_id)
            for offset, record in merged.records():
                if limit is not None and record.lsn >= limit:
                    break
                if record.lsn < from_lsn:
                    continue  # in a file that holds later ones too, or came back with an old disk
                if record.lsn != expected:
                    self._judge_gap(key, expected, record.lsn - 1, decode_payload(record).durable_lsn)
                    continue  # never durable, like all behind the gap
                expected = record.lsn + 1
                yield key, offset, record
            if key[0] == self.last_epoch:
                first_missing, proven = max(expected, merged.next_lsn), merged.proven_durable()
                if proven >= first_missing:
                    self._judge_gap(key, first_missing, proven, proven)
        if self.last_epoch and expected < self.epochs[self.last_epoch].first_lsn:
            raise _missing(expected, self.epochs[self.last_epoch].first_lsn - 1)

    def _judge_gap(self, key: FileKey, first: int, last: int, durable_lsn: int) -> None:
        """Records `first` to `last` are whole nowhere, and one in the file behind them says
        what was durable then. Raises JournalCorrupt unless it is the last epoch's tail,
        which a power loss may have left in any state."""
        if key[0] != self.last_epoch or first < self.epochs[key[0]].first_lsn or durable_lsn >= first:
            raise _missing(first, last, f"; {journal_name(*key)} goes on behind them")

    def end_lsn(self) -> int:
        """The newest LSN the journal holds. Raises JournalCorrupt."""
        files = [key for key in sorted(self.files) if key[0] == self.last_epoch] or sorted(self.files)[-1:]
        if not files:
            return 0
        first = files[0][1]
        return max((raw.lsn for _, _, raw in self.records(first)), default=first - 1)

    def unsynced_files(self, end_lsn: int, durable_lsn: int) -> list[FileKey]:
        """Files with records that may not be synced on m+1 nodes: those of the last epoch
        beyond `durable_lsn`, up to the journal's end."""
        keys = sorted(self.files)
        if not keys:
            return []
        following = [*(first for _, first in keys[1:]), end_lsn + 2]
        last = [
            key
            for key, next_first in zip(keys, following, strict=False)
            if key[0] == self.last_epoch and key[1] <= end_lsn + 1 and next_first > durable_lsn + 1
        ]
        return last or keys[-1:]

    def nodes_behind(self) -> list[str]:
        """Nodes without the epoch file of the newest journal file, though all healthy ones
        had it before that file was made: they were away, or an old copy of them is back."""
        newest = max(self.files, default=(0, 0))[0]
        knowing = {node_id for node_id, epochs in self._known.items() if newest in epochs}
        return sorted(set(self._known) - knowing) if knowing else []

    def bytes_from(self, from_lsn: int) -> int:
        """How much there is to read for records(from_lsn), about."""
        return sum(max(self.files[key].values(), default=0) for key in self._order(from_lsn))

    def _order(self, from_lsn: int) -> list[FileKey]:
        """Files that may hold records from `from_lsn` on, in order of LSN."""
        ordered = []
        keys = sorted(self.files)
        for position, key in enumerate(keys):
            epoch, first = key
            limit = self._overruled_from(epoch)
            following = keys[position + 1][1] if position + 1 < len(keys) else None
            if limit is not None and first >= limit:
                continue  # wholly overruled
            if following is not None and following <= from_lsn:
                continue
            ordered.append(key)
        return ordered

    def _overruled_from(self, epoch: int) -> int | None:
        later = [entry.first_lsn for entry in self.epochs.values() if entry.number > epoch]
        return min(later, default=None)


def _void_epochs(epochs: Mapping[int, Epoch]) -> Callable[[int], bool]:
    """Whether an epoch was begun and never opened: the newest one, or one it continues,
    passes over it. So one that was begun on a node that was away since counts for nothing."""
    passed: list[tuple[int, int]] = []
    number = max(epochs, default=-1)
    while number >= 0:
        follows = epochs[number].follows
        if follows >= 0:
            passed.append((follows, number))
        below = number - 1 if follows < 0 else follows
        number = max((earlier for earlier in epochs if earlier <= below), default=-1)
    return lambda number: any(low < number < high for low, high in passed)


def set_aside_void(nodes: Mapping[str, Node], store_id: str, unfinished: Collection[int] = ()) -> None:
    """Put journal and epoch files of void (and `unfinished`) epochs into quarantine, so that
    nobody heals from them. A node that fails keeps them for the next time."""
    void = _void_epochs(read_epochs(nodes, store_id))
    for node in list(nodes.values()):
        try:
            names = [name for name in node.list("journal/") if void(epoch_of(name)) or epoch_of(name) in unfinished]
            for name in names:
                node.quarantine(name, "it is of an epoch that was begun while the node failed, and never opened")
        except StoreError as error:
            logger.warning("files of void epochs on node %s stay for now: %s", node.path, error)


def epoch_of(name: str) -> int:
    """The epoch a journal or epoch file is of; -1 for other files."""
    key = parse_journal_name(name)
    if key is not None:
        return key[0]
    stem = name.removeprefix("journal/").removesuffix(".epoch")
    try:
        return int(stem, 16) if name.endswith(".epoch") else -1
    except ValueError:
        return -1


def superfluous_files(files: Iterable[FileKey], before_lsn: int) -> list[FileKey]:
    """Of journal files those that hold no record from `before_lsn` on that counts: a later
    file begins there or before. So a file that an old disk brings back is recognised too."""
    known = sorted(files)
    begins = [first for _, first in known]
    return [key for place, key in enumerate(known) if any(first <= before_lsn for first in begins[place + 1 :])]


def superfluous_epochs(epochs: Mapping[int, Epoch], before_lsn: int) -> list[int]:
    """Epochs that a later one overrules from `before_lsn` or earlier on."""
    return [
        number
        for number in epochs
        if any(later.number > number and later.first_lsn <= before_lsn for later in epochs.values())
    ]


def _missing(first: int, last: int, where: str = "") -> JournalCorrupt:
    named = f"record {first} is" if first >= last else f"records {first} to {last} are"
    return JournalCorrupt(
        f"journal {named} whole on no node{where}: nothing was changed; bring back the nodes that are missing, or "
        "put back a copy of their journal files"
    )


def heal_epochs(nodes: Mapping[str, Node], store_id: str) -> set[str]:
    """Give every node the epoch files the others have. Returns the nodes left without one."""
    epochs = read_epochs(nodes, store_id)
    failed: set[str] = set()
    for node_id, node in nodes.items():
        for number in sorted(set(epochs).difference(epochs_on(node, store_id))):
            try:
                node.write_whole(epoch_name(number), encode_epoch(epochs[number]))
            except StoreError as error:
                logger.warning("node %s is left without epoch %d: %s", node.path, number, error)
                failed.add(node_id)
    return failed


def heal_file(
    nodes: Mapping[str, Node],
    key: FileKey,
    store_id: str,
    copies: int,
    candidates: list[str],
    *,
    torn_tail: bool = False,
    void_from: int | None = None,
    anew: bool = False,
) -> int:
    """Bring one journal file to `copies` whole, synced replicas on `candidates` (in order
    of preference; holders first). Returns how many there are then. A file with whole
    records behind one that is whole nowhere is left as it is, unless they are known to be
    a `torn_tail`, or void from that record on (a later epoch begins at `void_from`). With
    `anew` replicas that are whole are written too: a sync of them may have failed, and the
    kernel would report success from then on."""
    merged = MergedFile(nodes, key, store_id)
    for _ in merged.records():
        pass
    if not merged.found:
        return 0
    if not torn_tail and not _ends_before(merged, void_from) and merged.goes_on():
        logger.error("%s is damaged at %d on every node that is there; it is left as it is", merged.name, merged.end)
        return 0
    name = journal_name(*key)
    content: bytes | None = None
    whole = 0
    for node_id in candidates:
        if whole == copies:
            break
        node = nodes.get(node_id)
        if node is None:
            continue
        try:
            if content is None:
                content = merged.content()
            if not _holds(node, name, content):
                node.write_whole(name, content)
            elif anew:
                _write_again(node, name, content)
            node.sync(name)
        except StoreError:
            continue  # this node can't hold it now; the count tells
        whole += 1
        reached(CrashSite.JOURNAL_HEALED)
    return whole


def _write_again(node: Node, name: str, content: bytes) -> None:
    try:
        node.write_whole(name, content)
    except NodeFull as error:
        logger.info("%s on node %s is synced as it is: %s", name, node.node_id, error)


def heal_replicas(nodes: Mapping[str, Node], healthy: Collection[str], store_id: str, end_lsn: int) -> set[str]:
    """Write the replicas on healthy nodes anew that are not what is good of all of them;
    each is copied to quarantine before. Only of files that nobody writes any more: those
    that begin at `end_lsn` or before. Epoch files likewise. Returns the nodes on which
    something could not be read or written."""
    failed: set[str] = set()
    files = list_files(nodes, failed)
    for key, sizes in sorted(files.items()):
        if key[1] <= end_lsn:
            holders = [node_id for node_id in sizes if node_id in healthy]
            failed |= _heal_differing(nodes, key, store_id, holders, void_from(files, key))
    return failed | heal_epochs({node_id: node for node_id, node in nodes.items() if node_id in healthy}, store_id)


def void_from(files: Iterable[FileKey], key: FileKey) -> int | None:
    """The first LSN that a file of a later epoch holds: what `key` has from there on is void."""
    return min((first for epoch, first in files if epoch > key[0]), default=None)


def _ends_before(merged: MergedFile, void: int | None) -> bool:
    """Whether all that counts of the file is whole; after records()."""
    return void is not None and merged.next_lsn >= void


def _heal_differing(
    nodes: Mapping[str, Node], key: FileKey, store_id: str, holders: list[str], void: int | None
) -> set[str]:
    """Returns the holders that stay as they are."""
    failed: set[str] = set()
    merged = MergedFile(nodes, key, store_id)
    for _ in merged.records():
        pass
    if not merged.found or (not _ends_before(merged, void) and merged.goes_on()):
        logger.error("%s is damaged at %d on every node that is there; it is left as it is", merged.name, merged.end)
        return failed
    content, name = merged.content(), journal_name(*key)
    for node_id in holders:
        node = nodes[node_id]
        if _holds(node, name, content):
            continue
        try:
            set_aside_copy(node, name, "it differed from what is good of all replicas, and was written anew")
            node.write_whole(name, content)
        except StoreError as error:
            logger.warning("%s on node %s stays damaged: %s", name, node_id, error)
            failed.add(node_id)
            continue
        reached(CrashSite.JOURNAL_HEALED)
    return failed


def set_aside_copy(node: Node, name: str, reason: str) -> None:
    """Keep a copy of a damaged file in quarantine. The file itself stays until it is
    replaced: parts of it may be good nowhere else. What cannot be read is zeros in the copy."""
    aside = f"quarantine/{name.replace('/', '_')}.{time.time_ns()}"
    node.write_whole(f"{aside}.reason", f"{name} of node {node.node_id}\n{reason}\n".encode())
    size = node.size(name)
    try:
        content = node.read(name, 0, size)
    except StoreError:
        content = b"".join(_read_or_zeros(node, name, offset, size) for offset in range(0, size, SECTOR_BYTES))
    node.write_whole(aside, content)


def _read_or_zeros(node: Node, name: str, offset: int, size: int) -> bytes:
    length = min(SECTOR_BYTES, size - offset)
    try:
        return node.read(name, offset, length)
    except StoreError:
        return bytes(length)


def _holds(node: Node, name: str, content: bytes) -> bool:
    try:
        return node.read(name, 0, len(content) + 1) == content
    except StoreError:
        return False
