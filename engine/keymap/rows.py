"""Rows of the keymap ↔ the store's nouns, and the names derived from LSNs and keys.

Pure functions: no connection is used here, and nothing knows of changes.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import Struct

from engine import limits
from engine.errors import InvalidName
from engine.types import NULL_VERSION_ID, Attributes, Checksum, Location, Manifest, ObjectPart, Version

EMPTY_MD5 = "d41d8cd98f00b204e9800998ecf8427e"  # of no bytes: the ETag of a directory marker

# The columns of a version in the order version_of() takes them; `manifest` comes last.
BRIEF = "key, lsn, marker, version_id, last_modified_ns, size, etag, file_id, link_count, storage_class, owner, rest"
WHOLE = f"{BRIEF}, manifest"

Row = tuple[Any, ...]


class Rest(Struct, frozen=True, array_like=True, omit_defaults=True):
    """What of a version no query selects by."""

    headers: dict[str, str] = {}
    user_metadata: dict[str, str] = {}
    tags: dict[str, str] = {}
    attributes: Attributes | None = None
    checksum: Checksum | None = None
    parts: list[ObjectPart] = []
    changed_lsn: int = 0


_NO_REST = Rest()
_NO_MANIFEST = Manifest()
encode = msgspec.msgpack.Encoder().encode
_decode_rest = msgspec.msgpack.Decoder(Rest).decode
decode_manifest = msgspec.msgpack.Decoder(Manifest).decode
decode_location = msgspec.msgpack.Decoder(Location).decode


def version_of(bucket: str, row: Row, *, is_latest: bool = True) -> Version:
    """The version of a BRIEF or WHOLE row; without its manifest in the former case."""
    rest = _decode_rest(row[11]) if row[11] is not None else _NO_REST
    manifest = decode_manifest(row[12]) if len(row) > 12 and row[12] is not None else _NO_MANIFEST
    return Version(
        bucket=bucket,
        key=row[0],
        lsn=row[1],
        delete_marker=bool(row[2]),
        version_id=row[3],
        last_modified_ns=row[4],
        size=row[5],
        etag=row[6],
        file_id=row[7],
        link_count=row[8],
        storage_class=row[9],
        owner=row[10],
        headers=rest.headers,
        user_metadata=rest.user_metadata,
        tags=rest.tags,
        attributes=rest.attributes,
        checksum=rest.checksum,
        parts=rest.parts,
        changed_lsn=rest.changed_lsn,
        manifest=manifest,
        is_latest=is_latest,
    )


def rest_of(version: Version) -> bytes | None:
    rest = Rest(
        version.headers,
        version.user_metadata,
        version.tags,
        version.attributes,
        version.checksum,
        version.parts,
        version.changed_lsn,
    )
    return None if rest == _NO_REST else encode(rest)


def row_of(version: Version) -> Row:
    """The WHOLE row of a version."""
    return (
        version.key,
        version.lsn,
        int(version.delete_marker),
        version.version_id,
        version.last_modified_ns,
        version.size,
        version.etag,
        version.file_id,
        version.link_count,
        version.storage_class,
        version.owner,
        rest_of(version),
        None if version.manifest == _NO_MANIFEST else encode(version.manifest),
    )


# -- ids -----------------------------------------------------------------------


def _opaque(lsn: int, person: bytes) -> str:
    """32 characters: the LSN, then a check that makes guessed ids fail."""
    number = f"{lsn:016x}"
    return number + blake2b(number.encode(), digest_size=8, person=person).hexdigest()


def version_id_of(lsn: int) -> str:
    """The version id of a version published by the record `lsn` on a versioned bucket."""
    return _opaque(lsn, b"version")


def upload_id_of(lsn: int) -> str:
    """The id of an upload; ids of later uploads compare greater."""
    return _opaque(lsn, b"upload")


def lsn_of(version_id: str) -> int | None:
    """The LSN a version id was derived from; None for "null" and for ids never given."""
    if version_id == NULL_VERSION_ID or len(version_id) != 32:
        return None
    try:
        lsn = int(version_id[:16], 16)
    except ValueError:
        return None
    return lsn if version_id_of(lsn) == version_id else None


# -- keys ----------------------------------------------------------------------


def check_key(key: str) -> None:
    """Raises InvalidName for a key no door accepts."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise InvalidName("the key is not valid UTF-8") from error
    if not 1 <= size <= limits.KEY_BYTES_MAX:
        raise InvalidName(f"a key has 1 to {limits.KEY_BYTES_MAX} bytes of UTF-8, this one {size}")


def past(prefix: str) -> str | None:
    """The smallest string above every string that starts with `prefix`; None: there is
    none. UTF-8 order is code point order, so the last code point is raised by one."""
    for position in range(len(prefix) - 1, -1, -1):
        point = ord(prefix[position])
        if point < 0x10FFFF:
            following = point + 1
            if 0xD800 <= following <= 0xDFFF:  # surrogates are no characters
                following = 0xE000
            return prefix[:position] + chr(following)
    return None


def component_is_hidden(name: str) -> bool:
    """Whether no directory can show this name."""
    return name in ("", ".", "..") or "\0" in name or len(name.encode()) > limits.NAME_BYTES_MAX


def key_is_hidden(key: str) -> bool:
    """Whether the tree has no path for the key (files beside a directory apart)."""
    return any(map(component_is_hidden, key.removesuffix("/").split("/")))


def parent_of(key: str) -> str:
    """The directory of a key or of a directory key: "" or ending in "/"."""
    head, slash, _ = key.removesuffix("/").rpartition("/")
    return head + slash
