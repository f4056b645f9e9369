"""What clients do in a world: operations, and how they are made up.

An Operation is one commit with all that is needed to judge it afterwards: the change, the
bytes it stands for, and what the store answered. Bytes are written into the store when
the operation runs, as a door does it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import cast

import msgspec

from engine import limits
from engine.changes import (
    AbortUpload,
    Change,
    CommitResult,
    CompleteUpload,
    Condition,
    CreateBucket,
    CreateUpload,
    DeleteBucket,
    DeleteKey,
    Door,
    Link,
    Origin,
    PartChoice,
    PutPart,
    PutVersion,
    Rename,
    SetAttributes,
    SetBucketTags,
    SetBucketVersioning,
    SetTags,
)
from engine.errors import StoreError
from engine.keymap.reader import SqliteKeymap
from engine.store import Store
from engine.types import Attributes, Content, Versioning
from sim.model import Model, ModelVersion

BUCKETS = ("plain", "versioned", "third")
KEYS = (
    "a",
    "b",
    "c",
    "dir/a",
    "dir/b",
    "dir/sub/c",
    "dir/sub/",
    "dir/",
    "other/a",
    "ä/ö",
    "a/under-a",
    "dir2/",
    "z//x",
)


@dataclass(eq=False)
class Operation:
    change: Change
    content: bytes
    origin: Origin
    durable: bool
    result: CommitResult | None = None  # acknowledged
    error: StoreError | None = None
    content_read: bool = False

    @property
    def request_id(self) -> str:
        return self.origin.request_id

    def __str__(self) -> str:
        change = self.change
        named = [str(getattr(change, name)) for name in ("bucket", "key", "target_key") if hasattr(change, name)]
        state = f"lsn {self.result.lsn}" if self.result else type(self.error).__name__ if self.error else "no answer"
        return f"{type(change).__name__} {' '.join(named)} ({len(self.content)} bytes) {self.request_id}: {state}"


Prepare = Callable[[Store], Awaitable[Operation | None]]  # writes the bytes; None: nothing to do any more


class Clients:
    """Makes up operations from dice and what the model holds now."""

    def __init__(self, dice: random.Random, size_max: int) -> None:
        self.dice = dice
        self.size_max = size_max
        self.count = 0
        self.known: list[bytes] = [b""]  # contents written before, to be written again

    def origin(self, door: Door | None = None) -> Origin:
        self.count += 1
        door = door or self.dice.choice((Door.S3, Door.MOUNT))
        return Origin(requester=f"client{self.count % 3}", request_id=f"request-{self.count}", door=door)

    def operation(self, change: Change, content: bytes = b"") -> Operation:
        by_file = isinstance(change, PutVersion) and change.file_id is not None
        origin = self.origin(Door.MOUNT if by_file else None)
        if isinstance(change, PutVersion | CompleteUpload | DeleteKey) and origin.door is Door.S3:
            # As the gateway does; without it they are records of an older release.
            change = msgspec.structs.replace(change, new_file=self.count % 5 != 0)
        return Operation(change, content, origin, durable=origin.door is Door.S3 or self.dice.random() < 0.3)

    def next(self, model: Model) -> Prepare:
        kinds: list[tuple[int, Callable[[Model], Prepare]]] = [
            (30, self.put),
            (8, self.rewrite),
            (6, self.copy),
            (10, self.delete),
            (4, self.delete_version),
            (6, self.rename),
            (3, self.rename_directory),
            (3, self.link),
            (4, self.set_attributes),
            (3, self.set_tags),
            (4, self.create_upload),
            (10, self.put_part),
            (4, self.complete),
            (1, self.abort),
            (2, self.bucket_change),
        ]
        if len(model.buckets) < 2:
            return self.create_bucket(model)
        (make,) = self.dice.choices([make for _, make in kinds], [weight for weight, _ in kinds])
        return make(model)

    # -- what there is -----------------------------------------------------------------

    def bucket(self, model: Model) -> str:
        names = sorted(model.buckets)
        return self.dice.choice(names if names and self.dice.random() < 0.98 else BUCKETS)

    def key(self) -> str:
        return self.dice.choice(KEYS)

    def place(self, model: Model) -> tuple[str, str]:
        """A bucket and a key, mostly one that exists."""
        held = sorted({(name, version.key) for name, version in model.versions()})
        if held and self.dice.random() < 0.8:
            return self.dice.choice(held)
        return self.bucket(model), self.key()

    def held(self, model: Model) -> tuple[str, ModelVersion] | None:
        held = [(name, version) for name, version in model.versions() if not version.delete_marker]
        return self.dice.choice(held) if held else None

    def bytes(self) -> bytes:
        dice = self.dice
        if dice.random() < 0.25:
            return dice.choice(self.known)
        edges = (0, 1, limits.INLINE_BYTES_MAX, limits.CHUNK_BYTES_MIN, limits.CHUNK_BYTES_MAX)
        edge = dice.choice((*edges, limits.STRIPE_BYTES_MAX, limits.CHUNK_BYTES_MAX * 3, self.size_max))
        size = dice.choice((max(edge - 1, 0), edge, edge + 1, dice.randint(0, edge), dice.randint(0, edge // 8)))
        match dice.randrange(5):
            case 0:
                made = (b"all work and no play " * (size // 21 + 1))[:size]
            case 1:
                made = bytes(size)
            case 2:  # mostly what was there before
                base = dice.choice(self.known)
                cut = dice.randint(0, len(base))
                made = base[:cut] + dice.randbytes(dice.randint(0, 300)) + base[cut:]
            case _:
                made = dice.randbytes(size)
        self.known.append(made)
        if len(self.known) > 40:
            self.known.pop(dice.randrange(len(self.known)))
        return made

    def condition(self, held: ModelVersion | None) -> Condition | None:
        dice = self.dice
        etag = held.etag if held is not None and dice.random() < 0.8 else "other"
        match dice.randrange(10):
            case 0:
                return Condition(if_none_match=["*"])
            case 1:
                return Condition(if_match=[etag])
            case 2:
                return Condition(absent_path=True)
            case 3:
                return Condition(expected_lsn=held.lsn if held is not None and not held.delete_marker else 0)
            case 4:
                return Condition(if_none_match=[etag])
        return None

    def metadata(self) -> dict[str, str]:
        return {"n": str(self.count)} if self.dice.random() < 0.5 else {}

    def attributes(self) -> Attributes:
        dice = self.dice
        return Attributes(
            mode=dice.choice((None, 0o100644, 0o100755, 0o120777)),
            uid=dice.choice((None, 0, 1000)),
            mtime_ns=dice.choice((None, dice.getrandbits(50))),
            xattrs=dice.choice(({}, {"user.a": b"1"}, {"user.b": dice.randbytes(8)})),
        )

    # -- versions ----------------------------------------------------------------------

    def put(self, model: Model) -> Prepare:
        bucket, key = self.place(model) if self.dice.random() < 0.6 else (self.bucket(model), self.key())
        content = self.bytes()
        held = model.buckets[bucket].current(key) if bucket in model.buckets else None
        condition = self.condition(held) if self.dice.random() < 0.3 else None
        attributes = self.attributes() if self.dice.random() < 0.2 else None
        metadata = self.metadata()
        step = self.dice.choice((len(content) or 1, 1 + len(content) // 3, 700))

        async def prepare(store: Store) -> Operation:
            written = await write(store, content, step)
            etag = hashlib.md5(content).hexdigest()
            change = PutVersion(
                bucket, key, written, etag, user_metadata=metadata, attributes=attributes, condition=condition
            )
            return self.operation(change, content)

        return prepare

    def rewrite(self, model: Model) -> Prepare:
        """A file that is open at the mount is written in places and published."""
        held = self.held(model)
        if held is None:
            return self.put(model)
        bucket, version = held
        size = self.dice.choice((len(version.content), self.dice.randint(0, self.size_max)))
        dirty: list[tuple[int, bytes]] = []
        position = 0
        for _ in range(self.dice.randrange(4)):
            position = self.dice.randint(position, size)
            piece = self.dice.randbytes(min(self.dice.choice((1, 100, 1500, 9000)), size - position))
            if piece:
                dirty.append((position, piece))
                position += len(piece)
        expected = bytearray(version.content[:size].ljust(size, b"\0"))
        for offset, piece in dirty:
            expected[offset : offset + len(piece)] = piece
        content = bytes(expected)
        by_file = self.dice.random() < 0.5 and version.file_id > 0

        async def prepare(store: Store) -> Operation | None:
            base = find(store, bucket, version)
            if base is None:
                return None
            written = await store.rewrite(base.manifest, size, dirty)
            change = PutVersion(
                bucket,
                version.key,
                written,
                f"{hashlib.md5(content).hexdigest()}-0",
                file_id=version.file_id if by_file else None,
                replaces_lsn=version.lsn if by_file else None,
                keep_metadata=by_file,
            )
            return self.operation(change, content)

        return prepare

    def copy(self, model: Model) -> Prepare:
        held = self.held(model)
        if held is None:
            return self.put(model)
        bucket, version = held
        target, key = self.bucket(model), self.key()

        async def prepare(store: Store) -> Operation | None:
            found = find(store, bucket, version)
            if found is None:
                return None
            return self.operation(PutVersion(target, key, Content(found.manifest), found.etag), version.content)

        return prepare

    def delete(self, model: Model) -> Prepare:
        bucket, key = self.place(model)
        held = model.buckets[bucket].current(key) if bucket in model.buckets else None
        mount = self.dice.random() < 0.5
        change = DeleteKey(
            bucket,
            key,
            condition=self.condition(held) if self.dice.random() < 0.2 else None,
            must_exist=mount,
            keep_parent=mount,
            empty_directory=mount and key.endswith("/"),
        )
        return self.plain(change)

    def delete_version(self, model: Model) -> Prepare:
        versions = list(model.versions())
        if not versions:
            return self.delete(model)
        bucket, version = self.dice.choice(versions)
        return self.plain(DeleteKey(bucket, version.key, version.version_id, must_exist=self.dice.random() < 0.5))

    def rename(self, model: Model) -> Prepare:
        bucket, key = self.place(model)
        target = self.key()
        if key.endswith("/") != target.endswith("/") and self.dice.random() < 0.9:
            target = target.removesuffix("/") + ("/" if key.endswith("/") else "")
        no_replace = self.dice.random() < 0.3
        return self.plain(Rename(bucket, key, self.bucket(model), target, no_replace=no_replace))

    def rename_directory(self, model: Model) -> Prepare:
        bucket, key = self.place(model)
        source = key.partition("/")[0] + "/"
        target = self.dice.choice(("moved/", "dir/", "dir2/", "other/", "dir/sub/"))
        return self.plain(Rename(bucket, source, self.bucket(model), target, no_replace=self.dice.random() < 0.3))

    def link(self, model: Model) -> Prepare:
        bucket, key = self.place(model)
        return self.plain(Link(bucket, key, self.bucket(model), self.key()))

    def set_attributes(self, model: Model) -> Prepare:
        bucket, key = self.place(model)
        key = "" if self.dice.random() < 0.1 else key
        replaces = self.dice.random() < 0.3
        return self.plain(SetAttributes(bucket, key, self.attributes(), replace_xattrs=replaces))

    def set_tags(self, model: Model) -> Prepare:
        bucket, key = self.place(model)
        version_id = None
        if self.dice.random() < 0.4 and bucket in model.buckets:
            versions = model.buckets[bucket].keys.get(key)
            version_id = self.dice.choice(versions).version_id if versions else None
        return self.plain(SetTags(bucket, key, {"tag": str(self.count)}, version_id))

    # -- uploads -----------------------------------------------------------------------

    def create_upload(self, model: Model) -> Prepare:
        return self.plain(CreateUpload(self.bucket(model), self.key(), user_metadata=self.metadata(), owner="uploader"))

    def upload(self, model: Model) -> tuple[str, str, str] | None:
        held = [
            (name, upload.key, upload_id)
            for name, bucket in model.buckets.items()
            for upload_id, upload in bucket.uploads.items()
        ]
        return self.dice.choice(held) if held else None

    def put_part(self, model: Model) -> Prepare:
        upload = self.upload(model)
        if upload is None:
            return self.create_upload(model)
        number, content = self.dice.randint(1, 4), self.bytes()

        async def prepare(store: Store) -> Operation:
            written = await write(store, content, 4096)
            return self.operation(PutPart(*upload, number, written, hashlib.md5(content).digest()), content)

        return prepare

    def complete(self, model: Model) -> Prepare:
        upload = self.upload(model)
        if upload is None:
            return self.create_upload(model)
        bucket, key, upload_id = upload
        parts = model.buckets[bucket].uploads[upload_id].parts
        numbers = sorted(number for number in parts if self.dice.random() < 0.8)
        held = {lsn: content for lsn, content in parts.values()}

        async def prepare(store: Store) -> Operation | None:
            found = [part for part in store.keymap.parts(upload_id) if part.number in numbers]
            if any(part.lsn not in held for part in found):
                return None  # replaced meanwhile by another client of this batch
            written = await store.concatenate([part.manifest for part in found])
            content = b"".join(held[part.lsn] for part in found)
            choices = [PartChoice(part.number, part.lsn) for part in found]
            etag = f"{hashlib.md5(content).hexdigest()}-{len(found)}"
            return self.operation(CompleteUpload(bucket, key, upload_id, choices, written, etag, []), content)

        return prepare

    def abort(self, model: Model) -> Prepare:
        upload = self.upload(model)
        return self.create_upload(model) if upload is None else self.plain(AbortUpload(*upload))

    # -- buckets -----------------------------------------------------------------------

    def create_bucket(self, model: Model) -> Prepare:
        missing = [name for name in BUCKETS if name not in model.buckets]
        return self.plain(CreateBucket(self.dice.choice(missing or BUCKETS), owner="owner"))

    def bucket_change(self, model: Model) -> Prepare:
        bucket = self.bucket(model)
        match self.dice.randrange(4):
            case 0:
                return self.create_bucket(model)
            case 1:
                return self.plain(DeleteBucket(bucket))
            case 2:
                return self.plain(SetBucketTags(bucket, {"bucket": str(self.count)}))
        wanted = Versioning.ENABLED if bucket == "versioned" or self.dice.random() < 0.5 else Versioning.SUSPENDED
        return self.plain(SetBucketVersioning(bucket, wanted))

    def plain(self, change: Change) -> Prepare:
        async def prepare(_: Store) -> Operation:
            return self.operation(change)

        return prepare


async def write(store: Store, content: bytes, step: int) -> Content:
    writer = store.open_writer()
    for start in range(0, len(content), step):
        await writer.write(content[start : start + step])
    return await writer.finish()


def find(store: Store, bucket: str, version: ModelVersion):  # type: ignore[no-untyped-def]
    """The version in the store, if it is still there."""
    keymap = cast(SqliteKeymap, store.keymap)
    try:
        found = keymap.version(bucket, version.key, version.version_id)
    except StoreError:
        return None
    same = found is not None and not found.delete_marker and found.etag == version.etag and found.lsn == version.lsn
    return found if same else None
