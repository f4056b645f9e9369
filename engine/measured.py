"""Figures measured on this store while it worked: how fast it noticed, repaired and scrubbed.

DATA/index/measured.json holds the newest of each. It is derived and disposable like
everything in DATA/index: without it, who asks assumes and says so. Maintenance is the only
writer; any process may read at any time, since the file is replaced whole. Blocking.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
from msgspec import Struct

from engine.durable_files import write_durably
from engine.errors import StoreError

MEASURED_NAME = "measured.json"


class Measured(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """None: not measured yet. Every figure is above zero, but for `stored_bytes_per_node`."""

    detection_seconds: float | None = None  # from a node's failure until it is known as lost
    repair_bytes_per_second: float | None = None  # bytes of lost fragments rebuilt per second
    scrub_bytes_per_second: float | None = None  # bytes of fragments checked per second, of one node
    stored_bytes_per_node: int | None = None  # on the fullest node


def read_measured(data: Path) -> Measured:
    """What is known of the store at `data`; nothing if nothing was measured yet. Raises
    StoreError if the file is damaged."""
    path = _path(data)
    try:
        measured = msgspec.json.decode(path.read_bytes(), type=Measured)
    except (FileNotFoundError, NotADirectoryError):
        return Measured()
    except msgspec.MsgspecError as error:
        raise StoreError(f"{path} is damaged ({error}); delete it, it is measured again") from error
    if not _plausible(measured):
        raise StoreError(f"{path} holds a figure that cannot be: {measured}; delete it, it is measured again")
    return measured


def note(data: Path, **fields: float) -> None:
    """Keep newly measured figures, named as in Measured, beside those known before. Raises
    ValueError for what cannot have been measured."""
    if unknown := fields.keys() - set(Measured.__struct_fields__):
        raise ValueError(f"not figures that are measured: {', '.join(sorted(unknown))}")
    try:
        known = read_measured(data)
    except StoreError:
        known = Measured()  # damaged: the figures it held are measured again, nothing else depends on it
    measured = msgspec.convert({**msgspec.to_builtins(known), **fields}, Measured)
    if not _plausible(measured):
        raise ValueError(f"not figures that can be measured: {fields}")
    _path(data).parent.mkdir(exist_ok=True)  # whoever deleted DATA/index may do so at any time
    write_durably(_path(data), msgspec.json.format(msgspec.json.encode(measured)) + b"\n")


def _path(data: Path) -> Path:
    return data / "index" / MEASURED_NAME


def _plausible(measured: Measured) -> bool:
    stored = measured.stored_bytes_per_node
    rates = (measured.detection_seconds, measured.repair_bytes_per_second, measured.scrub_bytes_per_second)
    return (stored is None or stored >= 0) and all(rate is None or (math.isfinite(rate) and rate > 0) for rate in rates)
