"""The layout of a store as its descriptors, devices and node directories tell it.

Reads only, takes no lock and opens no index, so it works beside a running server. Blocking.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from engine.errors import StoreError
from engine.measured import Measured
from engine.nodes.descriptor import NodePlace, read_node_descriptor, read_store_descriptor
from objfs.durability.layout import Layout, Place, make_layout


def read_layout(data: Path) -> Layout:
    """Raises NotAStore, UnknownFormat, LayoutImpossible."""
    descriptor = read_store_descriptor(data)
    places, lost = [], []
    for node in descriptor.nodes:
        try:
            if read_node_descriptor(Path(node.path), descriptor.store_id).generation != node.generation:
                raise StoreError(f"{node.path} holds an older disk")
            device = disk_of(os.stat(node.path).st_dev)
        except (StoreError, OSError):
            lost.append(node.node_id)
            device = f"lost {node.node_id}"
        places.append(_place(node, device))
    notes = []
    if lost:
        notes.append(
            f"{len(lost)} of {len(places)} nodes cannot be read now ({', '.join(sorted(lost))}): the numbers are for "
            "the layout once they are back"
        )
    return make_layout(descriptor.k, descriptor.m, places, f"the store in {data}", notes)


def disk_of(device: int, devices: Path = Path("/sys/dev/block")) -> str:
    """The disk a filesystem's st_dev is on: partitions of one disk fail together. What the
    kernel shows no partition for (a whole disk, RAID, LVM, network) stands for itself."""
    name = f"{os.major(device)}:{os.minor(device)}"
    entry = devices / name
    if not (entry / "partition").exists():
        return name
    return (entry.resolve().parent / "dev").read_text().strip()


def measured_figures(measured: Measured, *, with_stored: bool) -> dict[str, float]:
    """What was measured, by the names the figures have. `with_stored`: also how much is stored,
    which says nothing about another layout."""
    found = {
        "detection": measured.detection_seconds,
        "repair_rate": measured.repair_bytes_per_second,
        "node_bytes": measured.stored_bytes_per_node if with_stored else None,
    }
    return {name: float(amount) for name, amount in found.items() if amount}


def stored_bytes(data: Path) -> int:
    """Bytes of files on the fullest node that can be read; at least 1."""
    nodes = read_store_descriptor(data).nodes
    return max([1, *(sum(_file_sizes(node.path)) for node in nodes)])


def _place(node: NodePlace, device: str) -> Place:
    """Nodes are directories of this machine: what their domains do not tell apart, they share."""
    parts = [part for part in node.domain.split("/") if part]
    zone, rack, host = ("/".join([*parts[:depth], *["-"] * (depth - len(parts))]) for depth in (1, 2, 3))
    return Place(node.node_id, node.domain, device, zone, rack, host)


def _file_sizes(path: str) -> Iterator[int]:
    for directory, _, names in os.walk(path):
        for name in names:
            try:
                yield os.stat(os.path.join(directory, name), follow_symlinks=False).st_size
            except FileNotFoundError:
                continue  # deleted meanwhile by the server beside us
