"""Deleting journal files that are needed no more. Blocking.

Only what the index said is superfluous (DropJournal, durable) is ever passed in. A node
that is away keeps its copies; they are recognised and deleted when it is back.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from engine.crash_sites import CrashSite, reached
from engine.errors import FragmentMissing, StoreError
from engine.interfaces import Node
from engine.journal.reading import epochs_on, list_files
from engine.journal.records import epoch_name, journal_name
from engine.journal.recovery import superfluous_epochs, superfluous_files

logger = logging.getLogger("objfs.journal")


def delete_dropped(nodes: Mapping[str, Node], store_id: str, before_lsn: int) -> int:
    """Delete journal and epoch files wholly before `before_lsn` on every node that is
    there. Returns the bytes this freed, over all nodes."""
    if before_lsn <= 1:
        return 0  # the journal was never dropped
    freed = 0
    files = list_files(nodes)
    for key in superfluous_files(files, before_lsn):
        for node_id, size in files[key].items():
            freed += size * _delete(nodes, node_id, journal_name(*key))
    # After the files of their epochs: a file without its epoch is read in its place all the same.
    epochs = {number: epoch for node in list(nodes.values()) for number, epoch in epochs_on(node, store_id).items()}
    for number in superfluous_epochs(epochs, before_lsn):
        for node_id in list(nodes):
            _delete(nodes, node_id, epoch_name(number))
    return freed


def _delete(nodes: Mapping[str, Node], node_id: str, name: str) -> bool:
    try:
        nodes[node_id].delete(name)
    except (FragmentMissing, KeyError):
        return False
    except StoreError as error:
        logger.info("%s stays on node %s for now: %s", name, node_id, error)
        return False
    reached(CrashSite.JOURNAL_PARTLY_DELETED)
    return True
