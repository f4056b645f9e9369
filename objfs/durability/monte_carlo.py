"""Monte Carlo: what fails together, played out.

A year is mostly all good, broken by episodes: from the first failure until every device is
whole again. Only episodes are simulated. A shock is one event of the world: a disk dies, a
host or a rack is lost with its disks, the power fails in a zone and some of its disks do not
come back. What a shock strikes is down for the model's fixed time; a disk that dies while
it is refilled starts anew. The chance of loss within an episode, times how many episodes a
year has, gives the rate.

Loss is rare, so shocks are drawn more often, and from rarer classes and closer together
than they come, and each trial is weighted back by how likely its history really is (failure
biasing with multiple importance sampling). Each trial focuses on one group of nodes or on
none; its weight is taken against the mixture of all these ways, the natural one included,
which bounds every weight by 1 / NATURAL_SHARE. From the first loss on a trial runs
unbiased. Pure; the same seed gives the same answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from objfs.durability.figures import Model, unreadable_losses
from objfs.durability.layout import Layout, LayoutImpossible
from objfs.durability.shocks import CLASSES, Proposals, Shocks, make_proposals, make_shocks

_Floats = NDArray[np.float64]

NATURAL_SHARE = 0.2  # of trials that are not biased at all
SHOCKS_IN_REPAIR_MAX = 5.0  # an episode has about e^this shocks; beyond, nothing is ever whole
CELLS_MAX = 200_000  # trials by nodes or groups held at once: what fits caches
LOG_MAX = 700.0  # exp() of more overflows; a weight of e^-700 is none
CONFIDENCE = 1.96  # standard errors of a 95 % interval
CAUSES = (*CLASSES, "unreadable")


@dataclass(frozen=True)
class Estimate:
    """A probability with its 95 % interval. With nothing seen, `probability` is the upper
    bound, `low` is 0 and `seen` is False: never a claim of zero."""

    probability: float
    low: float
    high: float
    seen: bool
    effective: float  # how many equally weighted trials with loss this is worth


@dataclass(frozen=True)
class Outcome:
    object_lost: Estimate
    any_lost: Estimate
    causes: dict[str, float]  # what the last blow was, as shares of the objects lost
    trials: int


def simulate(layout: Layout, model: Model, trials: int, seed: int, *, biased: bool = True) -> Outcome:
    """Raises LayoutImpossible if shocks come faster than repairs end."""
    shocks = make_shocks(layout, model)
    total = float(shocks.rates.sum())
    if total == 0:
        nothing = Estimate(0.0, 0.0, 0.0, True, math.inf)
        return Outcome(nothing, nothing, dict.fromkeys(CAUSES, 0.0), trials)
    if shocks.rate_with_loss * model.down_years > SHOCKS_IN_REPAIR_MAX:
        raise LayoutImpossible(
            f"{shocks.rate_with_loss * model.down_years:.1f} failures are expected during one repair: the nodes "
            "are never all whole; use a shorter repair, lower failure rates or fewer nodes"
        )
    generator = np.random.default_rng(seed)
    proposals = make_proposals(shocks, layout.m, NATURAL_SHARE if biased else 1.0)
    batch = max(min(trials, CELLS_MAX // max(proposals.ways, len(layout.devices))), 1)
    results = [
        _Episodes(layout, model, shocks, proposals, generator, min(batch, trials - start)).run()
        for start in range(0, trials, batch)
    ]

    def estimate(losses: str, broken: str) -> Estimate:
        found, surely = (np.concatenate([getattr(result, name) for result in results]) for name in (losses, broken))
        return _estimate(found, surely, episodes, 1 / NATURAL_SHARE if biased else 1.0)

    causes = sum((result.causes for result in results), np.zeros(len(CAUSES)))
    # Shocks that strike something keep the system busy for the fixed time each, so it is all
    # good for exp(-rate · time) of the time (Poisson arrivals, M/D/∞): then episodes begin.
    episodes = total * math.exp(-shocks.rate_with_loss * model.down_years) * model.years
    lost = float(causes.sum())
    shares = {name: float(part) / lost if lost else 0.0 for name, part in zip(CAUSES, causes, strict=True)}
    return Outcome(estimate("object_loss", "object_broken"), estimate("any_loss", "any_broken"), shares, trials)


class _Episodes:
    """Trials side by side: each row of every array is one trial."""

    def __init__(
        self,
        layout: Layout,
        model: Model,
        shocks: Shocks,
        proposals: Proposals,
        generator: np.random.Generator,
        trials: int,
    ) -> None:
        self._m, self._model, self._shocks, self._proposals = layout.m, model, shocks, proposals
        self._random = generator
        groups, devices = len(layout.groups), len(layout.devices)
        losses = (unreadable_losses(layout.n, layout.m, model.fragment_unreadable, stripes) + [1.0] * layout.n
                  for stripes in (model.stripes_object, model.stripes_group))  # fmt: skip
        self._object_losses, self._group_losses = (np.array(chances) for chances in losses)
        self._rate = float(shocks.rates.sum())
        # So many shocks within one repair that loss is no rarity, unless there are more anyway.
        self._biased_rate = max(self._rate, (1.0 + layout.m / 2) / model.down_years)
        self._up_at = np.zeros((trials, devices))
        self._now = np.zeros(trials)
        self._likelihood = np.zeros((trials, proposals.ways))  # log of proposed over natural, by way
        self._way = generator.choice(proposals.ways, size=trials, p=proposals.shares)
        self._biased = np.ones(trials, dtype=bool)
        self._objects_left = np.ones((trials, groups))  # chance that objects starting in a group still are
        self._all_left = np.ones(trials)  # chance that nothing was lost
        self.object_loss = np.zeros(trials)
        self.any_loss = np.zeros(trials)
        self.object_broken = np.zeros(trials)  # of the losses, those where more than m fragments were down
        self.any_broken = np.zeros(trials)
        self.causes = np.zeros(len(CAUSES))

    def run(self) -> _Episodes:
        active = np.arange(len(self._now))
        self._strike(active)
        while len(active := self._wait(active)):
            self._strike(active)
        return self

    def _wait(self, active: NDArray[np.intp]) -> NDArray[np.intp]:
        """Let time pass until the next shock; the trials that are struck before all is good."""
        accelerated = self._biased[active] & self._proposals.focused[self._way[active]]
        waits = self._random.exponential(1 / np.where(accelerated, self._biased_rate, self._rate))
        left = self._up_at[active].max(axis=1) - self._now[active]
        struck = waits < left
        active, waits = active[struck], waits[struck]
        self._now[active] += waits
        change = math.log(self._biased_rate / self._rate) - (self._biased_rate - self._rate) * waits
        self._likelihood[active] += (change * self._biased[active])[:, None] * self._proposals.focused
        return active

    def _strike(self, active: NDArray[np.intp]) -> None:
        """One shock for each of these trials, and what it loses."""
        biased = self._biased[active]
        ways = np.where(biased, self._way[active], self._proposals.natural_way)
        targets = self._proposals.draw(ways, self._random)
        struck, change = self._proposals.victims(targets, ways, self._random)
        change += self._proposals.log_ratios[:, targets].T
        self._likelihood[active] += change * biased[:, None]
        newly = struck & (self._up_at[active] <= self._now[active, None])
        self._up_at[active] = np.where(
            struck, (self._now[active] + self._model.down_years)[:, None], self._up_at[active]
        )
        down = self._up_at[active] > self._now[active, None]
        gone = np.rint(down.astype(np.float64) @ self._shocks.fragments)
        worse = (newly.astype(np.float64) @ self._shocks.fragments) > 0
        self._lose(active, gone.astype(np.intp), worse, self._shocks.class_of[targets])

    def _lose(
        self, active: NDArray[np.intp], gone: NDArray[np.intp], worse: NDArray[np.bool_], classes: NDArray[np.intp]
    ) -> None:
        rows = np.flatnonzero(worse.any(axis=1))
        if not len(rows):
            return
        active, gone, worse = active[rows], gone[rows], worse[rows]
        weight = 1 / (np.exp(np.minimum(self._likelihood[active], LOG_MAX)) @ self._proposals.shares)
        chance = np.where(worse, self._object_losses[gone], 0.0)
        lost = chance
        for step in range(1, self._model.groups_object):
            lost = lost + np.roll(chance, -step, axis=1) * (1 - lost)
        loss = weight * (self._objects_left[active] * lost).mean(axis=1)
        self._objects_left[active] *= 1 - lost
        self.object_loss[active] += loss
        broken = (worse & (gone > self._m)).any(axis=1)
        self.object_broken[active] += loss * broken
        cause = np.where(broken, classes[rows], len(CAUSES) - 1).astype(np.intp)
        self.causes += np.bincount(cause, weights=loss, minlength=len(CAUSES))
        with np.errstate(divide="ignore"):  # the logarithm of a group surely lost is -infinity, and right
            untouched = np.log1p(-np.where(worse, self._group_losses[gone], 0.0)).sum(axis=1)
        anything = weight * self._all_left[active] * -np.expm1(untouched)
        self._all_left[active] *= np.exp(untouched)
        self.any_loss[active] += anything
        self.any_broken[active] += anything * broken
        self._biased[active[broken]] = False


def _estimate(losses: _Floats, broken: _Floats, episodes: float, weight_max: float) -> Estimate:
    """The probability within the model's years, out of what each simulated episode lost.
    `broken` are the losses by more than m fragments down: what rarely happens. Unreadable bits
    are not drawn but reckoned with in every trial, so seeing only those proves nothing."""
    trials = len(losses)
    mean = float(losses.mean())
    if not broken.any():
        # Rule of three: with none in n trials, 3/n bounds the chance at 95 %; a trial counts
        # for weight_max at most.
        bound = -math.expm1(-episodes * (mean + 3 * weight_max / trials))
        return Estimate(bound, 0.0, bound, False, 0.0)
    error = float(losses.std(ddof=1)) / math.sqrt(trials)
    low, middle, high = (
        -math.expm1(-episodes * max(chance, 0.0))
        for chance in (mean - CONFIDENCE * error, mean, mean + CONFIDENCE * error)
    )
    scaled = broken / broken.max()  # squares of what is tiny would vanish
    return Estimate(middle, low, high, True, float(scaled.sum() ** 2 / (scaled**2).sum()))
