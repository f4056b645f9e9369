"""Journal records → rows of journal_events: what happened to which object, one by one.

A record holds the change that was asked for; what it did follows from the state before
it. That state is kept here as AWS's journal would show it: the versions each name had,
read back from journal_events itself for the names a batch touches, and from then on
carried along in memory. So the rows depend on the journal alone, and replaying it gives
the same rows. Permanent deletes carry no facts (S3 Metadata journal tables schema).
One thread; one EventDeriver per batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from engine.changes import (
    CompleteUpload,
    CreateBucket,
    CreateUpload,
    DeleteBucket,
    DeleteKey,
    Link,
    PutVersion,
    Record,
    Rename,
    SetAttributes,
    SetBucketVersioning,
    SetTags,
    Touched,
)
from engine.keymap.rows import EMPTY_MD5, upload_id_of, version_id_of
from engine.tables.database import Database
from engine.types import NULL_VERSION_ID, Versioning

Name = tuple[str, str]  # bucket, key
CREATE, UPDATE, DELETE = "CREATE", "UPDATE_METADATA", "DELETE"


class Facts(Struct, frozen=True):
    """What the journal tells of one version or delete marker."""

    version_id: str
    published_lsn: int
    last_modified_us: int
    is_delete_marker: bool = False
    size: int = 0
    etag: str | None = None
    storage_class: str = "STANDARD"
    is_multipart: bool = False
    checksum_algorithm: str | None = None
    tags: dict[str, str] = {}
    user_metadata: dict[str, str] = {}
    file_id: int = 0


_FACTS_OF = """
    SELECT bucket, key, version_id, published_lsn, epoch_us(last_modified), is_delete_marker, size, etag,
        storage_class, is_multipart, checksum_algorithm, tags, user_metadata, file_id
    FROM (
        SELECT e.* FROM journal_events e {which}
        QUALIFY row_number() OVER (PARTITION BY bucket, key, version_id ORDER BY lsn DESC, ordinal DESC) = 1
    ) WHERE is_delete_marker IS NOT NULL
"""


class History:
    """The versions every name had, loaded as they are asked for."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._versions: dict[Name, dict[str, Facts]] = {}
        self._names: dict[int, set[Name]] = {}

    def load(self, names: Iterable[Name]) -> None:
        missing = sorted({name for name in names if name not in self._versions})
        for name in missing:
            self._versions[name] = {}
        select = _FACTS_OF.format(which="SEMI JOIN incoming USING (bucket, key)")
        self._take(self._database.matching(select, "journal_events", ("bucket", "key"), missing))

    def load_prefix(self, bucket: str, prefix: str) -> None:
        found = self._database.rows(
            "SELECT DISTINCT bucket, key FROM journal_events WHERE bucket = ? AND starts_with(key, ?)", (bucket, prefix)
        )
        self.load(found)

    def load_files(self, file_ids: Iterable[int]) -> None:
        missing = [(file_id,) for file_id in sorted(set(file_ids) - self._names.keys() - {0})]
        for (file_id,) in missing:
            self._names[file_id] = set()
        select = "SELECT DISTINCT bucket, key FROM journal_events e SEMI JOIN incoming USING (file_id)"
        self.load(self._database.matching(select, "journal_events", ("file_id",), missing))
        wanted = {file_id for (file_id,) in missing}
        for name in list(self._versions):
            current = self.current(*name)
            if current is not None and current.file_id in wanted:
                self._names[current.file_id].add(name)

    def _take(self, rows: list[tuple[Any, ...]]) -> None:
        for bucket, key, *facts in rows:
            facts[9], facts[10] = facts[9] or {}, facts[10] or {}
            facts[11] = facts[11] or 0
            self._versions[(bucket, key)][facts[0]] = Facts(*facts)

    def versions(self, bucket: str, key: str) -> dict[str, Facts]:
        self.load([(bucket, key)])
        return self._versions[(bucket, key)]

    def current(self, bucket: str, key: str) -> Facts | None:
        held = self.versions(bucket, key)
        return max(held.values(), key=lambda facts: facts.published_lsn, default=None)

    def below(self, bucket: str, prefix: str) -> list[str]:
        self.load_prefix(bucket, prefix)
        return sorted(key for held, key in self._versions if held == bucket and key.startswith(prefix))

    def names_of(self, file_id: int) -> list[Name]:
        self.load_files([file_id])
        held = (name for name in self._names.get(file_id, ()))
        return sorted(name for name in held if (now := self.current(*name)) and now.file_id == file_id)

    def put(self, bucket: str, key: str, facts: Facts) -> None:
        self.versions(bucket, key)[facts.version_id] = facts
        if facts.file_id and not facts.is_delete_marker:
            self.load_files([facts.file_id])
            self._names[facts.file_id].add((bucket, key))

    def remove(self, bucket: str, key: str, version_id: str) -> Facts | None:
        return self.versions(bucket, key).pop(version_id, None)


class EventDeriver:
    """Turns a batch of records, in order, into journal_events rows."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.history = History(database)
        self.rows: list[tuple[Any, ...]] = []
        self.sequence: dict[tuple[str, str, str], int] = {}  # (bucket, key, version id) → last LSN that changed it
        self._versioning = dict(database.rows("SELECT bucket, versioning FROM journal_buckets"))
        self._versioning_changed = False
        self._uploads: dict[str, tuple[Any, ...]] = {}
        self._uploads_new: set[str] = set()
        self._uploads_gone: set[str] = set()
        self._record: Record
        self._ordinal = 0

    def derive(self, records: list[Record], touched: list[Touched], markers: dict[int, list[Name]]) -> None:
        """`markers`: directory markers that removing a last child left, by record LSN."""
        self.history.load((name.bucket, name.key) for name in touched if name.key)
        self.history.load_files(name.file_id for name in touched)
        self._load_uploads(records)
        for record in records:
            self._record, self._ordinal = record, 0
            self._apply(record.change)
            for bucket, key in markers.get(record.lsn, ()):
                if not self.history.versions(bucket, key):
                    self._create(bucket, key, self._facts(bucket, file_id=record.lsn))

    def write(self) -> None:
        """Insert the rows, and what the next batch must know."""
        self.database.insert("journal_events", self.rows)
        if self._versioning_changed:
            self.database.replace("journal_buckets", list(self._versioning.items()))
        kept = self._uploads_new - self._uploads_gone
        self.database.delete("journal_uploads", ("upload_id",), [(name,) for name in sorted(self._uploads_gone)])
        self.database.insert("journal_uploads", [self._uploads[name] for name in sorted(kept)])

    def _load_uploads(self, records: list[Record]) -> None:
        named = {(r.change.upload_id,) for r in records if isinstance(r.change, CompleteUpload)}
        select = """SELECT upload_id, storage_class, initiated_ns, user_metadata, tags
            FROM journal_uploads u SEMI JOIN incoming USING (upload_id)"""
        for row in self.database.matching(select, "journal_uploads", ("upload_id",), sorted(named)):
            self._uploads[row[0]] = row

    # -- one record ----------------------------------------------------------------

    def _apply(self, change: object) -> None:
        match change:
            case PutVersion():
                self._put_version(change)
            case CompleteUpload():
                self._complete_upload(change)
            case DeleteKey():
                self._delete_key(change)
            case Rename():
                self._rename(change)
            case Link():
                source = self.history.current(change.bucket, change.key)
                if source is not None:
                    self._create(change.target_bucket, change.target_key, self._moved(change.target_bucket, source))
            case SetAttributes():
                self._set_attributes(change)
            case SetTags():
                self._set_tags(change)
            case CreateUpload():
                self._create_upload(change)
            case CreateBucket():
                self._set_versioning(change.bucket, "")
            case SetBucketVersioning():
                self._set_versioning(change.bucket, str(change.versioning))
            case DeleteBucket():
                self._versioning.pop(change.bucket, None)
                self._versioning_changed = True
            case _:
                pass  # users, segments, nodes, parts: nothing an object's journal tells

    def _put_version(self, change: PutVersion) -> None:
        names = [(change.bucket, change.key)]
        if change.file_id is not None:
            names = self.history.names_of(change.file_id)
        for bucket, key in names:
            before = self.history.current(bucket, key)
            facts = self._facts(
                bucket,
                size=change.content.size,
                etag=change.etag,
                storage_class=change.storage_class,
                is_multipart=bool(change.parts),
                checksum_algorithm=change.checksum.algorithm if change.checksum else None,
                tags=change.tags,
                user_metadata=change.user_metadata,
                file_id=self._file_id(before),
            )
            if change.keep_metadata and before is not None and not before.is_delete_marker:
                facts = msgspec.structs.replace(
                    facts,
                    tags=before.tags,
                    user_metadata=before.user_metadata,
                    storage_class=before.storage_class,
                )
            self._remove_replaced(bucket, key, change.replaces_lsn, facts.version_id)
            self._create(bucket, key, facts)

    def _remove_replaced(self, bucket: str, key: str, replaces_lsn: int | None, version_id: str) -> None:
        if replaces_lsn is None:
            return
        for old in list(self.history.versions(bucket, key).values()):
            if old.published_lsn == replaces_lsn and old.version_id != version_id:
                self._permanent_delete(bucket, key, old.version_id)

    def _create_upload(self, change: CreateUpload) -> None:
        upload_id = upload_id_of(self._record.lsn)
        initiated_ns = self._record.time_ns
        self._uploads[upload_id] = (upload_id, change.storage_class, initiated_ns, change.user_metadata, change.tags)
        self._uploads_new.add(upload_id)

    def _complete_upload(self, change: CompleteUpload) -> None:
        upload = self._uploads.get(change.upload_id, (change.upload_id, "STANDARD", 0, {}, {}))
        self._uploads_gone.add(change.upload_id)
        facts = self._facts(
            change.bucket,
            size=change.content.size,
            etag=change.etag,
            storage_class=upload[1],
            is_multipart=True,
            checksum_algorithm=change.checksum.algorithm if change.checksum else None,
            user_metadata=upload[3] or {},
            tags=upload[4] or {},
            file_id=self._file_id(self.history.current(change.bucket, change.key)),
        )
        self._create(change.bucket, change.key, facts)

    def _delete_key(self, change: DeleteKey) -> None:
        bucket, key = change.bucket, change.key
        if change.version_id is not None:
            self._permanent_delete(bucket, key, change.version_id)
        elif self._versioning.get(bucket):
            self._mark_deleted(bucket, key)
        else:
            self._permanent_delete(bucket, key, NULL_VERSION_ID)

    def _rename(self, change: Rename) -> None:
        source, target = (change.bucket, change.key), (change.target_bucket, change.target_key)
        if source == target:
            return
        if change.exchange:
            self._exchange(source, target)
        elif change.key.endswith("/"):
            keys = self.history.below(*source)
            self.history.below(*target)
            for key in keys:
                self._move((source[0], key), (target[0], target[1] + key[len(source[1]) :]))
        else:
            self._move(source, target)

    def _exchange(self, source: Name, target: Name) -> None:
        swaps: list[tuple[Name, Name, Facts]] = []
        for here, there in ((source, target), (target, source)):
            keys = self.history.below(*here) if here[1].endswith("/") else [here[1]]
            for key in keys:
                facts = self.history.current(here[0], key)
                if facts is not None and not facts.is_delete_marker:
                    swaps.append(((here[0], key), (there[0], there[1] + key[len(here[1]) :]), facts))
        for name, _, _ in swaps:
            self._remove_source(*name)
        for _, name, facts in swaps:
            self._create(*name, self._moved(name[0], facts))

    def _move(self, source: Name, target: Name) -> None:
        facts = self.history.current(*source)
        if facts is None or facts.is_delete_marker:
            return
        self._create(*target, self._moved(target[0], facts))
        self._remove_source(*source)

    def _remove_source(self, bucket: str, key: str) -> None:
        if self._versioning.get(bucket):
            self._mark_deleted(bucket, key)
        else:
            self._permanent_delete(bucket, key, NULL_VERSION_ID)

    def _set_attributes(self, change: SetAttributes) -> None:
        names = [(change.bucket, change.key)]
        if change.file_id is not None:
            names = self.history.names_of(change.file_id)
        for bucket, key in names:
            facts = self.history.current(bucket, key)
            if facts is not None and not facts.is_delete_marker:
                self._event(UPDATE, bucket, key, facts)
            elif key.endswith("/"):
                self._create(bucket, key, self._facts(bucket, etag=EMPTY_MD5, file_id=self._record.lsn))

    def _set_tags(self, change: SetTags) -> None:
        held = self.history.versions(change.bucket, change.key)
        facts = self.history.current(change.bucket, change.key)
        if change.version_id is not None:
            facts = held.get(change.version_id)
        if facts is not None:
            facts = msgspec.structs.replace(facts, tags=change.tags)
            held[facts.version_id] = facts
            self._event(UPDATE, change.bucket, change.key, facts)

    def _set_versioning(self, bucket: str, versioning: str) -> None:
        self._versioning[bucket] = versioning
        self._versioning_changed = True

    # -- what events share -----------------------------------------------------------

    def _facts(self, bucket: str, **facts: Any) -> Facts:
        """A version this record publishes in the bucket."""
        return Facts(
            version_id=self._version_id(bucket),
            published_lsn=self._record.lsn,
            last_modified_us=self._record.time_ns // 1000,
            **facts,
        )

    def _moved(self, bucket: str, facts: Facts) -> Facts:
        return msgspec.structs.replace(facts, version_id=self._version_id(bucket), published_lsn=self._record.lsn)

    def _version_id(self, bucket: str) -> str:
        enabled = self._versioning.get(bucket) == Versioning.ENABLED
        return version_id_of(self._record.lsn) if enabled else NULL_VERSION_ID

    def _file_id(self, before: Facts | None) -> int:
        return before.file_id if before and not before.is_delete_marker else self._record.lsn

    def _create(self, bucket: str, key: str, facts: Facts) -> None:
        self.history.put(bucket, key, facts)
        self._event(CREATE, bucket, key, facts)

    def _mark_deleted(self, bucket: str, key: str) -> None:
        marker = self._facts(bucket, is_delete_marker=True)
        self.history.put(bucket, key, marker)
        self._event(DELETE, bucket, key, marker)

    def _permanent_delete(self, bucket: str, key: str, version_id: str) -> None:
        if self.history.remove(bucket, key, version_id) is None:
            return
        self._append(bucket, key, DELETE, version_id, (None,) * 9, (None, None, None), None, None)

    def _event(self, record_type: str, bucket: str, key: str, facts: Facts) -> None:
        self.sequence[(bucket, key, facts.version_id)] = self._record.lsn
        told = record_type != DELETE
        columns = (
            facts.is_delete_marker,
            facts.size,
            facts.last_modified_us,
            facts.etag,
            facts.storage_class,
            facts.is_multipart,
            facts.checksum_algorithm,
            list(facts.tags.items()) if told else None,
            list(facts.user_metadata.items()) if told else None,
        )
        origin = self._record.origin
        who = (origin.requester or None, origin.source_ip, origin.request_id or None)
        self._append(bucket, key, record_type, facts.version_id, columns, who, facts.file_id, facts.published_lsn)

    def _append(
        self,
        bucket: str,
        key: str,
        record_type: str,
        version_id: str,
        columns: tuple[Any, ...],
        who: tuple[Any, ...],
        file_id: int | None,
        published_lsn: int | None,
    ) -> None:
        head = (self._record.lsn, self._ordinal, bucket, key, record_type, self._record.time_ns // 1000, version_id)
        self.rows.append((*head, *columns, *who, file_id, published_lsn))
        self._ordinal += 1
