"""fsck: read everything once and compare every counter with a recount. Changes nothing."""

from __future__ import annotations

from engine.errors import StoreError
from engine.opening import Parts
from engine.read_path import ContentReader
from engine.types import ChunkEntry, SliceEntry, Version

PROBLEMS_MAX = 1000


async def check_store(parts: Parts, reader: ContentReader) -> list[str]:
    """One line per problem, at most PROBLEMS_MAX; an empty list means all is well."""
    await parts.index.freshen()
    problems: list[str] = []
    keymap = parts.index.keymap
    checked: set[bytes] = set()
    for bucket in keymap.buckets():
        after_key, after_version = "", ""
        while len(problems) < PROBLEMS_MAX:
            page = keymap.list_versions(bucket.name, key_marker=after_key, version_id_marker=after_version)
            for listed in page.versions:
                version = keymap.version(bucket.name, listed.key, listed.version_id)
                if version is not None and not version.delete_marker:
                    problems += await _check_version(reader, version, checked)
            if page.next_key is None:
                break
            after_key, after_version = page.next_key, page.next_version_id or ""
    problems += await parts.recount()
    return problems[:PROBLEMS_MAX]


async def _check_version(reader: ContentReader, version: Version, checked: set[bytes]) -> list[str]:
    name = f"{version.bucket}/{version.key!r} version {version.version_id}"
    if version.manifest.length != version.size:
        return [f"{name}: its manifest holds {version.manifest.length} bytes, its size says {version.size}"]
    try:
        async for entry in reader.expand(version.manifest):
            if isinstance(entry, (ChunkEntry, SliceEntry)) and entry.chunk_id not in checked:
                await reader.verify(entry.chunk_id)
                checked.add(entry.chunk_id)
    except StoreError as error:
        return [f"{name}: {error}"]
    return []
