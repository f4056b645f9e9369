"""Index snapshots: the keymap at one LSN, on m+1 nodes (FORMAT.md, "Index snapshot").

A snapshot stands for every journal record up to its LSN: once one stands, older journal
files may go. It is written from a consistent copy of the keymap whose structure was
checked, and only of what is durable. Blocking throughout; nothing here commits.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from engine import pieces
from engine.crash_sites import CrashSite, reached
from engine.errors import FragmentMissing, PiecesDamaged, StoreError, UnknownFormat, WrongStore
from engine.interfaces import Node
from engine.keymap.page_sums import mark_damaged
from engine.keymap.schema import FORMAT, KeymapDamaged, get_state, open_reader
from engine.keymap.soundness import check_now

MAGIC = b"objfsSNP"
PREFIX = "index/"
KEPT = 2  # newest snapshots that are kept: the one before the last may help where the journal reaches back
RESTORED_NAME = "keymap.restored"  # in DATA/index, until it is whole

logger = logging.getLogger("objfs.index")


class SnapshotHeader(Struct, frozen=True):
    """The body of the piece file's header, as JSON."""

    store_id: str
    lsn: int
    epoch: int
    keymap_format: int
    keymap_bytes: int
    time_ns: int


def snapshot_name(lsn: int) -> str:
    return f"{PREFIX}{lsn:016x}.snapshot"


def parse_snapshot_name(name: str) -> int | None:
    stem = name.removeprefix(PREFIX).removesuffix(".snapshot")
    if not name.endswith(".snapshot") or len(stem) != 16:
        return None
    try:
        return int(stem, 16)
    except ValueError:
        return None


def list_snapshots(nodes: Mapping[str, Node]) -> dict[int, list[str]]:
    """LSN → ids of the nodes with a copy, damaged or not, the newest first."""
    found: dict[int, list[str]] = {}
    for node_id, node in list(nodes.items()):
        try:
            for name in node.list(PREFIX):
                lsn = parse_snapshot_name(name)
                if lsn is not None:
                    found.setdefault(lsn, []).append(node_id)
        except StoreError as error:
            logger.info("the snapshots of node %s cannot be listed: %s", node_id, error)
    return dict(sorted(found.items(), reverse=True))


# -- writing -----------------------------------------------------------------------


class KeymapCopy(Struct, frozen=True):
    """A consistent copy of the keymap on DATA's disk."""

    path: Path
    lsn: int
    epoch: int


def copy_keymap(keymap: Path, scratch: Path) -> KeymapCopy:
    """Copy the keymap at one LSN to `scratch` and check the copy. Raises KeymapDamaged, and
    tells the next open."""
    scratch.unlink(missing_ok=True)
    check_now(keymap)
    source = open_reader(keymap)
    target = sqlite3.connect(scratch, isolation_level=None)
    try:
        target.execute("PRAGMA synchronous = OFF")  # a crash makes the copy anew
        source.backup(target)
        target.execute("PRAGMA journal_mode = DELETE")
        problems = [problem for (problem,) in target.execute("PRAGMA integrity_check(3)")]
        if problems != ["ok"]:
            raise sqlite3.DatabaseError("; ".join(problems))
        epoch, lsn = get_state(target)
    except sqlite3.OperationalError as error:
        raise StoreError(f"{keymap} cannot be copied to {scratch} ({error}); make room on that disk") from error
    except sqlite3.DatabaseError as error:
        mark_damaged(keymap, str(error))
        raise KeymapDamaged(f"{keymap} is damaged ({error}); restart to have it rebuilt") from error
    finally:
        target.close()
        source.close()
    reached(CrashSite.SNAPSHOT_COPIED)
    return KeymapCopy(scratch, lsn, epoch)


def write_snapshot(
    copy: KeymapCopy,
    nodes: Mapping[str, Node],
    choose: pieces.Choose,
    copies: int,
    store_id: str,
    time_ns: int,
    *,
    pay: pieces.Pay = pieces.free,
) -> list[str]:
    """Put the copy on `copies` nodes; everything up to its LSN must be durable. Returns
    them. Raises WritesStopped."""
    header = SnapshotHeader(store_id, copy.lsn, copy.epoch, FORMAT, copy.path.stat().st_size, time_ns)
    body = msgspec.json.encode(header)

    def make() -> Iterator[bytes]:
        return pieces.encode(MAGIC, body, _read_file(copy.path))

    return pieces.write_copies(nodes, choose, copies, snapshot_name(copy.lsn), MAGIC, make, pay=pay)


def _read_file(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while some := file.read(pieces.PIECE_BYTES_MAX):
            yield some


# -- reading -----------------------------------------------------------------------


def read_header(reader: pieces.PieceReader, name: str, store_id: str) -> SnapshotHeader:
    """Raises PiecesDamaged, WrongStore."""
    try:
        header = msgspec.json.decode(reader.body, type=SnapshotHeader)
    except msgspec.DecodeError as error:
        raise PiecesDamaged(f"{name}: its header is not a snapshot's ({error})") from error
    if header.store_id != store_id:
        raise WrongStore(f"{name} is an index snapshot of store {header.store_id}")
    if snapshot_name(header.lsn) != name:
        raise PiecesDamaged(f"{name} is the snapshot at LSN {header.lsn} under a wrong name")
    return header


def restore_newest(
    nodes: Mapping[str, Node], store_id: str, keymap: Path, *, told: Callable[[str, int, int], None]
) -> SnapshotHeader | None:
    """Put the newest good snapshot's keymap at `keymap` (where nothing may be); None when
    there is no good one. `told` hears (what, bytes done, bytes in all). Raises UnknownFormat
    rather than pass over a snapshot of a newer release."""
    for lsn, holders in list_snapshots(nodes).items():
        name = snapshot_name(lsn)
        for node_id in holders:
            try:
                header = _restore(nodes[node_id], name, store_id, keymap, told)
            except (PiecesDamaged, WrongStore, KeymapDamaged) as error:
                logger.warning("%s", error)
            except UnknownFormat:
                raise
            except StoreError as error:
                logger.warning("%s cannot be read from node %s: %s", name, node_id, error)
            else:
                logger.warning("the index is taken from the snapshot at LSN %d on node %s", lsn, node_id)
                return header
    return None


def _restore(
    node: Node, name: str, store_id: str, keymap: Path, told: Callable[[str, int, int], None]
) -> SnapshotHeader:
    reader = pieces.open_copy(node, name, MAGIC)
    header = read_header(reader, name, store_id)
    if header.keymap_format != FORMAT:
        raise UnknownFormat(
            f"{name} has keymap format {header.keymap_format}, this release reads {FORMAT}; "
            f"open the store once with the release that wrote it, and run objfs checkpoint there"
        )
    scratch = keymap.with_name(RESTORED_NAME)
    done = 0
    with scratch.open("wb") as file:
        for piece in reader.pieces():
            file.write(piece)
            done += len(piece)
            told("reading the snapshot", done, header.keymap_bytes)
        file.flush()
        os.fsync(file.fileno())
    if done != header.keymap_bytes:
        raise PiecesDamaged(f"{name} of {node.node_id} holds {done} bytes of keymap, not {header.keymap_bytes}")
    db = sqlite3.connect(scratch, isolation_level=None)
    try:
        state = get_state(db)
    except sqlite3.DatabaseError as error:
        raise KeymapDamaged(f"{name} of {node.node_id} holds no keymap ({error})") from error
    finally:
        db.close()
    if state != (header.epoch, header.lsn):
        raise PiecesDamaged(f"{name} of {node.node_id} holds the keymap at LSN {state[1]}, not {header.lsn}")
    scratch.replace(keymap)
    reached(CrashSite.KEYMAP_RESTORED)
    return header


# -- upkeep ------------------------------------------------------------------------


def thin_snapshots(nodes: Mapping[str, Node], healthy: set[str], copies: int) -> int:
    """1 if the newest snapshot has fewer than `copies` copies on healthy nodes, else 0."""
    for holders in list_snapshots(nodes).values():
        return int(len(healthy.intersection(holders)) < copies)
    return 0


def heal_snapshots(nodes: Mapping[str, Node], healthy: list[str], copies: int, store_id: str) -> None:
    """Bring the newest snapshot back to `copies` whole copies."""
    lsn = next(iter(list_snapshots(nodes)), None)
    if lsn is None:
        return
    name = snapshot_name(lsn)
    found = pieces.heal_copies(nodes, healthy, copies, name, MAGIC, lambda reader: read_header(reader, name, store_id))
    if found < copies:
        logger.warning("the index snapshot at LSN %d has %d copies on healthy nodes, not %d", lsn, found, copies)


def prune_snapshots(nodes: Mapping[str, Node], newest_lsn: int) -> None:
    """Delete all older ones but the newest KEPT - 1 of them; once `newest_lsn` stands on m+1
    nodes. What claims to be newer than that is left to scrub."""
    older = {lsn: holders for lsn, holders in list_snapshots(nodes).items() if lsn < newest_lsn}
    for lsn, holders in list(older.items())[KEPT - 1 :]:
        for node_id in holders:
            delete_quietly(nodes, node_id, snapshot_name(lsn))


def delete_quietly(nodes: Mapping[str, Node], node_id: str, name: str) -> None:
    """Delete what is superfluous; where that fails the next checkpoint tries again."""
    try:
        nodes[node_id].delete(name)
        reached(CrashSite.SNAPSHOT_PARTLY_PRUNED)
    except (FragmentMissing, KeyError):
        return
    except StoreError as error:
        logger.info("%s stays on node %s for now: %s", name, node_id, error)
