"""The figures a computation rests on, each with where it comes from. Pure.

Defaults are stated, not hidden: whoever shows a result shows these beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from engine.limits import SEGMENT_BYTES_MAX, STRIPE_BYTES_MAX
from objfs.durability.layout import Layout

SECONDS_YEAR = 365.25 * 86400
Source = Literal["given", "measured", "counted", "assumed"]


@dataclass(frozen=True)
class Figure:
    amount: float
    source: Source


@dataclass(frozen=True)
class Figures:
    """What fails how often, and how long fragments are missing then."""

    afr: Figure  # chance that a disk dies within a year
    host_afr: Figure  # chance that a host is lost for good within a year, with all its disks
    rack_afr: Figure  # the same for a rack
    power_events: Figure  # per year, each striking all disks of a zone
    power_loss: Figure  # chance that a disk does not come back from a power event
    ure: Figure  # chance that a bit cannot be read when a rebuild needs it
    node_bytes: Figure  # stored on a node
    repair_rate: Figure  # bytes of lost fragments rebuilt per second
    detection: Figure  # seconds until a lost node is known as lost
    replacement: Figure  # seconds until a new disk is in, where there is no spare node
    object_bytes: Figure
    objects: Figure
    years: Figure


# Sources: AFR: Backblaze's drive statistics, 1.4 to 1.7 % in most years. Power: Cidon et al.,
# "Copysets" (USENIX ATC 2013): 0.5 to 1 % of nodes do not come back from a power loss. URE:
# makers' data sheets for disks of servers. Host and rack loss for good are guesses on the
# careful side, as are times and rates of a store that has not measured its own.
DEFAULTS: dict[str, float] = {
    "afr": 0.015,
    "host_afr": 0.001,
    "rack_afr": 0.0002,
    "power_events": 0.5,
    "power_loss": 0.005,
    "ure": 1e-15,
    "node_bytes": 4e12,
    "repair_rate": 50e6,
    "detection": 3600.0,
    "replacement": 86400.0,
    "object_bytes": 1e6,
    "objects": 1e6,
    "years": 1.0,
}
assert list(DEFAULTS) == [field.name for field in fields(Figures)]


def make_figures(
    given: dict[str, float], measured: dict[str, float] | None = None, counted: dict[str, float] | None = None
) -> Figures:
    """Given wins over measured, measured over counted, counted over the defaults."""
    chosen = {name: Figure(amount, "assumed") for name, amount in DEFAULTS.items()}
    sources: list[tuple[Source, dict[str, float]]] = [
        ("counted", counted or {}),
        ("measured", measured or {}),
        ("given", given),
    ]
    for source, known in sources:
        chosen |= {name: Figure(amount, source) for name, amount in known.items()}
    return Figures(**chosen)


@dataclass(frozen=True)
class Model:
    """The figures in the units all three ways compute in: rates per year, times in years."""

    disk_rate: float
    host_rate: float
    rack_rate: float
    power_rate: float
    power_loss: float
    down_years: float  # from a node's loss until its fragments are whole again
    fragment_unreadable: float  # chance that one fragment has an unreadable bit
    stripes_object: float  # stripes of one object, in each of its groups
    groups_object: int  # groups an object's stripes are spread over
    stripes_group: float  # all stripes of a group
    years: float

    def independent(self) -> Model:
        """Only disks fail, each for itself; unreadable bits stay, they are no correlation."""
        return Model(**{**self.__dict__, "host_rate": 0.0, "rack_rate": 0.0, "power_rate": 0.0})


def make_model(layout: Layout, figures: Figures, down_factor: float = 1.0) -> Model:
    """`down_factor` scales the time to repair, for curves."""
    fragment_bytes = STRIPE_BYTES_MAX / layout.k
    stripes_object = max(math.ceil(figures.object_bytes.amount / STRIPE_BYTES_MAX), 1)
    segments_object = max(math.ceil(figures.object_bytes.amount / SEGMENT_BYTES_MAX), 1)
    groups_object = min(segments_object, len(layout.groups))
    fragments = figures.node_bytes.amount * len(layout.places) / fragment_bytes
    return Model(
        disk_rate=_rate(figures.afr.amount),
        host_rate=_rate(figures.host_afr.amount),
        rack_rate=_rate(figures.rack_afr.amount),
        power_rate=figures.power_events.amount,
        power_loss=figures.power_loss.amount,
        down_years=down_seconds(layout, figures) * down_factor / SECONDS_YEAR,
        fragment_unreadable=-math.expm1(8 * fragment_bytes * math.log1p(-figures.ure.amount)),
        stripes_object=stripes_object / groups_object,
        groups_object=groups_object,
        stripes_group=fragments / layout.n / len(layout.groups),
        years=figures.years.amount,
    )


def down_seconds(layout: Layout, figures: Figures) -> float:
    """How long a lost node's fragments are missing: noticing, then a new disk where no spare
    node can take them, then rebuilding."""
    waiting = figures.replacement.amount if layout.spare_nodes < 1 else 0.0
    return figures.detection.amount + waiting + figures.node_bytes.amount / figures.repair_rate.amount


def unreadable_losses(layout_n: int, m: int, unreadable: float, stripes: float) -> list[float]:
    """By fragments down (0 to m): the chance that one of `stripes` has so many unreadable
    fragments among those left that fewer than k are good. 0 down counts as 0: scrub mends
    what is unreadable while nothing else is missing."""
    chances = [0.0]
    for down in range(1, m + 1):
        left = layout_n - down
        each = sum(
            math.comb(left, bad) * unreadable**bad * (1 - unreadable) ** (left - bad)
            for bad in range(m - down + 1, left + 1)
        )
        chances.append(1.0 if each >= 1 else -math.expm1(stripes * math.log1p(-each)))
    return chances


def _rate(afr: float) -> float:
    return -math.log1p(-afr)
