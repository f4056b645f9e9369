"""objfs node replace: an empty directory takes a lost node's place."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from engine.changes import SetNode
from engine.crash_sites import CrashSite, reached
from engine.errors import StoreError, WritesStopped
from engine.maintenance import ORIGIN
from engine.nodes.descriptor import (
    NODE_DESCRIPTOR_NAME,
    NodeDescriptor,
    read_node_descriptor,
    read_store_descriptor,
    write_node_descriptor,
    write_store_descriptor,
)
from engine.opening import Parts
from engine.types import NodeEntry, NodeState

COMMIT_ATTEMPTS_MAX = 10


async def replace_node(parts: Parts, node_id: str, path: str | None = None) -> None:
    """Write this store's descriptor, with a new generation, into the empty directory at
    `path` (default: where the node was) and set the node to rebuilding; the owner's
    maintenance fills it. Raises StoreError when the node is not lost, the directory is
    missing or not empty."""
    await parts.index.freshen()
    place = next((place for place in parts.index.keymap.nodes() if place.node_id == node_id), None)
    if place is None:
        known = ", ".join(entry.node_id for entry in parts.index.keymap.nodes())
        raise StoreError(f"there is no node {node_id}; the nodes are {known}")
    if place.state is not NodeState.LOST and not await _is_away(parts, place):
        raise StoreError(f"node {node_id} is {place.state}, not lost; only a lost node can be replaced")
    target = os.path.abspath(path or place.path)
    replaced = await anyio.to_thread.run_sync(_take_place, parts, place, target)
    change = SetNode(node_id, replaced.path, replaced.domain, NodeState.REBUILDING, replaced.generation)
    await commit_with_patience(parts, change)


async def commit_with_patience(parts: Parts, change: SetNode) -> None:
    """Tell the index of a new node. Where too few others are left to write the journal,
    maintenance opens the new one meanwhile. Raises WritesStopped."""
    for attempt in range(COMMIT_ATTEMPTS_MAX):
        try:
            await parts.index.commit(change, ORIGIN)
            return
        except WritesStopped:
            if attempt == COMMIT_ATTEMPTS_MAX - 1:
                raise
        await anyio.sleep(1.0)


async def _is_away(parts: Parts, place: NodeEntry) -> bool:
    """Whether the node is lost though nobody could note it: with m+1 nodes nothing can be
    committed once one of them is gone."""
    return await anyio.to_thread.run_sync(parts.nodes.probe, place) is not None


def _take_place(parts: Parts, place: NodeEntry, target: str) -> NodeEntry:
    directory = Path(target)
    if not directory.is_dir():
        raise StoreError(f"{target} is no directory; make or mount it first")
    replaced = msgspec.structs.replace(place, path=target, generation=place.generation + 1)
    descriptor = read_store_descriptor(parts.data)
    names = {entry.name for entry in directory.iterdir() if not entry.name.startswith(f".{NODE_DESCRIPTOR_NAME}.")}
    names.discard("lost+found")
    if names and not (names == {NODE_DESCRIPTOR_NAME} and _was_begun(directory, descriptor.store_id, replaced)):
        raise StoreError(f"{target} is not empty; empty it or name another directory")
    write_node_descriptor(
        directory,
        NodeDescriptor(
            store_id=descriptor.store_id,
            node_id=place.node_id,
            k=descriptor.k,
            m=descriptor.m,
            domain=place.domain,
            generation=replaced.generation,
        ),
    )
    reached(CrashSite.NODE_DESCRIBED)
    places = [
        msgspec.structs.replace(entry, path=target, generation=replaced.generation)
        if entry.node_id == place.node_id
        else entry
        for entry in descriptor.nodes
    ]
    write_store_descriptor(parts.data, msgspec.structs.replace(descriptor, nodes=places))
    reached(CrashSite.NODE_PLACED)
    return replaced


def _was_begun(directory: Path, store_id: str, replaced: NodeEntry) -> bool:
    """Whether the directory holds nothing but what a replacement that a crash cut short left."""
    try:
        found = read_node_descriptor(directory, store_id)
    except StoreError:
        return False
    return (found.node_id, found.generation) == (replaced.node_id, replaced.generation)
