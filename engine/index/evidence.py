"""What DATA/index says about a journal that ends before it should.

A keymap ahead of the journal is what power loss leaves: it had applied records that were
not yet synced, and is built again. But the keymap also knows the newest epoch, whose file
was synced before its first record, and the shared page knows what was durable. When the
nodes hold less than that, records were lost that somebody was told of, and opening the
store would let the loss pass unseen. Blocking; changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engine.errors import JournalCorrupt
from engine.index.page import left_durable_lsn
from engine.interfaces import Node
from engine.journal.recovery import JournalScan

_WAY_OUT = (
    "nothing was changed; bring back the nodes (or the copies of them) that hold the newer journal, or move "
    "DATA/index away to go on with what these nodes hold"
)


def refuse_lost_records(keymap: Path, scan: JournalScan, applied_epoch: int, applied_lsn: int) -> None:
    """The keymap is ahead of the journal. Raises JournalCorrupt if more is missing than
    power loss takes."""
    if applied_epoch > scan.last_epoch:
        raise JournalCorrupt(
            f"{keymap} has applied journal epoch {applied_epoch}, the newest on the nodes is {scan.last_epoch}: "
            f"these are older nodes; {_WAY_OUT}"
        )
    durable, end = left_durable_lsn(keymap.with_name("page")), scan.end_lsn()
    # A page that claims more than the keymap is damaged or not of this keymap.
    if end < durable <= applied_lsn:
        raise JournalCorrupt(
            f"the journal on the nodes ends at record {end}, but all up to {durable} was durable once; {_WAY_OUT}"
        )


def refuse_lost_journal(nodes: Mapping[str, Node], scan: JournalScan) -> None:
    """Raises JournalCorrupt if nodes without any journal hold segments."""
    if scan.files or scan.epochs:
        return
    for node in nodes.values():
        found = next(iter(node.list("segments/")), None)
        if found is not None:
            raise JournalCorrupt(
                f"node {node.path} holds {found}, but no node holds any of the journal: nothing was changed; put back "
                "the nodes' journal directories, or make a new store in empty directories"
            )
