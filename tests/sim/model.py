"""The reference: what a store must hold after each change, as plain dicts of bytes.

It knows nothing of chunks, segments, nodes or journals, and keeps no counters: whatever
can be derived is derived when asked. apply() takes the changes of engine.changes, in
commit order, with the bytes a change's content stands for; it raises what the store must
raise and then has changed nothing.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from engine.changes import (
    AbortUpload,
    Change,
    CompleteUpload,
    Condition,
    CreateBucket,
    CreateUpload,
    DeleteBucket,
    DeleteKey,
    Door,
    Link,
    Origin,
    PutPart,
    PutVersion,
    Rename,
    SetAttributes,
    SetBucketTags,
    SetBucketVersioning,
    SetTags,
)
from engine.errors import (
    AlreadyExists,
    BucketExists,
    BucketNotEmpty,
    DirectoryNotEmpty,
    InvalidName,
    InvalidPart,
    IsADirectory,
    NoSuchBucket,
    NoSuchKey,
    NoSuchUpload,
    NoSuchVersion,
    NotADirectory,
    PreconditionFailed,
    StoreError,
)
from engine.keymap.rows import EMPTY_MD5, parent_of, upload_id_of, version_id_of
from engine.types import NULL_VERSION_ID, Attributes, Versioning

REPLACEABLE = ("mode", "uid", "gid", "atime_ns", "mtime_ns", "ctime_ns", "link_target")


@dataclass(frozen=True)
class ModelVersion:
    key: str
    version_id: str
    lsn: int
    time_ns: int
    content: bytes = b""
    etag: str = ""
    delete_marker: bool = False
    file_id: int = 0
    owner: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    user_metadata: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    attributes: Attributes | None = None


@dataclass
class ModelUpload:
    key: str
    user_metadata: dict[str, str]
    tags: dict[str, str]
    owner: str
    parts: dict[int, tuple[int, bytes]] = field(default_factory=dict)  # number → (LSN, content)


@dataclass
class ModelBucket:
    created_lsn: int
    owner: str
    attributes: Attributes | None
    versioning: Versioning = Versioning.UNVERSIONED
    tags: dict[str, str] = field(default_factory=dict)
    keys: dict[str, list[ModelVersion]] = field(default_factory=dict)  # newest first, never empty
    uploads: dict[str, ModelUpload] = field(default_factory=dict)

    def newest(self, key: str) -> ModelVersion | None:
        return self.keys[key][0] if key in self.keys else None

    def current(self, key: str) -> ModelVersion | None:
        newest = self.newest(key)
        return None if newest is None or newest.delete_marker else newest

    def below(self, prefix: str) -> list[ModelVersion]:
        """Visible versions of keys that start with the prefix, in key order."""
        keys = sorted((key for key in self.keys if key.startswith(prefix)), key=str.encode)
        return [version for key in keys if (version := self.current(key)) is not None]

    def is_directory(self, name: str) -> bool:
        return bool(self.below(name.removesuffix("/") + "/"))


Place = tuple[str, str]  # bucket name, key


class Model:
    def __init__(self) -> None:
        self.buckets: dict[str, ModelBucket] = {}

    def copy(self) -> Model:
        copied = Model()
        for name, bucket in self.buckets.items():
            copied.buckets[name] = replace(
                bucket,
                keys={key: list(versions) for key, versions in bucket.keys.items()},
                uploads={
                    upload_id: replace(upload, parts=dict(upload.parts)) for upload_id, upload in bucket.uploads.items()
                },
            )
        return copied

    def apply(self, change: Change, content: bytes, *, lsn: int, time_ns: int, origin: Origin) -> None:
        """As record `lsn`. Raises the store's errors."""
        before = self.copy().buckets
        try:
            _Applying(self, lsn, time_ns, origin).apply(change, content)
        except StoreError:
            self.buckets = before
            raise

    def bucket(self, name: str) -> ModelBucket:
        if name not in self.buckets:
            raise NoSuchBucket(name)
        return self.buckets[name]

    def names(self, file_id: int) -> list[Place]:
        """Every name of a file, oldest bucket first."""
        return [
            (name, key)
            for name, bucket in sorted(self.buckets.items(), key=lambda item: item[1].created_lsn)
            for key in sorted(bucket.keys, key=str.encode)
            if file_id > 0 and bucket.keys[key][0].file_id == file_id
        ]

    def links(self, version: ModelVersion) -> int:
        return max(len(self.names(version.file_id)), 1)

    def versions(self) -> Iterator[tuple[str, ModelVersion]]:
        for name, bucket in self.buckets.items():
            for versions in bucket.keys.values():
                for version in versions:
                    yield name, version


class _Applying:
    """One change being applied."""

    def __init__(self, model: Model, lsn: int, time_ns: int, origin: Origin) -> None:
        self.model, self.lsn, self.time_ns, self.origin = model, lsn, time_ns, origin

    def apply(self, change: Change, content: bytes) -> None:
        act: dict[type, Callable[[Any], None]] = {
            PutVersion: lambda change: self.put(change, content),
            CompleteUpload: lambda change: self.complete(change, content),
            PutPart: lambda change: self.put_part(change, content),
            DeleteKey: self.delete,
            Rename: self.rename,
            Link: self.link,
            SetAttributes: self.set_attributes,
            SetTags: self.set_tags,
            CreateBucket: self.create_bucket,
            DeleteBucket: self.delete_bucket,
            SetBucketVersioning: self.set_versioning,
            SetBucketTags: self.set_bucket_tags,
            CreateUpload: self.create_upload,
            AbortUpload: self.abort_upload,
        }
        act[type(change)](change)

    # -- versions come and go ----------------------------------------------------------

    def publish(self, bucket: ModelBucket, version: ModelVersion, replaces_lsn: int | None = None) -> None:
        enabled = bucket.versioning is Versioning.ENABLED
        version_id = version_id_of(self.lsn) if enabled else NULL_VERSION_ID
        older = bucket.keys.get(version.key, [])
        if older and older[0].lsn == replaces_lsn:
            older = older[1:]
        if not enabled:
            older = [old for old in older if old.version_id != NULL_VERSION_ID]
        bucket.keys[version.key] = [replace(version, version_id=version_id, lsn=self.lsn), *older]

    def hide(self, bucket: ModelBucket, key: str) -> None:
        """What a delete without version id leaves."""
        if bucket.versioning is Versioning.UNVERSIONED:
            bucket.keys.pop(key, None)
        else:
            marker = ModelVersion(key, "", self.lsn, self.time_ns, delete_marker=True, owner=self.origin.requester)
            self.publish(bucket, marker)

    def leave_parent(self, bucket: ModelBucket, key: str) -> None:
        parent = parent_of(key)
        if parent and not bucket.below(parent):
            self.make_directory(bucket, parent)

    def make_directory(self, bucket: ModelBucket, key: str) -> None:
        self.publish(
            bucket,
            ModelVersion(key, "", self.lsn, self.time_ns, etag=EMPTY_MD5, file_id=self.lsn, owner=bucket.owner),
        )

    # -- keys --------------------------------------------------------------------------

    def put(self, change: PutVersion, content: bytes) -> None:
        bucket = self.model.bucket(change.bucket)
        held = bucket.current(change.key)
        places = [(change.bucket, change.key)]
        if change.file_id is not None:
            places = self.model.names(change.file_id)
            if not places:
                return
            name, key = (change.bucket, change.key) if (change.bucket, change.key) in places else places[0]
            held = self.model.bucket(name).current(key)
        elif held is not None and self.origin.door is Door.MOUNT and self.model.links(held) > 1:
            places = self.model.names(held.file_id)
        self.check(change.condition, bucket, change.key, held)
        olds = [(place, self.model.bucket(place[0]).current(place[1])) for place in places]
        links = [old is not None and self.model.links(old) > 1 for _, old in olds]
        for (place, old), linked in zip(olds, links, strict=True):
            new = self.version_of(change, content, place[1], old, linked)
            self.publish(self.model.bucket(place[0]), new, change.replaces_lsn)

    def version_of(
        self, change: PutVersion, content: bytes, key: str, old: ModelVersion | None, linked: bool
    ) -> ModelVersion:
        keeps_file = old is not None and old.file_id and (not linked or self.origin.door is Door.MOUNT)
        keeps_file = keeps_file and not change.new_file
        keeps = old if change.keep_metadata else None
        return ModelVersion(
            key=key,
            version_id="",
            lsn=self.lsn,
            time_ns=self.time_ns,
            content=content,
            etag=change.etag,
            file_id=old.file_id if old is not None and keeps_file else self.lsn,
            owner=keeps.owner if keeps else change.owner or self.origin.requester,
            headers=keeps.headers if keeps else change.headers,
            user_metadata=keeps.user_metadata if keeps else change.user_metadata,
            tags=keeps.tags if keeps else change.tags,
            attributes=change.attributes if change.attributes is not None else self.kept_attributes(key, old),
        )

    def kept_attributes(self, key: str, old: ModelVersion | None) -> Attributes | None:
        if old is None or old.attributes is None or self.origin.door is Door.MOUNT:
            return None if old is None else old.attributes
        kept = old.attributes
        mode = kept.mode
        if mode is not None and not key.endswith("/"):
            mode = None if stat.S_ISLNK(mode) else stat.S_IFREG | stat.S_IMODE(mode)
        return Attributes(mode=mode, uid=kept.uid, gid=kept.gid, xattrs=kept.xattrs)

    def delete(self, change: DeleteKey) -> None:
        bucket = self.model.bucket(change.bucket)
        if change.version_id is not None:
            return self.delete_version(change, bucket)
        current = bucket.current(change.key)
        self.check(change.condition, bucket, change.key, current)
        self.check_empty(change, bucket)
        if change.must_exist and current is None:
            raise NoSuchKey(change.key)
        if current is not None or bucket.versioning is not Versioning.UNVERSIONED:
            self.hide(bucket, change.key)
        if change.keep_parent:
            self.leave_parent(bucket, change.key)

    def delete_version(self, change: DeleteKey, bucket: ModelBucket) -> None:
        versions = bucket.keys.get(change.key, [])
        found = next((version for version in versions if version.version_id == change.version_id), None)
        self.check(change.condition, bucket, change.key, found)
        if found is None:
            if change.must_exist:
                raise NoSuchVersion(change.key)
            return
        self.check_empty(change, bucket)
        kept = [version for version in versions if version is not found]
        del bucket.keys[change.key]
        if kept:
            same_file = change.new_file and kept[0].file_id == found.file_id > 0
            if found is versions[0] and (same_file or self.model.names(kept[0].file_id)):
                kept[0] = replace(kept[0], file_id=self.lsn)  # the file lives on: another name, or open
            bucket.keys[change.key] = kept
        if change.keep_parent:
            self.leave_parent(bucket, change.key)

    def check_empty(self, change: DeleteKey, bucket: ModelBucket) -> None:
        if change.empty_directory and any(version.key != change.key for version in bucket.below(change.key)):
            raise DirectoryNotEmpty(change.key)

    def check(self, condition: Condition | None, bucket: ModelBucket, key: str, held: ModelVersion | None) -> None:
        if condition is None:
            return
        if condition.absent_path:
            path = key.removesuffix("/")
            if bucket.current(path) is not None or bucket.is_directory(path):
                raise AlreadyExists(path)
        if held is None and (condition.if_match is not None or condition.if_match_size is not None):
            raise NoSuchKey(key)
        if held is not None:
            matches: Callable[[list[str]], bool] = lambda etags: "*" in etags or held.etag in etags  # noqa: E731
            if condition.if_match is not None and not matches(condition.if_match):
                raise PreconditionFailed("If-Match")
            if condition.if_match_size is not None and condition.if_match_size != len(held.content):
                raise PreconditionFailed("x-amz-if-match-size")
            if condition.if_none_match is not None and matches(condition.if_none_match):
                raise PreconditionFailed("If-None-Match")
        if condition.expected_lsn is not None and condition.expected_lsn != (held.lsn if held is not None else 0):
            raise PreconditionFailed("expected_lsn")

    def set_tags(self, change: SetTags) -> None:
        bucket = self.model.bucket(change.bucket)
        versions = bucket.keys.get(change.key, [])
        asked = change.version_id
        found = next((version for version in versions if asked in (None, version.version_id)), None)
        if found is None or found.delete_marker:
            raise NoSuchKey(change.key) if asked is None else NoSuchVersion(change.key)
        versions[versions.index(found)] = replace(found, tags=change.tags)

    # -- the tree ----------------------------------------------------------------------

    def rename(self, change: Rename) -> None:
        source, target = self.model.bucket(change.bucket), self.model.bucket(change.target_bucket)
        key, target_key = change.key, change.target_key
        if key.endswith("/") != target_key.endswith("/"):
            raise InvalidName(target_key)
        if key.endswith("/"):
            self.rename_directory(change, source, target)
        else:
            self.rename_file(change, source, target)
        if change.keep_parent:
            self.leave_parent(source, key)

    def rename_file(self, change: Rename, source: ModelBucket, target: ModelBucket) -> None:
        version = source.current(change.key)
        if version is None:
            raise NoSuchKey(change.key)
        old = target.current(change.target_key)
        if change.no_replace and (old is not None or target.is_directory(change.target_key)):
            raise AlreadyExists(change.target_key)
        if target.is_directory(change.target_key):
            raise IsADirectory(change.target_key)
        if old is None or old.file_id != version.file_id:  # rename(2): two names of one file both stay
            self.move(version, source, target, change.target_key)

    def move(self, version: ModelVersion, source: ModelBucket, target: ModelBucket, key: str) -> None:
        self.hide(source, version.key)
        self.publish(target, replace(version, key=key))

    def rename_directory(self, change: Rename, source: ModelBucket, target: ModelBucket) -> None:
        here, there = change.key, change.target_key
        if not source.below(here):
            raise NoSuchKey(here)
        if source is target and here == there:
            return
        if source is target and there.startswith(here):
            raise InvalidName(there)
        if any(version.key != there for version in target.below(there)):
            raise (AlreadyExists if change.no_replace else DirectoryNotEmpty)(there)
        marker, file = target.current(there), target.current(there.removesuffix("/"))
        if change.no_replace and (marker is not None or file is not None):
            raise AlreadyExists(there)
        if file is not None and marker is None:
            raise NotADirectory(there)
        if marker is not None and source.current(here) is None:
            self.hide(target, there)
        for version in source.below(here):
            self.move(version, source, target, there + version.key[len(here) :])

    def link(self, change: Link) -> None:
        source, target = self.model.bucket(change.bucket), self.model.bucket(change.target_bucket)
        if change.key.endswith("/") or change.target_key.endswith("/"):
            raise IsADirectory(change.key)
        version = source.current(change.key)
        if version is None:
            raise NoSuchKey(change.key)
        if target.current(change.target_key) is not None or target.is_directory(change.target_key):
            raise AlreadyExists(change.target_key)
        self.publish(target, replace(version, key=change.target_key))

    def set_attributes(self, change: SetAttributes) -> None:
        bucket = self.model.bucket(change.bucket)
        if change.file_id is None and change.key == "":
            bucket.attributes = self.merged(bucket.attributes, change)
            return
        places = [(change.bucket, change.key)] if change.file_id is None else self.model.names(change.file_id)
        if change.file_id is None:
            version = bucket.current(change.key)
            if version is None:
                if not (change.key.endswith("/") and bucket.below(change.key)):
                    raise NoSuchKey(change.key)
                self.make_directory(bucket, change.key)
            elif self.model.links(version) > 1:
                places = self.model.names(version.file_id)
        for name, key in places:
            versions = self.model.bucket(name).keys[key]
            versions[0] = replace(versions[0], attributes=self.merged(versions[0].attributes, change))

    def merged(self, old: Attributes | None, change: SetAttributes) -> Attributes:
        old, new = old or Attributes(), change.attributes
        fields = {name: getattr(new, name) for name in REPLACEABLE}
        kept = {name: getattr(old, name) if value is None else value for name, value in fields.items()}
        xattrs = new.xattrs if change.replace_xattrs else {**old.xattrs, **new.xattrs}
        return Attributes(**kept, rdev=new.rdev or old.rdev, xattrs=xattrs)

    # -- buckets -----------------------------------------------------------------------

    def create_bucket(self, change: CreateBucket) -> None:
        if change.bucket in self.model.buckets:
            raise BucketExists(change.bucket)
        self.model.buckets[change.bucket] = ModelBucket(self.lsn, change.owner, change.attributes)

    def delete_bucket(self, change: DeleteBucket) -> None:
        bucket = self.model.bucket(change.bucket)
        if bucket.keys or bucket.uploads:
            raise BucketNotEmpty(change.bucket)
        del self.model.buckets[change.bucket]

    def set_versioning(self, change: SetBucketVersioning) -> None:
        bucket = self.model.bucket(change.bucket)
        if change.versioning is Versioning.UNVERSIONED and bucket.versioning is not Versioning.UNVERSIONED:
            raise PreconditionFailed("versioning")
        bucket.versioning = change.versioning

    def set_bucket_tags(self, change: SetBucketTags) -> None:
        self.model.bucket(change.bucket).tags = change.tags

    # -- uploads -----------------------------------------------------------------------

    def create_upload(self, change: CreateUpload) -> None:
        upload = ModelUpload(change.key, change.user_metadata, change.tags, change.owner)
        self.model.bucket(change.bucket).uploads[upload_id_of(self.lsn)] = upload

    def upload(self, change: PutPart | CompleteUpload | AbortUpload) -> ModelUpload:
        upload = self.model.bucket(change.bucket).uploads.get(change.upload_id)
        if upload is None or upload.key != change.key:
            raise NoSuchUpload(change.upload_id)
        return upload

    def put_part(self, change: PutPart, content: bytes) -> None:
        self.upload(change).parts[change.number] = (self.lsn, content)

    def complete(self, change: CompleteUpload, content: bytes) -> None:
        upload = self.upload(change)
        held = {number: lsn for number, (lsn, _) in upload.parts.items()}
        if not change.choices or any(held.get(choice.number) != choice.lsn for choice in change.choices):
            raise InvalidPart(change.upload_id)
        published = PutVersion(
            change.bucket,
            change.key,
            change.content,
            change.etag,
            user_metadata=upload.user_metadata,
            tags=upload.tags,
            owner=upload.owner,
            condition=change.condition,
            new_file=change.new_file,
        )
        self.put(published, content)
        del self.model.bucket(change.bucket).uploads[change.upload_id]

    def abort_upload(self, change: AbortUpload) -> None:
        self.upload(change)
        del self.model.bucket(change.bucket).uploads[change.upload_id]
