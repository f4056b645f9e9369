"""Keeping what the index rests on whole: journal files, the newest snapshot, archives.

Blocking, over the nodes as they are now; the caller knows which are healthy and from
where on the journal counts.
"""

from __future__ import annotations

from collections.abc import Mapping

from engine.index import snapshots
from engine.interfaces import Node
from engine.journal import archive
from engine.journal.dropping import delete_dropped
from engine.journal.reading import FileKey, list_files
from engine.journal.recovery import heal_epochs, heal_file, set_aside_void, superfluous_files, void_from


def thin(nodes: Mapping[str, Node], healthy: set[str], copies: int, first_lsn: int, end_lsn: int) -> int:
    """Journal records in files of which fewer than `copies` healthy nodes have a whole
    replica, plus one for each snapshot that is needed and archive with too few copies."""
    files = list_files(nodes)
    for key in superfluous_files(files, first_lsn):
        del files[key]
    firsts = [*sorted(first for _, first in files), end_lsn + 1]
    found = snapshots.thin_snapshots(nodes, healthy, copies) + len(_thin_archives(nodes, healthy, copies))
    for (_, first), sizes in files.items():
        whole = max(sizes.values())
        if sum(1 for node_id, size in sizes.items() if node_id in healthy and size == whole) < copies:
            found += max(firsts[firsts.index(first) + 1] - first, 0)
    return found


def _thin_archives(nodes: Mapping[str, Node], healthy: set[str], copies: int) -> list[archive.Range]:
    found = archive.list_archives(nodes)
    return [covered for covered, holders in found.items() if len(healthy.intersection(holders)) < copies]


def repair(
    nodes: Mapping[str, Node],
    healthy: set[str],
    copies: int,
    store_id: str,
    *,
    first_lsn: int,
    open_for_writing: bool,
) -> None:
    """Bring everything back to `copies` whole replicas on healthy nodes, and delete what
    old disks brought back of the journal before `first_lsn`. The newest journal file is its
    writer's business while it is `open_for_writing`."""
    set_aside_void(nodes, store_id)
    delete_dropped(nodes, store_id, first_lsn)
    heal_epochs({node_id: nodes[node_id] for node_id in healthy.intersection(nodes)}, store_id)
    files = list_files(nodes)
    for key in superfluous_files(files, first_lsn):
        del files[key]
    current: FileKey | None = max(files, default=None) if open_for_writing else None
    for key, sizes in sorted(files.items()):
        whole = max(sizes.values())
        holders = [node_id for node_id, size in sizes.items() if node_id in healthy and size == whole]
        if len(holders) < copies and key != current:
            candidates = holders + sorted(healthy.difference(holders))
            heal_file(nodes, key, store_id, copies, candidates, void_from=void_from(files, key))
    if snapshots.thin_snapshots(nodes, healthy, copies):
        snapshots.heal_snapshots(nodes, sorted(healthy), copies, store_id)
    for covered in _thin_archives(nodes, healthy, copies):
        archive.heal_archive(nodes, sorted(healthy), copies, covered, store_id)
