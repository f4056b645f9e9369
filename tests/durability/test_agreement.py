"""Three ways to one number: where they must agree, and where they must not.

Stated tolerances, for disks that fail independently: closed form and Markov chain within 2 %
while repair takes under 1 % of the year and λT is under 1 %; Monte Carlo within its 95 %
interval widened to four standard errors, or 1 %.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise, product

import pytest
from plain_simulation import object_losses

from objfs.durability import closed_form, markov
from objfs.durability.figures import Model, make_figures, make_model, unreadable_losses
from objfs.durability.layout import Layout, Place, hypothetical_places, make_layout
from objfs.durability.monte_carlo import CONFIDENCE, Estimate, simulate
from objfs.durability.shocks import make_shocks

TOLERANCE = 0.02
TRIALS = 10_000
PLAIN_YEARS = 8_000


def hypothetical(k: int, m: int, nodes: int, domains: int | None = None) -> Layout:
    return make_layout(k, m, hypothetical_places(nodes, domains, []), "test")


def modelled(layout: Layout, **figures: float) -> Model:
    return make_model(layout, make_figures(figures))


def on_two_nodes_a_disk(k: int, m: int) -> Layout:
    places = [
        Place(f"n{index}", "", f"disk{index // 2}", "z", f"r{index // 2}", f"h{index // 2}") for index in range(k + m)
    ]
    return make_layout(k, m, places, "two directories a disk")


def agrees(estimate: Estimate, exact: float, errors: float = 4.0) -> bool:
    error = (estimate.high - estimate.low) / 2 / CONFIDENCE
    return abs(estimate.probability - exact) <= max(errors * error, 0.01 * exact)


@pytest.mark.parametrize("k, m, nodes", [(4, 2, 6), (1, 2, 3), (8, 3, 12), (10, 4, 14), (6, 3, 30), (2, 1, 3)])
@pytest.mark.parametrize(
    "figures",
    [{}, {"ure": 1e-13}, {"afr": 0.2, "repair_rate": 30e6}, {"repair_rate": 1e9, "detection": 30.0, "replacement": 60}],
    ids=["defaults", "unreadable bits", "bad disks", "fast repair"],
)
def test_all_three_agree_on_independent_failures(k: int, m: int, nodes: int, figures: dict[str, float]) -> None:
    layout = hypothetical(k, m, nodes)
    model = modelled(layout, **figures).independent()
    formula, chain = closed_form.object_probability(layout, model), markov.object_probability(layout, model)
    played = simulate(layout, model, TRIALS, seed=7)
    assert chain == pytest.approx(formula, rel=TOLERANCE)
    assert played.object_lost.seen and agrees(played.object_lost, formula)


@pytest.mark.parametrize("m", [2, 3])
def test_they_agree_where_directories_share_disks(m: int) -> None:
    layout = on_two_nodes_a_disk(4, m)
    model = modelled(layout).independent()
    formula, chain = closed_form.object_probability(layout, model), markov.object_probability(layout, model)
    assert chain == pytest.approx(formula, rel=TOLERANCE)
    assert agrees(simulate(layout, model, TRIALS, seed=3).object_lost, formula)


def test_they_agree_on_objects_of_many_stripes_over_several_groups() -> None:
    layout = hypothetical(4, 2, 12)
    model = modelled(layout, object_bytes=1e9, ure=1e-13).independent()
    assert model.groups_object == 4
    formula, chain = closed_form.object_probability(layout, model), markov.object_probability(layout, model)
    assert chain == pytest.approx(formula, rel=TOLERANCE)
    # Groups overlap: the same three nodes may break two of them, which the formula counts twice.
    played = simulate(layout, model, TRIALS, seed=3).object_lost
    assert 0.5 * formula < played.probability < formula


@pytest.mark.parametrize("ure", [0.0, 1e-15])
def test_they_agree_on_losing_anything_in_a_single_group(ure: float) -> None:
    layout = hypothetical(4, 2, 6)
    model = modelled(layout, ure=ure).independent()
    (formula, bound), (chain, _) = closed_form.any_probability(layout, model), markov.any_probability(layout, model)
    assert not bound
    assert chain == pytest.approx(formula, rel=TOLERANCE)
    assert agrees(simulate(layout, model, TRIALS, seed=5).any_lost, formula)


def test_losing_anything_counts_each_set_of_nodes_once() -> None:
    layout = hypothetical(4, 2, 12)
    model = modelled(layout, ure=0.0).independent()
    formula, bound = closed_form.any_probability(layout, model)
    sum_of_groups, chain_is_bound = markov.any_probability(layout, model)
    assert not bound and chain_is_bound
    assert agrees(simulate(layout, model, 4 * TRIALS, seed=5).any_lost, formula)
    assert sum_of_groups > 1.2 * formula


@pytest.mark.parametrize("n", [2, 5, 12])
def test_the_chain_has_the_textbook_mean_time_to_loss(n: int) -> None:
    """RAID 5 (Patterson, Gibson and Katz, 1988; exact form in Thomasian and Blaum, 2009)."""
    layout = hypothetical(n - 1, 1, n)
    model = modelled(layout, ure=0.0).independent()
    failing, repairing = model.disk_rate, 1 / model.down_years
    exact = ((2 * n - 1) * failing + repairing) / (n * (n - 1) * failing**2)
    assert markov.mean_years_to_loss([1] * n, 1, model, 1) == pytest.approx(exact, rel=1e-12)


def test_the_chain_keeps_its_digits_where_loss_is_all_but_impossible() -> None:
    layout = hypothetical(10, 10, 20)
    model = modelled(layout, afr=0.0001, detection=1.0, replacement=1.0, repair_rate=1e15, ure=0.0).independent()
    probability = markov.object_probability(layout, model)
    # By hand: the rate is n!/(n-m-1)!/m! λ^(m+1) T^m, the year being much longer than the repair.
    rate = math.factorial(20) / math.factorial(9) / math.factorial(10) * model.disk_rate**11 * model.down_years**10
    assert 0 < probability < 1e-100
    assert probability == pytest.approx(rate, rel=1e-4)


def test_the_chain_is_the_exponential_of_its_rates() -> None:
    layout = hypothetical(3, 2, 5)
    model = modelled(layout, afr=0.9, node_bytes=50e12, repair_rate=10e6).independent()
    rates = markov.transition_rates([1] * 5, 2, model, 1)
    # Euler's steps, so small that their error is below the tolerance.
    steps, state = 50_000, [1.0, 0.0, 0.0, 0.0]
    size = model.years / steps
    for _ in range(steps):
        flows = [[state[a] * float(rates[a, b]) * size for b in range(4)] for a in range(3)]
        state = [state[b] + sum(row[b] for row in flows) - (sum(flows[b]) if b < 3 else 0.0) for b in range(4)]
    assert markov.group_probability([1] * 5, 2, model, 1) == pytest.approx(state[3], rel=1e-3)


def test_unreadable_fragments_are_counted_one_by_one() -> None:
    n, m, unreadable = 5, 2, 0.3
    for down in (1, 2):
        by_hand = 0.0
        for outcome in product((False, True), repeat=n - down):
            if down + sum(outcome) > m:
                by_hand += math.prod(unreadable if bad else 1 - unreadable for bad in outcome)
        assert unreadable_losses(n, m, unreadable, 1)[down] == pytest.approx(by_hand)
        assert unreadable_losses(n, m, unreadable, 10)[down] == pytest.approx(1 - (1 - by_hand) ** 10)


def test_only_shocks_that_take_a_disk_keep_the_system_busy() -> None:
    layout = hypothetical(4, 2, 6, domains=3)
    shocks = make_shocks(layout, modelled(layout, power_events=2.0, power_loss=0.1, host_afr=0.2, rack_afr=0.1))
    disks, hosts, racks = (-math.log1p(-afr) for afr in (0.015, 0.2, 0.1))
    assert shocks.rate_with_loss == pytest.approx(6 * disks + 6 * hosts + 3 * racks + 2 * (1 - 0.9**6))


def test_it_agrees_with_the_plain_one_where_something_is_often_being_repaired() -> None:
    layout = hypothetical(2, 3, 8)
    model = modelled(layout, afr=0.9, ure=1e-8, detection=8 * 86400.0, years=10, power_events=0, host_afr=0, rack_afr=0)
    rate_in_repair = make_shocks(layout, model).rate_with_loss * model.down_years
    assert rate_in_repair > 0.4 and model.fragment_unreadable > 0.02
    tries = 600
    plain = object_losses(layout, model, tries, seed=4)
    played = simulate(layout, model, 40_000, seed=4).object_lost
    assert plain > 0.05
    assert played.probability == pytest.approx(plain, rel=4 / math.sqrt(plain * tries))


CORRELATED = {
    "host": {"host_afr": 0.3},
    "rack": {"rack_afr": 0.3},
    "power": {"power_events": 3.0, "power_loss": 0.1},
}


@cache
def played_plainly(cause: str) -> tuple[Layout, Model, float]:
    layout = hypothetical(2, 2, 6, domains=3)
    quiet = {"host_afr": 0.0, "rack_afr": 0.0, "power_events": 0.0}
    model = modelled(layout, **{"afr": 0.5, "ure": 0.0, "detection": 5 * 86400.0, **quiet, **CORRELATED[cause]})
    return layout, model, object_losses(layout, model, PLAIN_YEARS, seed=11)


@pytest.mark.parametrize("cause", CORRELATED)
@pytest.mark.parametrize("biased", [True, False])
def test_the_fast_simulation_agrees_with_the_plain_one(cause: str, biased: bool) -> None:
    layout, model, plain = played_plainly(cause)
    played = simulate(layout, model, 40_000, seed=12, biased=biased).object_lost
    # Groups of one year are not independent: at worst as good as one group a year.
    error = math.hypot(math.sqrt(plain / PLAIN_YEARS), (played.high - played.low) / 2 / CONFIDENCE)
    assert plain > 0.001
    assert abs(plain - played.probability) < 4 * error + 0.02 * plain


@pytest.mark.parametrize("cause", CORRELATED)
def test_failures_that_come_together_make_it_worse(cause: str) -> None:
    layout = hypothetical(4, 2, 6, domains=3)
    quiet = {"host_afr": 0.0, "rack_afr": 0.0, "power_events": 0.0}
    model = modelled(layout, **{**quiet, **CORRELATED[cause]})
    alone, together = (simulate(layout, each, TRIALS, seed=2).object_lost for each in (model.independent(), model))
    assert together.low > 1.5 * alone.high


def test_fewer_domains_are_worse() -> None:
    losses = []
    for domains in (6, 3, 2):
        layout = hypothetical(4, 2, 6, domains)
        losses.append(simulate(layout, modelled(layout, power_events=0.0), TRIALS, seed=2).object_lost)
    for apart, shared in pairwise(losses):
        assert shared.probability > apart.probability
    assert losses[2].low > 10 * losses[1].high  # two racks: losing one loses three of six fragments


def test_nothing_seen_is_a_bound_and_never_zero() -> None:
    layout = hypothetical(8, 4, 12)
    model = modelled(layout).independent()
    lost = simulate(layout, model, 1000, seed=1, biased=False).object_lost
    assert not lost.seen
    assert (lost.low, lost.high) == (0.0, lost.probability)
    assert lost.probability > closed_form.object_probability(layout, model)
    # Rule of three: 3 of 1,000 episodes, of which there are as many as disks fail in a year.
    assert lost.probability == pytest.approx(12 * model.disk_rate * 3 / 1000, rel=0.01)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    layout = hypothetical(4, 2, 6)
    model = modelled(layout).independent()
    truth = closed_form.object_probability(layout, model)
    inside = 0
    for seed in range(100):
        lost = simulate(layout, model, 2000, seed=seed).object_lost
        inside += lost.low <= truth <= lost.high
    assert inside >= 88  # binomial(100, 0.95) is below 88 once in 500


def test_the_same_seed_gives_the_same_answer() -> None:
    layout = hypothetical(4, 2, 8, domains=4)
    model = modelled(layout)
    first, again, other = (simulate(layout, model, 2000, seed=seed) for seed in (5, 5, 6))
    assert first == again != other


def test_where_nothing_fails_nothing_is_lost() -> None:
    layout = hypothetical(4, 2, 6)
    model = replace(modelled(layout, afr=0.0, power_events=0.0), host_rate=0.0, rack_rate=0.0)
    assert closed_form.object_probability(layout, model) == markov.object_probability(layout, model) == 0
    assert simulate(layout, model, 1000, seed=1).object_lost.probability == 0
    assert markov.mean_years_to_loss([1] * 6, 2, model, 1) == math.inf
