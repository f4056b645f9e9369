"""Opening the journal: what is whole anywhere, in order; and bringing files back to m+1
replicas. Blocking.

The highest epoch wins; records of an earlier epoch from a later one's first LSN on are
overruled. In the last epoch the journal ends at the first record that is whole nowhere;
in earlier ones such a record is damage, and opening is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from engine.crash_sites import CrashSite, reached
from engine.errors import JournalCorrupt, NodeUnavailable, StoreError
from engine.interfaces import Node
from engine.journal.reading import FileKey, MergedFile, list_files, read_epochs
from engine.journal.records import RawRecord, journal_name


class JournalScan:
    """What the nodes hold of the journal, found at open."""

    def __init__(self, nodes: Mapping[str, Node], store_id: str) -> None:
        self.epochs = read_epochs(nodes, store_id)
        self.files = list_files(nodes)
        self._nodes = nodes
        self._store_id = store_id
        self.last_epoch = max(self.epochs, default=0)

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
        expected = None
        for key in self._order(from_lsn):
            epoch, _ = key
            limit = self._overruled_from(epoch)
            for offset, record in MergedFile(self._nodes, key, self._store_id).records():
                if limit is not None and record.lsn >= limit:
                    break
                if expected is not None and record.lsn != expected:
                    raise JournalCorrupt(f"journal records {expected} to {record.lsn - 1} are whole on no node")
                if expected is None and record.lsn > from_lsn:
                    raise JournalCorrupt(f"journal records {from_lsn} to {record.lsn - 1} are whole on no node")
                expected = record.lsn + 1
                if record.lsn >= from_lsn:
                    yield key, offset, record
        if expected is not None and self.last_epoch and expected < self.epochs[self.last_epoch].first_lsn:
            last = self.epochs[self.last_epoch]
            raise JournalCorrupt(f"journal records {expected} to {last.first_lsn - 1} are whole on no node")

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


def heal_file(nodes: Mapping[str, Node], key: FileKey, store_id: str, copies: int, candidates: list[str]) -> int:
    """Bring one journal file to `copies` whole, synced replicas on `candidates` (in order
    of preference; holders first). Returns how many there are then."""
    merged = MergedFile(nodes, key, store_id)
    for _ in merged.records():
        pass
    if not merged.found:
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
            node.sync(name)
        except StoreError:
            continue  # this node can't hold it now; the count tells
        whole += 1
        reached(CrashSite.JOURNAL_HEALED)
    return whole


def _holds(node: Node, name: str, content: bytes) -> bool:
    try:
        return node.read(name, 0, len(content) + 1) == content
    except StoreError:
        return False
