"""How many more losses what is stored survives now. Reads only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable

from engine.errors import StoreError
from engine.interfaces import KeymapReader
from engine.types import ChunkEntry, Entry, Manifest, NodeEntry, NodeState, Segment, SliceEntry, Version

HOLDING = (NodeState.HEALTHY, NodeState.DRAINING)  # fragments on nodes in these states count


def holding(places: Iterable[NodeEntry]) -> set[str]:
    """Ids of the nodes whose fragments can be counted on."""
    return {place.node_id for place in places if place.state in HOLDING}


def losses_left(segment: Segment, holding: set[str]) -> int:
    """How many more of its fragments the segment can lose before anything in it can't be
    read; m is full protection, below 0 it can't be read now."""
    lost = set(segment.fragments_lost)
    whole = sum(1 for index, node_id in enumerate(segment.node_ids) if index not in lost and node_id in holding)
    return whole - segment.k


def protection(segments: Iterable[Segment], places: Iterable[NodeEntry]) -> dict[int, int]:
    """Stripes below full protection, by the losses they still survive, fewest first. A
    segment that is open counts as one stripe."""
    there = holding(places)
    counts: dict[int, int] = {}
    for segment in segments:
        left = losses_left(segment, there)
        if left < segment.m:
            counts[left] = counts.get(left, 0) + max(segment.stripes, 1)
    return dict(sorted(counts.items()))


Expand = Callable[[Manifest], AsyncIterator[Entry]]


async def versions_naming(
    keymap: KeymapReader, expand: Expand, chunk_ids: Collection[bytes], limit: int
) -> list[Version]:
    """Versions whose content lies in one of these chunks, at most `limit`. Looks at every
    version: for when there is something to say. A version whose manifest can't be read
    itself counts: it is a chunk of these, or as unreadable."""
    found: list[Version] = []
    for bucket in keymap.buckets():
        key, version_id = "", ""
        while True:
            page = keymap.list_versions(bucket.name, key_marker=key, version_id_marker=version_id)
            for listed in page.versions:
                version = keymap.version(bucket.name, listed.key, listed.version_id)
                if version is not None and await _names(version, expand, chunk_ids):
                    found.append(version)
                    if len(found) == limit:
                        return found
            if page.next_key is None:
                break
            key, version_id = page.next_key, page.next_version_id or ""
    return found


async def _names(version: Version, expand: Expand, chunk_ids: Collection[bytes]) -> bool:
    try:
        async for entry in expand(version.manifest):
            if isinstance(entry, ChunkEntry | SliceEntry) and entry.chunk_id in chunk_ids:
                return True
    except StoreError:
        return True
    return False
