"""What can strike a layout, and the ways Monte Carlo draws it. Pure.

A target is one thing a shock of a class can hit: a disk, a host, a rack, a zone's power. A
way of drawing (proposal) is a distribution over targets; way g focuses on group g, the last
way is the natural one. `log_ratios` hold log(proposed/natural), the raw matter of weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from objfs.durability.figures import Model
from objfs.durability.layout import Layout, Place

_Floats = NDArray[np.float64]

CLASSES = ("disk", "host", "rack", "power")
POWER = CLASSES.index("power")
# Of the shocks of a focused way: drawn as they come, evenly over classes, on the group's disks.
_NATURAL, _EVEN, _FOCUS = 0.1, 0.4, 0.5


@dataclass(frozen=True)
class Shocks:
    rates: _Floats  # per year, by target
    class_of: NDArray[np.intp]  # place in CLASSES, by target
    strikes: NDArray[np.bool_]  # target by device: what it can hit
    fragments: _Floats  # device by group: how many fragments of a stripe it holds
    power_loss: float  # chance that a device hit by a power event is lost
    rate_with_loss: float  # per year, shocks after which a device is down


def make_shocks(layout: Layout, model: Model) -> Shocks:
    index_of = {device: index for index, device in enumerate(layout.devices)}
    rates: list[float] = []
    classes: list[int] = []
    strikes: list[NDArray[np.bool_]] = []
    levels: list[tuple[float, Callable[[Place], str]]] = [
        (model.disk_rate, lambda place: place.device),
        (model.host_rate, lambda place: place.host),
        (model.rack_rate, lambda place: place.rack),
        (model.power_rate if model.power_loss > 0 else 0.0, lambda place: place.zone),
    ]
    with_loss = 0.0
    for class_index, (rate, level) in enumerate(levels):
        if rate == 0:
            continue
        for name in dict.fromkeys(level(place) for place in layout.places):
            hit = np.zeros(len(index_of), dtype=bool)
            hit[[index_of[place.device] for place in layout.places if level(place) == name]] = True
            rates.append(rate)
            classes.append(class_index)
            strikes.append(hit)
            some = -math.expm1(int(hit.sum()) * math.log1p(-model.power_loss)) if class_index == POWER else 1.0
            with_loss += rate * some
    fragments = np.zeros((len(index_of), len(layout.groups)))
    for group_index, group in enumerate(layout.groups):
        for place in group:
            fragments[index_of[layout.places[place].device], group_index] += 1
    matrix = np.array(strikes, dtype=bool).reshape(len(strikes), len(index_of))
    return Shocks(np.array(rates), np.array(classes, dtype=np.intp), matrix, fragments, model.power_loss, with_loss)


class Proposals:
    def __init__(self, shocks: Shocks, chances: _Floats, power: _Floats, shares: _Floats) -> None:
        self._shocks = shocks
        self.shares = shares  # of trials, by way
        self.ways = len(shares)
        self.natural_way = self.ways - 1
        self.focused = np.arange(self.ways) != self.natural_way
        natural = shocks.rates / shocks.rates.sum()
        self.log_ratios = np.log(chances / natural)  # way by target
        rows = np.cumsum(chances, axis=1)
        rows /= rows[:, -1:]
        # Each way's row lies in [way, way+1]: one sorted array answers for all of them.
        self._cumulated = (rows + np.arange(self.ways)[:, None]).ravel()
        self._power = power  # way by device: the chance to be lost in a power event
        # Where no disk can be lost to power there is no such target; the logarithms go unused.
        loss = shocks.power_loss or 0.5
        self._log_lost: _Floats = np.log(np.maximum(power, 1e-300) / loss)
        self._log_kept: _Floats = np.log((1 - power) / (1 - loss))

    def draw(self, ways: NDArray[np.intp], generator: np.random.Generator) -> NDArray[np.intp]:
        """A target for each trial that draws in the way given."""
        targets = len(self._shocks.rates)
        found = np.searchsorted(self._cumulated, generator.random(len(ways)) + ways, side="right") - ways * targets
        return np.asarray(np.clip(found, 0, targets - 1), dtype=np.intp)

    def victims(
        self, targets: NDArray[np.intp], ways: NDArray[np.intp], generator: np.random.Generator
    ) -> tuple[NDArray[np.bool_], _Floats]:
        """(trial by device: what is lost, trial by way: log ratio of just this outcome)."""
        struck = self._shocks.strikes[targets]
        change = np.zeros((len(targets), self.ways))
        power = np.flatnonzero(self._shocks.class_of[targets] == POWER)
        if len(power):
            hit = struck[power]
            lost = hit & (generator.random(hit.shape) < self._power[ways[power]])
            kept = hit & ~lost
            change[power] = lost.astype(np.float64) @ self._log_lost.T + kept.astype(np.float64) @ self._log_kept.T
            struck[power] = lost
        return struck, change


def make_proposals(shocks: Shocks, m: int, natural_share: float) -> Proposals:
    """One way for each group and the natural one, which is drawn with `natural_share`."""
    natural = shocks.rates / shocks.rates.sum()
    groups = shocks.fragments.shape[1]
    present = np.unique(shocks.class_of)
    even = sum(
        ((shocks.class_of == class_index) / (shocks.class_of == class_index).sum() for class_index in present),
        np.zeros_like(natural),
    ) / len(present)
    disks = shocks.class_of == 0
    chances, power = [], []
    for group in range(groups):
        members = shocks.fragments[:, group] > 0
        focus = disks & (shocks.strikes & members).any(axis=1)
        aimed = focus / focus.sum() if focus.any() else even
        others = even if len(present) > 1 else aimed
        chances.append(_NATURAL * natural + _EVEN * others + _FOCUS * aimed)
        boosted = max(shocks.power_loss, min(0.5, (m + 1) / members.sum() * 0.7))
        power.append(np.where(members, boosted, shocks.power_loss))
    chances.append(natural)
    power.append(np.full(len(members), shocks.power_loss))
    shares = np.array([(1 - natural_share) / groups] * groups + [natural_share])
    return Proposals(shocks, np.array(chances), np.array(power), shares / shares.sum())
