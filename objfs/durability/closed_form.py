"""The closed form: the chance that a stripe is lost, from first principles in one formula.

Devices fail independently and each is down a share q = λT/(1+λT) of the time, whatever the
distribution of T. A stripe is lost when one more device fails while the others down
already hold so many fragments that more than m are gone, or when a fragment a rebuild
needs turns out unreadable. The rate of such failures, over all devices and all states of
the others, gives P = 1 - exp(-rate · years). Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from objfs.durability.figures import Model, unreadable_losses
from objfs.durability.layout import Layout

BOUND_TOLERANCE = 0.01  # of the chance of any loss that may be counted twice before it is called a bound


def loss_rate(weights: Sequence[int], m: int, model: Model, stripes: float) -> float:
    """Losses per year of `stripes` laid on devices that hold `weights` fragments of each."""
    n = sum(weights)
    q = model.disk_rate * model.down_years
    q /= 1 + q
    unreadable = unreadable_losses(n, m, model.fragment_unreadable, stripes)
    rate = 0.0
    for index, weight in enumerate(weights):
        others = _down_distribution([*weights[:index], *weights[index + 1 :]], q, m)
        for down, chance in enumerate(others):
            after = down + weight
            lost = 1.0 if after > m else unreadable[after]
            rate += model.disk_rate * (1 - q) * chance * lost
    return rate


def group_probability(weights: Sequence[int], m: int, model: Model, stripes: float) -> float:
    return -math.expm1(-loss_rate(weights, m, model, stripes) * model.years)


def object_probability(layout: Layout, model: Model) -> float:
    """The chance that an object is lost; the mean over where it may lie."""
    return object_from_groups(layout, model, lambda weights, stripes: loss_rate(weights, layout.m, model, stripes))


def any_probability(layout: Layout, model: Model) -> tuple[float, bool]:
    """(chance that anything stored is lost, whether that is only an upper bound)."""
    rates = [loss_rate(layout.group_weights(group), layout.m, model, model.stripes_group) for group in layout.groups]
    if len(rates) == 1:
        return -math.expm1(-rates[0] * model.years), False
    copysets = layout.copysets if len(layout.devices) == len(layout.places) else None
    if copysets is None:
        # Groups share nodes: adding their rates counts some losses more than once.
        return -math.expm1(-sum(rates) * model.years), True
    q = model.disk_rate * model.down_years
    together = copysets * (layout.m + 1) * model.disk_rate * (q / (1 + q)) ** layout.m
    nodes_only = [
        loss_rate(layout.group_weights(group), layout.m, _readable(model), model.stripes_group)
        for group in layout.groups
    ]
    # One failure can leave several groups at risk: their unreadable stripes may go together.
    unreadable = sum(rates) - sum(nodes_only)
    return -math.expm1(-(together + unreadable) * model.years), unreadable > BOUND_TOLERANCE * together


def object_from_groups(layout: Layout, model: Model, rate: Callable[[Sequence[int], float], float]) -> float:
    """Mean chance over objects that start in each group, given a group's rate of loss."""
    known: dict[tuple[int, ...], float] = {}
    by_group = []
    for group in layout.groups:
        weights = layout.group_weights(group)
        if weights not in known:
            known[weights] = rate(weights, model.stripes_object)
        by_group.append(known[weights])
    spans = [
        sum(by_group[(start + step) % len(by_group)] for step in range(model.groups_object))
        for start in range(len(by_group))
    ]
    return sum(-math.expm1(-span * model.years) for span in spans) / len(spans)


def _down_distribution(weights: Sequence[int], q: float, m: int) -> list[float]:
    """By number of fragments down, 0 to m: how likely, when each device is down with q."""
    chances = [1.0] + [0.0] * m
    for weight in weights:
        chances = [
            chances[down] * (1 - q) + (chances[down - weight] * q if down >= weight else 0.0) for down in range(m + 1)
        ]
    return chances


def _readable(model: Model) -> Model:
    return Model(**{**model.__dict__, "fragment_unreadable": 0.0})
