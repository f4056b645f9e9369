"""Pins of files that stay open: renewed, so that an idle open file never holds up collection.

Every open file has a pin from before it read its version (engine.pins). When something
was condemned since, the file takes a newer one, if the version it reads is still there.
A file that was deleted or replaced under its readers has nobody else to name its chunks:
they are listed as held, all of the mount's together, and then its pin too is renewed.

One task of the mount's trio loop. What happens between two awaits is one step for every
other task; whatever was awaited for is looked at again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import trio

from engine.errors import StoreError
from engine.types import ChunkEntry, Manifest, SliceEntry, TreeEntry
from objfs.mount.openfiles import OpenFile

if TYPE_CHECKING:
    from engine.store import Store

RENEW_SECONDS = 5.0

logger = logging.getLogger("objfs.mount")


class PinRenewal:
    """`open_files` is the mount's own table, which others change."""

    def __init__(self, store: Store, open_files: Mapping[int, OpenFile]) -> None:
        self._store = store
        self._open = open_files
        self._held: dict[OpenFile, tuple[Manifest, frozenset[bytes]]] = {}

    async def run(self) -> None:
        """Until cancelled. A round that fails leaves the pins as old as they are."""
        while True:
            await trio.sleep(RENEW_SECONDS)
            try:
                await self.renew()
            except (StoreError, OSError) as error:
                logger.warning("pins of open files could not be renewed: %s", error)

    async def renew(self) -> None:
        newest = self._store.index.condemned_lsn()
        outdated = [file for file in self._open.values() if file.pin_lsn < newest and file.at_rest]
        orphans = [file for file in outdated if not file.renew_pin()]
        if not orphans and not self._has_closed():
            return
        held = {file: found for file, found in self._held.items() if self._still_reads(file, found[0])}
        for file in orphans:
            if file not in held:
                held[file] = (file.base, await self._chunk_ids(file.base))
        everything = frozenset[bytes]().union(*(chunk_ids for _, chunk_ids in held.values()))
        await trio.to_thread.run_sync(self._store.pins.keep, everything)
        self._held = held
        for file in orphans:
            if file.at_rest and file.base is held[file][0]:
                file.take_pin()

    def _has_closed(self) -> bool:
        return any(not self._still_reads(file, base) for file, (base, _) in self._held.items())

    def _still_reads(self, file: OpenFile, base: Manifest) -> bool:
        return file.opens > 0 and (file.base is base or not file.at_rest)

    async def _chunk_ids(self, manifest: Manifest) -> frozenset[bytes]:
        """Of the leaves and of the tree's nodes."""
        found: set[bytes] = set()
        waiting = [manifest]
        while waiting:
            for entry in waiting.pop().entries:
                if isinstance(entry, ChunkEntry | SliceEntry | TreeEntry):
                    found.add(entry.chunk_id)
                if isinstance(entry, TreeEntry):
                    waiting.append(await self._store.load_tree(entry))
        return frozenset(found)
