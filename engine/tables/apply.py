"""Journal records → rows, one batch in one transaction.

What is, the state tables, is read from the keymap for the names a batch touched: the
rows are the keymap's own answer, so they cannot disagree with it. What happened, the
journal, is derived from the records (events.py). A batch that ends at the LSN the
reader's snapshot shows leaves the tables exactly as of that LSN; one that ends before
it (catching up) leaves touched names ahead, which later batches settle.

Blocking; one thread at a time. Knows nothing of sockets or of where records come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from engine.changes import (
    AbortUpload,
    CompleteUpload,
    Condemn,
    CreateBucket,
    CreateUpload,
    DeleteBucket,
    DeleteSegments,
    DeleteUser,
    DropJournal,
    FragmentsDamaged,
    FragmentsRepaired,
    MoveChunks,
    OpenSegment,
    PutPart,
    PutUser,
    PutVersion,
    Record,
    RemoveNode,
    SealSegment,
    SegmentsScrubbed,
    SetAttributes,
    SetBucketTags,
    SetBucketVersioning,
    SetNode,
    Spare,
    Touched,
)
from engine.crash_sites import CrashSite, reached
from engine.interfaces import KeymapReader
from engine.tables.care_events import care_rows
from engine.tables.database import Database
from engine.tables.events import EventDeriver
from engine.tables.history import Name
from engine.tables.rows import (
    LoadTree,
    Row,
    bucket_row,
    chunk_row,
    fragment_rows,
    node_row,
    part_row,
    reference_rows,
    segment_id_text,
    segment_row,
    upload_row,
    user_row,
    version_row,
)
from engine.types import Manifest, NewChunk, Version

GROUP_NAMES_MAX = 5000  # names whose rows are replaced together
REFERENCES_AT_ONCE = 50_000  # rows inserted together

_SMALL_TABLES = (
    CreateBucket,
    DeleteBucket,
    SetBucketTags,
    SetBucketVersioning,
    SetAttributes,
    PutUser,
    DeleteUser,
    SetNode,
    RemoveNode,
)


def fingerprint(record: Record) -> str:
    """What tells this record from another journal's at the same LSN. Not the epoch: recovery
    may write the same record again in a new one."""
    return f"{record.lsn}:{record.time_ns}:{record.origin.request_id}:{type(record.change).__name__}"


def apply(
    database: Database,
    reader: KeymapReader,
    records: list[Record],
    touched: list[Touched],
    load: LoadTree,
    *,
    state_lsn: int,
) -> None:
    """Bring the tables from the LSN before records[0] to that of records[-1]. `reader` shows
    the keymap at `state_lsn`, which is not before the last record."""
    last = records[-1]
    with database.transaction():
        deriver = EventDeriver(database)
        deriver.derive(records, touched)
        deriver.write()
        database.insert("store_journal", list(care_rows(records)))
        names = deriver.touched | {(name.bucket, name.key) for name in touched if name.key}
        state = StateTables(database, reader, load)
        state.small_tables(records)
        state.segments(records)
        state.dropped(records)
        state.chunks(records)
        state.uploads(records)
        for group in _grouped(sorted(names)):
            state.names(group)
        database.advance(last.lsn, state_lsn, fingerprint(last))
        reached(CrashSite.TABLES_WRITTEN)
    reached(CrashSite.TABLES_COMMITTED)


def _grouped(names: Sequence[Name]) -> Iterator[list[Name]]:
    for start in range(0, len(names), GROUP_NAMES_MAX):
        yield list(names[start : start + GROUP_NAMES_MAX])


def new_chunks(change: object) -> list[NewChunk]:
    match change:
        case PutVersion() | PutPart() | CompleteUpload():
            return change.content.new_chunks
        case MoveChunks():
            return change.moves
        case _:
            return []


def segments_in(change: object) -> list[int]:
    """The segments a change is about."""
    match change:
        case OpenSegment() | SealSegment() | FragmentsRepaired() | FragmentsDamaged():
            return [change.segment_id]
        case SegmentsScrubbed() | DeleteSegments():
            return change.segment_ids
        case Condemn() | Spare():
            return [container for container in change.containers if container > 0]
        case _:
            return []


class StateTables:
    """Rows that say what is, replaced by what the keymap says now."""

    def __init__(self, database: Database, reader: KeymapReader, load: LoadTree) -> None:
        self.database = database
        self.reader = reader
        self.load = load
        self._buckets = {bucket.name for bucket in reader.buckets()}

    def small_tables(self, records: Sequence[Record]) -> None:
        if any(isinstance(record.change, _SMALL_TABLES) for record in records):
            self.database.replace("buckets", [bucket_row(bucket) for bucket in self.reader.buckets()])
            self.database.replace("users", [user_row(user) for user in self.reader.users()])
            self.database.replace("nodes", [node_row(node) for node in self.reader.nodes()])

    def segments(self, records: Sequence[Record]) -> None:
        touched = sorted({segment_id for record in records for segment_id in segments_in(record.change)})
        found = [segment for segment_id in touched if (segment := self.reader.segment(segment_id)) is not None]
        keys = [(segment_id_text(segment_id),) for segment_id in touched]
        for table in ("segment_states", "segment_fragments"):
            self.database.delete(table, ("segment_id",), keys)
        self.database.insert("segment_states", [segment_row(segment) for segment in found])
        self.database.insert("segment_fragments", [row for segment in found for row in fragment_rows(segment)])

    def dropped(self, records: Sequence[Record]) -> None:
        """Chunks that went with their container. No record lists them."""
        changes = [record.change for record in records]
        gone = [
            segment_id for change in changes if isinstance(change, DeleteSegments) for segment_id in change.segment_ids
        ]
        self.database.delete("chunks", ("segment_id",), [(segment_id_text(segment_id),) for segment_id in gone])
        if any(isinstance(change, DropJournal) for change in changes):
            self._riding()

    def _riding(self) -> None:
        """Look at every chunk that rides in the journal: a new epoch moves those of the old one's
        tail to other files, without a record, so which file a chunk rode in is not known."""
        riding = "SELECT chunk_id, scope, length FROM chunks WHERE in_journal"
        rows: list[tuple[str, int, int]] = self.database.rows(riding)
        self.database.execute("DELETE FROM chunks WHERE in_journal")
        by_scope: dict[int, dict[bytes, int]] = {}
        for chunk_id, scope, length in rows:
            by_scope.setdefault(scope, {})[bytes.fromhex(chunk_id)] = length
        self._insert_chunks(by_scope)

    def chunks(self, records: Sequence[Record]) -> None:
        by_scope: dict[int, dict[bytes, int]] = {}
        for record in records:
            for chunk in new_chunks(record.change):
                by_scope.setdefault(chunk.scope, {})[chunk.chunk_id] = chunk.length
        for scope, lengths in by_scope.items():
            self.database.delete("chunks", ("chunk_id", "scope"), [(name.hex(), scope) for name in lengths])
        self._insert_chunks(by_scope)

    def _insert_chunks(self, by_scope: dict[int, dict[bytes, int]]) -> None:
        for scope, lengths in sorted(by_scope.items()):
            located = self.reader.locations(lengths, scope)
            rows = [chunk_row(name, scope, lengths[name], location) for name, location in located.items()]
            self.database.insert("chunks", rows)

    # -- uploads -------------------------------------------------------------------

    def uploads(self, records: Sequence[Record]) -> None:
        names: set[Name] = set()
        uploads: dict[str, Name] = {}
        numbers: set[tuple[str, int]] = set()
        deleted_buckets: set[str] = set()
        for record in records:
            change = record.change
            match change:
                case CreateUpload():
                    names.add((change.bucket, change.key))
                case CompleteUpload() | AbortUpload():
                    names.add((change.bucket, change.key))
                    uploads[change.upload_id] = (change.bucket, change.key)
                case PutPart():
                    numbers.add((change.upload_id, change.number))
                    uploads[change.upload_id] = (change.bucket, change.key)
                case DeleteBucket():
                    deleted_buckets.add(change.bucket)
        names |= self._names_of_uploads(deleted_buckets)
        if not names and not uploads:
            return
        present = self._replace_uploads(names, uploads)
        gone = sorted(uploads.keys() - present)
        self._delete_parts([(upload_id,) for upload_id in gone], ("upload_id",))
        self._replace_parts([key for key in sorted(numbers) if key[0] in present], uploads)

    def _names_of_uploads(self, buckets: set[str]) -> set[Name]:
        keys = [(bucket,) for bucket in sorted(buckets)]
        return set(
            self.database.matching(
                "SELECT DISTINCT bucket, key FROM uploads u SEMI JOIN incoming USING (bucket)",
                "uploads",
                ("bucket",),
                keys,
            )
        )

    def _replace_uploads(self, names: set[Name], named: dict[str, Name]) -> set[str]:
        """Replace the upload rows of `names`; which of these and the `named` uploads are there."""
        select = "SELECT upload_id FROM uploads u SEMI JOIN incoming USING (bucket, key)"
        before = {row[0] for row in self.database.matching(select, "uploads", ("bucket", "key"), sorted(names))}
        present: set[str] = set()
        rows = []
        for name in sorted(names | set(named.values())):
            for upload in self._uploads_of(*name):
                present.add(upload.upload_id)
                if name in names:
                    rows.append(upload_row(upload))
        self.database.delete("uploads", ("bucket", "key"), sorted(names))
        self.database.insert("uploads", rows)
        self._delete_parts([(upload_id,) for upload_id in sorted(before - present)], ("upload_id",))
        return present

    def _uploads_of(self, bucket: str, key: str) -> Iterator[Any]:
        """Every open upload of exactly this key: the first in the order of its prefix."""
        after = ""
        while bucket in self._buckets:
            page = self.reader.uploads(
                bucket, prefix=key, after_key=key if after else "", after_upload_id=after, limit=100
            )
            mine = [upload for upload in page if upload.key == key]
            yield from mine
            if len(mine) < 100:
                return
            after = mine[-1].upload_id

    def _replace_parts(self, numbers: Sequence[tuple[str, int]], uploads: dict[str, Name]) -> None:
        self._delete_parts(numbers, ("upload_id", "part_number"))
        parts: list[Row] = []
        references: list[Row] = []
        for upload_id, number in numbers:
            for part in self.reader.parts(upload_id, after=number - 1, limit=1):
                if part.number == number:
                    parts.append(part_row(part))
                    owner = (*uploads[upload_id], None, upload_id, number)
                    references += reference_rows(owner, part.manifest, self.load)
        self.database.insert("parts", parts)
        self.database.insert("chunk_references", references)

    def _delete_parts(self, keys: Sequence[tuple[Any, ...]], columns: tuple[str, ...]) -> None:
        self.database.delete("parts", columns, keys)
        self.database.delete("chunk_references", columns, keys)

    # -- versions ------------------------------------------------------------------

    def names(self, names: Sequence[Name]) -> None:
        """Replace the version rows of these names by what the keymap has."""
        found: list[Version] = []
        for bucket, key in names:
            found += self._versions_of(bucket, key)
        self._replace_versions(names, found)

    def _versions_of(self, bucket: str, key: str) -> Iterator[Version]:
        if bucket not in self._buckets:
            return
        key_marker = version_id_marker = ""
        while True:
            page = self.reader.list_versions(
                bucket, prefix=key, key_marker=key_marker, version_id_marker=version_id_marker, limit=8
            )
            for version in page.versions:
                if version.key != key:
                    return
                yield version
            if page.next_key is None or page.next_key != key:
                return
            key_marker, version_id_marker = page.next_key, page.next_version_id or ""

    def _replace_versions(self, names: Sequence[Name], found: Sequence[Version]) -> None:
        held = self._held(names)
        kept = {
            (version.bucket, version.key, version.version_id)
            for version in found
            if held.get((version.bucket, version.key, version.version_id)) == version.lsn
        }
        self.database.delete("versions", ("bucket", "key"), names)
        self.database.delete("chunk_references", ("bucket", "key", "version_id"), sorted(held.keys() - kept))
        self.database.insert("versions", [version_row(version) for version in found])
        references: list[Row] = []
        for version in found:
            if (version.bucket, version.key, version.version_id) not in kept and version.size:
                manifest = self._manifest(version)
                owner = (version.bucket, version.key, version.version_id, None, None)
                for row in reference_rows(owner, manifest, self.load):
                    references.append(row)
                    if len(references) == REFERENCES_AT_ONCE:
                        self.database.insert("chunk_references", references)
                        references = []
        self.database.insert("chunk_references", references)

    def _held(self, names: Sequence[Name]) -> dict[tuple[str, str, str], int]:
        rows = self.database.matching(
            "SELECT bucket, key, version_id, lsn FROM versions v SEMI JOIN incoming USING (bucket, key)",
            "versions",
            ("bucket", "key"),
            names,
        )
        return {(bucket, key, version_id): lsn for bucket, key, version_id, lsn in rows}

    def _manifest(self, version: Version) -> Manifest:
        if version.manifest.entries:
            return version.manifest
        whole = self.reader.version(version.bucket, version.key, version.version_id)
        return whole.manifest if whole is not None else Manifest()


def mend(database: Database, reader: KeymapReader, load: LoadTree) -> None:
    """Look again at versions and parts whose manifest's tree could not be read."""
    select = """SELECT DISTINCT bucket, key, version_id, upload_id, part_number FROM chunk_references
        WHERE is_tree AND length > 0"""
    for owner in database.rows(select):
        bucket, key, version_id, upload_id, number = owner
        columns: tuple[str, ...] = ("bucket", "key", "version_id")
        if version_id is not None:
            version = reader.version(bucket, key, version_id)
            manifest = None if version is None else version.manifest
        else:
            columns = ("upload_id", "part_number")
            parts = reader.parts(upload_id, after=number - 1, limit=1)
            manifest = parts[0].manifest if parts and parts[0].number == number else None
        if manifest is None:
            continue  # gone meanwhile: the feed tells
        with database.transaction():
            named = owner[:3] if version_id is not None else owner[3:]
            database.delete("chunk_references", columns, [named])
            rows = reference_rows(owner, manifest, load)
            while some := list(islice(rows, REFERENCES_AT_ONCE)):
                database.insert("chunk_references", some)
