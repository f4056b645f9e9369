"""Errors of the store: nouns about the world. gateway/errors.py maps them to S3 codes,
objfs/mount/errors.py to errno. They cross the index socket by class name and arguments
(all arguments are msgpack values)."""

from __future__ import annotations


class StoreError(Exception):
    """Base. `str()` is one line: what happened, to what, what to do."""


class NoSuchBucket(StoreError):
    pass


class BucketExists(StoreError):
    pass


class BucketNotEmpty(StoreError):
    pass


class InvalidBucketName(StoreError):
    pass


class NoSuchKey(StoreError):
    pass


class NoSuchVersion(StoreError):
    pass


class NoSuchUpload(StoreError):
    pass


class InvalidPart(StoreError):
    pass


class PreconditionFailed(StoreError):
    """Argument: the name of the condition that failed, e.g. "If-None-Match"."""


class AlreadyExists(StoreError):
    pass


class DirectoryNotEmpty(StoreError):
    pass


class IsADirectory(StoreError):
    pass


class NotADirectory(StoreError):
    pass


class NoSuchUser(StoreError):
    pass


class InvalidName(StoreError):
    """A key no door accepts: empty, over 1,024 bytes of UTF-8, not UTF-8."""


class NodeFull(StoreError):
    """Too few nodes have room: 507 at S3, ENOSPC at the mount."""


class NodeUnavailable(StoreError):
    """A node is missing, empty, of another store, or its disk fails."""


class FragmentMissing(StoreError):
    pass


class FragmentCorrupt(StoreError):
    pass


class Unreadable(StoreError):
    """Fewer than k good fragments, or no good journal replica: data can't be read now."""


class WritesStopped(StoreError):
    """Fewer than m+1 healthy nodes, or the index is shutting down: 503 / EIO."""


class IndexUnavailable(StoreError):
    """The index process does not answer: 503 / EIO; the caller may retry."""


class UnknownFormat(StoreError):
    """A format version this release does not know."""


class WrongStore(StoreError):
    """A node or file belongs to another store."""


class StoreInUse(StoreError):
    """Another process has the store open."""


class NotAStore(StoreError):
    """The DATA path holds no store."""


class JournalCorrupt(StoreError):
    pass


class PiecesDamaged(StoreError):
    """A copy of an index snapshot or journal archive is not what was written."""


class CollectionStopped(StoreError):
    """What was to be deleted is not what was found dead: nothing was deleted."""


class SecretUnsealable(StoreError):
    """DATA/store.key is missing or another store's."""


class QueryFailed(StoreError):
    """A SQL statement failed; the message is the database's."""


BY_NAME: dict[str, type[StoreError]] = {
    cls.__name__: cls for cls in list(globals().values()) if isinstance(cls, type) and issubclass(cls, StoreError)
}
