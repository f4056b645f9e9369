"""Journal records → rows of journal_events: what happened to which object, one by one.

A record holds the change that was asked for; what it did follows from the state before
it. That state is History's: what the events so far say each name had. So the rows depend on the journal
alone, and replaying it gives the same rows. What changes the store rather than an object is told
by care_rows(). Permanent deletes carry no facts (S3 Metadata journal tables schema).
One thread; one EventDeriver per batch.
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.changes import (
    CompleteUpload,
    CreateBucket,
    CreateUpload,
    DeleteBucket,
    DeleteKey,
    Door,
    Link,
    PutVersion,
    Record,
    Rename,
    SetAttributes,
    SetBucketVersioning,
    SetTags,
    Touched,
)
from engine.keymap.rows import EMPTY_MD5, parent_of, upload_id_of, version_id_of
from engine.tables.database import Database
from engine.tables.history import Facts, History, Name
from engine.types import NULL_VERSION_ID, Versioning

CREATE, UPDATE, DELETE = "CREATE", "UPDATE_METADATA", "DELETE"


class EventDeriver:
    """Turns a batch of records, in order, into rows of journal_events, or of past_events.

    `partial`: versions may have been there that the history does not know, because what
    came before the oldest record is not kept. Deletes of those are told all the same."""

    def __init__(self, database: Database, timeline: str = "journal", *, partial: bool = False) -> None:
        self.database = database
        self._events, self._buckets_table = f"{timeline}_events", f"{timeline}_buckets"
        self._uploads_table = f"{timeline}_uploads"
        self._partial = partial
        self.history = History(database, self._events)
        self.rows: list[tuple[Any, ...]] = []
        self._versioning = dict(database.rows(f"SELECT bucket, versioning FROM {self._buckets_table}"))
        self._versioning_changed = False
        self._uploads: dict[str, tuple[Any, ...]] = {}
        self._uploads_new: set[str] = set()
        self._uploads_gone: set[str] = set()
        self._record: Record
        self._ordinal = 0

    def derive(self, records: list[Record], touched: list[Touched]) -> None:
        """`touched` is what the index said beside the records; it says nothing of records
        read back from the journal."""
        self._load(records, touched)
        for record in records:
            self._record, self._ordinal = record, 0
            start = len(self.rows)
            self._apply(record.change)
            self.rows[start:] = _without_undone_deletes(self.rows[start:])

    @property
    def touched(self) -> set[Name]:
        """Every name whose rows may have changed."""
        return self.history.touched

    def _load(self, records: list[Record], touched: list[Touched]) -> None:
        """What the records are about, in few queries."""
        self.history.load((name.bucket, name.key) for name in touched if name.key)
        self.history.load(name for record in records for name in names_in(record.change))
        file_ids = [file_id for r in records if (file_id := getattr(r.change, "file_id", None)) is not None]
        self.history.load_files([*file_ids, *(name.file_id for name in touched)])
        self.history.load_current_files()
        self._load_uploads(records)
        known = {(name.bucket, name.key) for name in touched}
        for record in records:
            change = record.change
            if isinstance(change, (DeleteKey, Rename)) and change.keep_parent:
                directory = (change.bucket, parent_of(change.key))
                if directory[1] and (not known or directory in known):
                    self.history.watch_directory(*directory)

    def write(self) -> None:
        """Insert the rows, and what the next batch must know."""
        self.database.insert(self._events, self.rows)
        for (bucket, key, version_id), file_id in self.history.refiled.items():
            self.database.execute(
                f"UPDATE {self._events} SET file_id = ? WHERE bucket = ? AND key = ? AND version_id = ?",
                (file_id, bucket, key, version_id),
            )
        if self._versioning_changed:
            self.database.replace(self._buckets_table, list(self._versioning.items()))
        kept = self._uploads_new - self._uploads_gone
        self.database.delete(self._uploads_table, ("upload_id",), [(name,) for name in sorted(self._uploads_gone)])
        self.database.insert(self._uploads_table, [self._uploads[name] for name in sorted(kept)])

    def _load_uploads(self, records: list[Record]) -> None:
        named = {(r.change.upload_id,) for r in records if isinstance(r.change, CompleteUpload)}
        select = f"""SELECT upload_id, storage_class, initiated_ns, user_metadata, tags
            FROM {self._uploads_table} u SEMI JOIN incoming USING (upload_id)"""
        for row in self.database.matching(select, self._uploads_table, ("upload_id",), sorted(named)):
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
        for bucket, key in self._names_put(change):
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
                file_id=self._file_id(change, before),
            )
            if change.keep_metadata and before is not None:
                facts = msgspec.structs.replace(
                    facts,
                    tags=before.tags,
                    user_metadata=before.user_metadata,
                    storage_class=before.storage_class,
                )
            newest = self.history.newest(bucket, key)
            replaces = newest is not None and newest.published_lsn == change.replaces_lsn
            self._create(bucket, key, facts)
            if newest is not None and replaces and newest.version_id != facts.version_id:
                self._permanent_delete(bucket, key, newest.version_id)

    def _names_put(self, change: PutVersion) -> list[Name]:
        """Every name of the open file, or of the linked file the mount writes to by name."""
        if change.file_id is not None:
            return self.history.names_of(change.file_id)
        held = self.history.current(change.bucket, change.key)
        if held is not None and self._record.origin.door is Door.MOUNT:
            names = self.history.names_of(held.file_id)
            if len(names) > 1:
                return names
        return [(change.bucket, change.key)]

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
            file_id=self._file_id(change, self.history.current(change.bucket, change.key)),
        )
        self._create(change.bucket, change.key, facts)

    def _delete_key(self, change: DeleteKey) -> None:
        bucket, key = change.bucket, change.key
        if change.version_id is not None:
            self._permanent_delete(bucket, key, change.version_id, new_file=change.new_file)
        else:
            self._hide(bucket, key)
        if change.keep_parent:
            self._leave_parent(bucket, key)

    def _rename(self, change: Rename) -> None:
        source, target = (change.bucket, change.key), (change.target_bucket, change.target_key)
        if source == target:
            return
        if change.exchange:
            self._exchange(source, target)
            return
        if change.key.endswith("/"):
            keys = self.history.visible_below(*source)
            if self.history.current(*target) is not None and source[1] not in keys:
                self._hide(*target)  # else the moved marker takes its place
            for key in keys:
                self._move((source[0], key), (target[0], target[1] + key[len(source[1]) :]))
        else:
            here, there = self.history.current(*source), self.history.current(*target)
            if here is None and self._unknown(*source):
                self._hide(*source)
            if here is not None and (there is None or there.file_id != here.file_id):
                self._move(source, target)
        if change.keep_parent:
            self._leave_parent(*source)

    def _exchange(self, source: Name, target: Name) -> None:
        moves: list[tuple[Name, Name, Facts]] = []
        for here, there in ((source, target), (target, source)):
            for key in self.history.visible_below(*here) if here[1].endswith("/") else [here[1]]:
                facts = self.history.current(here[0], key)
                if facts is not None:
                    moves.append(((here[0], key), (there[0], there[1] + key[len(here[1]) :]), facts))
        taken = {name for _, name, _ in moves}
        for name, _, _ in moves:
            if name not in taken:
                self._hide(*name)
        for _, name, facts in moves:
            self._create(*name, self._moved(name[0], facts))

    def _move(self, source: Name, target: Name) -> None:
        facts = self.history.current(*source)
        if facts is not None:
            self._hide(*source)
            self._create(*target, self._moved(target[0], facts))

    def _leave_parent(self, bucket: str, key: str) -> None:
        """A marker for the directory that would vanish with its last child."""
        if self.history.is_empty(bucket, parent_of(key)):
            self._create_directory(bucket, parent_of(key))

    def _create_directory(self, bucket: str, key: str) -> None:
        self._create(bucket, key, self._facts(bucket, etag=EMPTY_MD5, file_id=self._record.lsn))

    def _hide(self, bucket: str, key: str) -> None:
        """What a delete without a version id does."""
        if self._versioning.get(bucket):
            self._mark_deleted(bucket, key)
        else:
            self._permanent_delete(bucket, key, NULL_VERSION_ID)

    def _set_attributes(self, change: SetAttributes) -> None:
        if change.file_id is not None:
            names = self.history.names_of(change.file_id)
        elif not change.key:
            return  # of the bucket itself
        else:
            here = self.history.current(change.bucket, change.key)
            linked = self.history.names_of(here.file_id) if here is not None else []
            names = sorted({(change.bucket, change.key), *linked})
        for bucket, key in names:
            facts = self.history.current(bucket, key)
            if facts is not None:
                self._event(UPDATE, bucket, key, facts)
            else:
                self._create_directory(bucket, key)

    def _set_tags(self, change: SetTags) -> None:
        held = self.history.versions(change.bucket, change.key)
        facts = self.history.current(change.bucket, change.key)
        if change.version_id is not None:
            facts = held.get(change.version_id)
        if facts is not None:
            facts = msgspec.structs.replace(facts, tags=change.tags)
            self.history.put(change.bucket, change.key, facts)
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

    def _file_id(self, change: PutVersion | CompleteUpload, before: Facts | None) -> int:
        """Writes at the mount keep the file id; a new file gets its own, and so does one of
        several linked names that S3 writes to."""
        if before is None or not before.file_id or change.new_file:
            return self._record.lsn
        if self._record.origin.door is Door.MOUNT or len(self.history.names_of(before.file_id)) <= 1:
            return before.file_id
        return self._record.lsn

    def _create(self, bucket: str, key: str, facts: Facts) -> None:
        self.history.put(bucket, key, facts)
        self._event(CREATE, bucket, key, facts)

    def _mark_deleted(self, bucket: str, key: str) -> None:
        marker = self._facts(bucket, is_delete_marker=True)
        self.history.put(bucket, key, marker)
        self._event(DELETE, bucket, key, marker)

    def _permanent_delete(self, bucket: str, key: str, version_id: str, *, new_file: bool = False) -> None:
        removed = self.history.remove(bucket, key, version_id, self._record.lsn, new_file=new_file)
        if not removed and not self._unknown(bucket, key):
            return
        self._append(bucket, key, DELETE, version_id, (None,) * 9, (None, None, None), None, None)

    def _unknown(self, bucket: str, key: str) -> bool:
        """Whether something may have been there that was published before the oldest record."""
        return self._partial and not self.history.versions(bucket, key)

    def _event(self, record_type: str, bucket: str, key: str, facts: Facts) -> None:
        self.history.touched.add((bucket, key))
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


def names_in(change: object) -> list[Name]:
    """The names a change spells out."""
    match change:
        case Rename() | Link():
            return [(change.bucket, change.key), (change.target_bucket, change.target_key)]
        case PutVersion() | CompleteUpload() | DeleteKey() | SetAttributes() | SetTags() if change.key:
            return [(change.bucket, change.key)]
        case _:
            return []


def _without_undone_deletes(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """One record's events without the permanent deletes of what it then made again."""
    made: set[tuple[Any, ...]] = set()
    kept: list[tuple[Any, ...]] = []
    for row in reversed(rows):
        identity = (row[2], row[3], row[6])  # bucket, key, version id
        if row[4] != DELETE or row[7] is not None:
            made.add(identity)
        elif identity in made:
            continue
        kept.append(row)
    return kept[::-1]
