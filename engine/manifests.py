"""Manifests as trees: cutting, joining and growing lists of entries.

Pure but for `load`, which the caller passes in to fetch a tree's node. Knows nothing of
chunks' whereabouts. Safe to call concurrently.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import assert_never

import msgspec

from engine.errors import UnknownFormat
from engine.types import ChunkEntry, Entry, HoleEntry, InlineEntry, Manifest, SliceEntry, TreeEntry

MANIFEST_FORMAT = 1

_decoder = msgspec.msgpack.Decoder(Manifest)
_encoder = msgspec.msgpack.Encoder()

Load = Callable[[TreeEntry], Awaitable[Manifest]]


def encode_manifest(manifest: Manifest) -> bytes:
    return _encoder.encode(manifest)


def decode_manifest(content: bytes | memoryview) -> Manifest:
    """Raises UnknownFormat, msgspec.DecodeError."""
    manifest = _decoder.decode(content)
    check_format(manifest)
    return manifest


def check_format(manifest: Manifest) -> None:
    """Raises UnknownFormat."""
    if manifest.format != MANIFEST_FORMAT:
        raise UnknownFormat(f"manifest format {manifest.format} is not known to this release; use a newer objfs")


def trim(entry: Entry, start: int, end: int) -> Entry:
    """The part [start, end) of an entry that is not a tree."""
    if start == 0 and end == entry.length:
        return entry
    match entry:
        case ChunkEntry():
            return SliceEntry(entry.chunk_id, entry.length, start, end - start)
        case SliceEntry():
            return SliceEntry(entry.chunk_id, entry.chunk_length, entry.offset + start, end - start)
        case HoleEntry():
            return HoleEntry(end - start)
        case InlineEntry():
            return InlineEntry(entry.content[start:end])
        case TreeEntry():
            raise AssertionError("a tree is cut by loading it")
        case _:
            assert_never(entry)


async def cut(entries: Sequence[Entry], start: int, end: int, load: Load, *, keep_trees: bool) -> list[Entry]:
    """Entries that make up bytes [start, end). With `keep_trees`, trees wholly inside stay
    trees; otherwise only leaves are returned."""
    result: list[Entry] = []
    position = 0
    for entry in entries:
        if position >= end:
            break
        length = entry.length
        low, high = max(start - position, 0), min(end - position, length)
        position += length
        if low >= high:
            continue
        if isinstance(entry, TreeEntry):
            if keep_trees and low == 0 and high == length:
                result.append(entry)
            else:
                node = await load(entry)
                result += await cut(node.entries, low, high, load, keep_trees=keep_trees)
        else:
            result.append(trim(entry, low, high))
    return result


def merge(entries: Sequence[Entry]) -> list[Entry]:
    """Join neighbours that are one: holes, inline runs, adjacent slices of a chunk."""
    result: list[Entry] = []
    for entry in entries:
        if entry.length == 0:
            continue
        last = result[-1] if result else None
        if isinstance(entry, HoleEntry) and isinstance(last, HoleEntry):
            result[-1] = HoleEntry(last.length + entry.length)
        elif (
            isinstance(entry, SliceEntry)
            and isinstance(last, SliceEntry)
            and last.chunk_id == entry.chunk_id
            and last.offset + last.length == entry.offset
        ):
            whole = last.offset == 0 and last.length + entry.length == entry.chunk_length
            result[-1] = (
                ChunkEntry(entry.chunk_id, entry.chunk_length)
                if whole
                else SliceEntry(entry.chunk_id, entry.chunk_length, last.offset, last.length + entry.length)
            )
        else:
            result.append(entry)
    return result
