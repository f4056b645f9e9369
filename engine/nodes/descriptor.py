"""The descriptors: `store.json` under DATA says what the store is, `objfs-node.json` on a
node says whose it is. Both are small JSON files, written atomically and synced."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from engine.coding import check_code
from engine.durable_files import write_durably
from engine.errors import NodeUnavailable, NotAStore, StoreError, UnknownFormat, WrongStore

FORMAT = 1
STORE_DESCRIPTOR_NAME = "store.json"
NODE_DESCRIPTOR_NAME = "objfs-node.json"


class NodePlace(Struct, frozen=True, kw_only=True):
    """Where a node is. `generation` is raised when an empty directory takes its place."""

    node_id: str
    path: str
    domain: str = ""
    generation: int = 1


class StoreDescriptor(Struct, frozen=True, kw_only=True):
    """`k`, `m` and `code` are the default for new segments; each segment names its own.
    `reserve_bytes` is kept aside on each node (None: engine.care.reserve decides)."""

    store_id: str
    k: int
    m: int
    code: str = "isa_l_rs_cauchy"
    nodes: list[NodePlace] = []
    reserve_bytes: int | None = None
    format: int = FORMAT


class NodeDescriptor(Struct, frozen=True, kw_only=True):
    store_id: str
    node_id: str
    k: int = 0  # the store's default code, so that the nodes alone rebuild store.json
    m: int = 0
    code: str = "isa_l_rs_cauchy"
    domain: str = ""
    generation: int = 1
    format: int = FORMAT


_Descriptor = TypeVar("_Descriptor", StoreDescriptor, NodeDescriptor)


def read_store_descriptor(data: Path) -> StoreDescriptor:
    """Raises NotAStore, UnknownFormat."""
    path = data / STORE_DESCRIPTOR_NAME
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotAStore(f"{data} holds no store: {STORE_DESCRIPTOR_NAME} is missing; run `objfs init`") from error
    try:
        descriptor = _decode(content, StoreDescriptor, path)
    except msgspec.MsgspecError as error:
        raise damaged_store(path, str(error)) from error
    try:
        check_code(descriptor.k, descriptor.m, descriptor.code)
    except StoreError as error:
        raise damaged_store(path, str(error)) from error
    for named in ("node_id", "path"):
        found = [str(getattr(place, named)) for place in descriptor.nodes]
        twice = next((value for value in found if found.count(value) > 1), None)
        if twice is not None:
            raise damaged_store(path, f"it names {twice} twice")
    return descriptor


def damaged_store(path: Path, why: str) -> NotAStore:
    return NotAStore(f"{path} is damaged ({why}); write it again from the nodes' {NODE_DESCRIPTOR_NAME}")


def check_agreement(data: Path, descriptor: StoreDescriptor, found: Sequence[NodeDescriptor]) -> None:
    """Most of the nodes' descriptors must name the store's code. Raises NotAStore: with
    another m the store would take more losses for survivable than it survives."""
    ours = (descriptor.k, descriptor.m, descriptor.code)
    theirs = [(node.k, node.m, node.code) for node in found if node.k]
    others = [code for code in theirs if code != ours]
    if len(others) > len(theirs) // 2:
        k, m, code = others[0]
        why = f"it says {descriptor.k}+{descriptor.m} {descriptor.code}, the nodes say {k}+{m} {code}"
        raise damaged_store(data / STORE_DESCRIPTOR_NAME, why)


def write_store_descriptor(data: Path, descriptor: StoreDescriptor) -> None:
    write_durably(data / STORE_DESCRIPTOR_NAME, _encode(descriptor))


def read_node_descriptor(node: Path, store_id: str | None = None) -> NodeDescriptor:
    """Raises NodeUnavailable (missing, empty, unreadable), UnknownFormat, and WrongStore
    if it is not of the store named."""
    path = node / NODE_DESCRIPTOR_NAME
    try:
        found = _decode(path.read_bytes(), NodeDescriptor, path)
    except FileNotFoundError as error:
        state = "has no node descriptor (is its disk mounted?)" if node.is_dir() else "is missing"
        raise NodeUnavailable(f"node {node} {state}") from error
    except OSError as error:
        raise NodeUnavailable(f"node {node} cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise NodeUnavailable(
            f"{path} is damaged ({error}); write it again, or empty the node and run objfs node replace"
        ) from error
    if store_id is not None and found.store_id != store_id:
        raise WrongStore(f"node {node} belongs to store {found.store_id}, not to {store_id}; is the right disk there?")
    return found


def write_node_descriptor(node: Path, descriptor: NodeDescriptor) -> None:
    """Make the existing directory `node` a node, or update its descriptor."""
    write_durably(node / NODE_DESCRIPTOR_NAME, _encode(descriptor))


def _encode(descriptor: StoreDescriptor | NodeDescriptor) -> bytes:
    return msgspec.json.format(msgspec.json.encode(descriptor)) + b"\n"


def _decode(content: bytes, kind: type[_Descriptor], path: Path) -> _Descriptor:
    # The format is looked at first: a newer descriptor may have other fields.
    found = msgspec.json.decode(content, type=dict[str, object]).get("format")
    if not isinstance(found, int):
        raise msgspec.ValidationError("it names no format")
    if found != FORMAT:
        raise UnknownFormat(f"{path} has format {found}, this release knows {FORMAT}; use a newer objfs")
    return msgspec.json.decode(content, type=kind)
