"""The Markov chain: one stripe group as an absorbing chain of how many devices are down.

A state says how many devices of each weight (fragments of a stripe they hold) are down; one
more failure that takes more than m fragments, or meets an unreadable one it cannot do
without, is absorbed as loss. Times to failure and to repair are exponential, repairs run side
by side. With one fragment per device this is the birth-death chain with m+1 states.

Nothing is subtracted anywhere, so that a probability of 1e-30 is as exact as one of 0.1:
exp(At) by uniformisation over a short time and repeated squaring of matrices without
negative entries; the mean time to loss by elimination after Grassmann, Taksar and Heyman.
Pure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from objfs.durability.closed_form import object_from_groups
from objfs.durability.figures import Model, unreadable_losses
from objfs.durability.layout import Layout

_Matrix = NDArray[np.float64]


def group_probability(weights: Sequence[int], m: int, model: Model, stripes: float) -> float:
    """The chance that one of `stripes` on devices holding `weights` fragments each is lost."""
    rates = transition_rates(weights, m, model, stripes)
    states = len(rates)
    leaving = rates.sum(axis=1)
    fastest = max(float(leaving.max()), 1e-300)
    squarings = max(math.ceil(math.log2(max(fastest * model.years, 1e-300))), 0)
    step = model.years / 2**squarings
    # One row and column more for loss, which is never left.
    jump = np.zeros((states + 1, states + 1))
    jump[:states] = rates / fastest
    jump[np.arange(states), np.arange(states)] += 1 - leaving / fastest
    jump[states, states] = 1.0
    transitions = _uniformised(jump, fastest * step)
    for _ in range(squarings):
        transitions = transitions @ transitions
    return min(float(transitions[0, states]), 1.0)


def object_probability(layout: Layout, model: Model) -> float:
    """The chance that an object is lost; the mean over where it may lie. An object over
    several groups is lost with any of them, taken as independent chains."""
    return object_from_groups(layout, model, lambda weights, stripes: _as_rate(weights, layout.m, model, stripes))


def any_probability(layout: Layout, model: Model) -> tuple[float, bool]:
    """(chance that anything stored is lost, whether that is only an upper bound): exact for
    one group, else the sum over groups, which share nodes."""
    rates = [_as_rate(layout.group_weights(group), layout.m, model, model.stripes_group) for group in layout.groups]
    return -math.expm1(-sum(rates) * model.years), len(rates) > 1


def mean_years_to_loss(weights: Sequence[int], m: int, model: Model, stripes: float) -> float:
    """Mean time from all devices good to loss; infinite if nothing can be lost."""
    rates = transition_rates(weights, m, model, stripes)
    rewards = np.ones(len(rates))  # time counts one a year in every state
    for state in range(len(rates) - 1, 0, -1):
        leaving = float(rates[state, :state].sum() + rates[state, -1])
        for before in range(state):
            share = float(rates[before, state]) / leaving
            rates[before, :state] += share * rates[state, :state]
            rates[before, -1] += share * rates[state, -1]
            rewards[before] += share * rewards[state]
            rates[before, before] = 0.0
    lost = float(rates[0, -1])
    return float(rewards[0]) / lost if lost > 0 else math.inf


def transition_rates(weights: Sequence[int], m: int, model: Model, stripes: float) -> _Matrix:
    """Rates per year, one row per state; the last column is loss, the diagonal is zero. State 0
    is everything good."""
    classes = sorted(Counter(weights).items())
    states = [
        down
        for down in product(*(range(devices + 1) for _, devices in classes))
        if sum(number * weight for number, (weight, _) in zip(down, classes, strict=True)) <= m
    ]
    index_of = {down: index for index, down in enumerate(states)}
    unreadable = unreadable_losses(sum(weights), m, model.fragment_unreadable, stripes)
    rates = np.zeros((len(states), len(states) + 1))
    for index, down in enumerate(states):
        gone = sum(number * weight for number, (weight, _) in zip(down, classes, strict=True))
        for place, (weight, devices) in enumerate(classes):
            failing = (devices - down[place]) * model.disk_rate
            lost = 1.0 if gone + weight > m else unreadable[gone + weight]
            rates[index, -1] += failing * lost
            if gone + weight <= m and failing > 0:
                rates[index, index_of[_with(down, place, 1)]] += failing * (1 - lost)
            if down[place]:
                rates[index, index_of[_with(down, place, -1)]] += down[place] / model.down_years
    return rates


def _as_rate(weights: Sequence[int], m: int, model: Model, stripes: float) -> float:
    """The constant rate that gives the chain's probability over the model's years."""
    probability = group_probability(weights, m, model, stripes)
    return math.inf if probability >= 1 else -math.log1p(-probability) / model.years


def _with(down: tuple[int, ...], place: int, change: int) -> tuple[int, ...]:
    return (*down[:place], down[place] + change, *down[place + 1 :])


def _uniformised(jump: _Matrix, mean_jumps: float) -> _Matrix:
    """The mixture of powers of `jump` with Poisson weights; `mean_jumps` is at most 1."""
    assert mean_jumps <= 1.0 + 1e-9
    weight = math.exp(-mean_jumps)
    power = np.eye(len(jump))
    mixture = weight * power
    # Far enough that loss, which may take as many jumps as there are states, keeps its digits.
    for jumps in range(1, len(jump) + 40):
        power = power @ jump
        weight *= mean_jumps / jumps
        mixture = mixture + weight * power
    return mixture
