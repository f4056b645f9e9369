"""The versions every name had, as the journal's events tell them.

Read back from journal_events for the names a batch is about, then carried along in
memory while the batch's records are replayed; so it depends on the journal alone, and on
what was there where its events begin (rows of record_type STATE). The rules are those by
which the keymap publishes and removes versions (engine/keymap/state.py). One thread; one
History per batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Struct

from engine.tables.database import Database

Name = tuple[str, str]  # bucket, key


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


# {events} is the table the history is of: journal_events, or past_events.
_FACTS = """
    SELECT bucket, key, version_id, published_lsn, epoch_us(last_modified), is_delete_marker, size, etag,
        storage_class, is_multipart, checksum_algorithm, tags, user_metadata, file_id
    FROM (
        SELECT e.* FROM {events} e SEMI JOIN incoming USING (bucket, key)
        QUALIFY row_number() OVER (PARTITION BY bucket, key, version_id ORDER BY lsn DESC, ordinal DESC) = 1
    ) WHERE is_delete_marker IS NOT NULL
"""

# How many keys with the prefix have a newest version that is no delete marker.
_VISIBLE_BELOW = """
    SELECT count(*) FROM (
        SELECT is_delete_marker FROM (
            SELECT * FROM {events} WHERE bucket = ? AND starts_with(key, ?)
            QUALIFY row_number() OVER (PARTITION BY key, version_id ORDER BY lsn DESC, ordinal DESC) = 1
        ) WHERE is_delete_marker IS NOT NULL
        QUALIFY row_number() OVER (PARTITION BY key ORDER BY published_lsn DESC) = 1
    ) WHERE NOT is_delete_marker
"""


class History:
    """See the module."""

    def __init__(self, database: Database, events: str = "journal_events") -> None:
        self._database = database
        self._events = events
        self._versions: dict[Name, dict[str, Facts]] = {}
        self._names: dict[int, set[Name]] = {}
        self._visible: dict[Name, int] = {}  # (bucket, directory) → visible keys below
        self.refiled: dict[tuple[str, str, str], int] = {}  # versions that became a file of their own
        self.touched: set[Name] = set()  # every name whose versions, or links, changed

    # -- loading -------------------------------------------------------------------

    def load(self, names: Iterable[Name]) -> None:
        missing = sorted({name for name in names if name not in self._versions})
        for name in missing:
            self._versions[name] = {}
        select = _FACTS.format(events=self._events)
        for bucket, key, *facts in self._database.matching(select, self._events, ("bucket", "key"), missing):
            facts[9], facts[10] = facts[9] or {}, facts[10] or {}
            self._versions[(bucket, key)][facts[0]] = Facts(*facts)

    def load_files(self, file_ids: Iterable[int]) -> None:
        """Load every name of these files."""
        missing = sorted({file_id for file_id in file_ids if file_id > 0 and file_id not in self._names})
        if not missing:
            return
        for file_id in missing:
            self._names[file_id] = set()
        select = f"SELECT DISTINCT bucket, key, file_id FROM {self._events} e SEMI JOIN incoming USING (file_id)"
        found = self._database.matching(select, self._events, ("file_id",), [(file_id,) for file_id in missing])
        self.load((bucket, key) for bucket, key, _ in found)
        for bucket, key, file_id in found:
            self._names[file_id].add((bucket, key))
        wanted = set(missing)
        for name, versions in self._versions.items():  # names the batch itself gave these files
            self._note_files(name, (facts for facts in versions.values() if facts.file_id in wanted))

    def _note_files(self, name: Name, versions: Iterable[Facts]) -> None:
        for facts in versions:
            self._names.setdefault(facts.file_id, set()).add(name)

    def load_current_files(self) -> None:
        """Load every name of the files that the loaded names are."""
        self.load_files({facts.file_id for versions in self._versions.values() for facts in versions.values()})

    def watch_directory(self, bucket: str, prefix: str) -> None:
        """Count the visible keys below from now on. Call before the batch's first change."""
        if (bucket, prefix) not in self._visible:
            ((count,),) = self._database.rows(_VISIBLE_BELOW.format(events=self._events), (bucket, prefix))
            self._visible[(bucket, prefix)] = count

    # -- reading -------------------------------------------------------------------

    def versions(self, bucket: str, key: str) -> dict[str, Facts]:
        if (bucket, key) not in self._versions:
            self.load([(bucket, key)])
        return self._versions[(bucket, key)]

    def newest(self, bucket: str, key: str) -> Facts | None:
        return max(self.versions(bucket, key).values(), key=lambda facts: facts.published_lsn, default=None)

    def current(self, bucket: str, key: str) -> Facts | None:
        """What a plain GET shows: None under a delete marker."""
        newest = self.newest(bucket, key)
        return None if newest is None or newest.is_delete_marker else newest

    def visible_below(self, bucket: str, prefix: str) -> list[str]:
        """Visible keys with the prefix, in order."""
        select = f"SELECT DISTINCT bucket, key FROM {self._events} WHERE bucket = ? AND starts_with(key, ?)"
        self.load(self._database.rows(select, (bucket, prefix)))
        self.load_current_files()  # in one query, ahead of the puts that would ask one by one
        keys = [key for held, key in self._versions if held == bucket and key.startswith(prefix)]
        return sorted(key for key in keys if self.current(bucket, key) is not None)

    def is_empty(self, bucket: str, prefix: str) -> bool:
        """Whether a watched directory holds nothing visible, its own marker included."""
        return self._visible.get((bucket, prefix)) == 0

    def names_of(self, file_id: int) -> list[Name]:
        self.load_files([file_id])
        found = []
        for name in sorted(self._names.get(file_id, ())):
            current = self.current(*name)
            if current is not None and current.file_id == file_id:
                found.append(name)
        return found

    # -- changing ------------------------------------------------------------------

    def put(self, bucket: str, key: str, facts: Facts) -> None:
        """Publish, or change in place, a version. One of this very record's file needs no
        look at what the file was."""
        if facts.file_id > 0 and facts.file_id != facts.published_lsn:
            self.load_files([facts.file_id])
        before = self.current(bucket, key)
        self.versions(bucket, key)[facts.version_id] = facts
        self._note_files((bucket, key), [facts])
        self._changed((bucket, key), before)

    def remove(self, bucket: str, key: str, version_id: str, lsn: int, *, new_file: bool) -> bool:
        """Remove a version for good; whether it was there. If that makes an older one the
        newest, and its file lives on under another name, it becomes a file of its own, and
        so it does if both are the same file's and it is to be a `new_file`."""
        before, newest = self.current(bucket, key), self.newest(bucket, key)
        versions = self.versions(bucket, key)
        removed = versions.pop(version_id, None)
        if removed is None:
            return False
        promoted = self.newest(bucket, key)
        if promoted is not None and removed is newest and promoted.file_id > 0:
            others = [name for name in self.names_of(promoted.file_id) if name != (bucket, key)]
            if others or (new_file and promoted.file_id == removed.file_id):
                promoted = msgspec.structs.replace(promoted, file_id=lsn)
                versions[promoted.version_id] = promoted
                self.refiled[(bucket, key, promoted.version_id)] = lsn
                self._note_files((bucket, key), [promoted])
        self._changed((bucket, key), before)
        return True

    def _changed(self, name: Name, before: Facts | None) -> None:
        after = self.current(*name)
        self.touched.add(name)
        for facts in (before, after):
            if facts is not None and facts.file_id in self._names and len(self._names[facts.file_id]) > 1:
                self.touched.update(self.names_of(facts.file_id))  # their link counts change
        change = (after is not None) - (before is not None)
        if change and self._visible:
            bucket, key = name
            for end, character in enumerate(key, 1):
                if character == "/" and (bucket, key[:end]) in self._visible:
                    self._visible[(bucket, key[:end])] += change
