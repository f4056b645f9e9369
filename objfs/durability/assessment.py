"""All three ways over one layout, side by side, with what they rest on. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from objfs.durability import closed_form, markov
from objfs.durability.figures import SECONDS_YEAR, Figures, Model, down_seconds, make_model
from objfs.durability.layout import Layout, LayoutImpossible, warnings
from objfs.durability.monte_carlo import Estimate, Outcome, simulate
from objfs.durability.quantities import show_duration, show_size

EFFECTIVE_MIN = 30  # below so many equally weighted losses an interval is not to be trusted
CURVE_FACTORS = tuple(2.0**power for power in range(-6, 7, 2))  # times the repair takes, for the plot
SCRUB_SECONDS_MAX = 60 * 86400.0  # a scrub that takes longer leaves rot too long for --ure to hold


@dataclass(frozen=True)
class Exact:
    """What a formula says; `any_is_bound`: the chance that anything is lost is at most that."""

    object_lost: float
    any_lost: float
    any_is_bound: bool


@dataclass(frozen=True)
class Assessment:
    layout: Layout
    figures: Figures
    model: Model
    closed_form: Exact
    markov: Exact
    mean_years_to_loss: float  # of one object's stripes in one group, disks alone failing
    independent: Outcome
    correlated: Outcome
    warnings: list[str]
    seed: int


@dataclass(frozen=True)
class CurvePoint:
    down_seconds: float
    closed_form: float
    markov: float
    independent: Estimate | None  # None: too many failures in one repair to simulate
    correlated: Estimate | None


def assess(
    layout: Layout, figures: Figures, trials: int, seed: int, scrub_bytes_per_second: float | None = None
) -> Assessment:
    """Raises LayoutImpossible."""
    model = make_model(layout, figures)
    alone = model.independent()
    independent, correlated = simulate(layout, alone, trials, seed), simulate(layout, model, trials, seed)
    return Assessment(
        layout,
        figures,
        model,
        Exact(closed_form.object_probability(layout, alone), *closed_form.any_probability(layout, alone)),
        Exact(markov.object_probability(layout, alone), *markov.any_probability(layout, alone)),
        markov.mean_years_to_loss(layout.group_weights(layout.groups[0]), layout.m, alone, model.stripes_object),
        independent,
        correlated,
        [
            *warnings(layout),
            *_figure_warnings(layout, figures, scrub_bytes_per_second),
            *_trial_warnings(independent, correlated),
        ],
        seed,
    )


def curve(layout: Layout, figures: Figures, trials: int, seed: int) -> list[CurvePoint]:
    """How the chance to lose an object depends on how long fragments are missing."""
    base = make_model(layout, figures)
    points = []
    for factor in CURVE_FACTORS:
        model = replace(base, down_years=base.down_years * factor)
        alone = model.independent()
        points.append(
            CurvePoint(
                model.down_years * SECONDS_YEAR,
                closed_form.object_probability(layout, alone),
                markov.object_probability(layout, alone),
                _simulated(layout, alone, trials, seed),
                _simulated(layout, model, trials, seed),
            )
        )
    return points


def _simulated(layout: Layout, model: Model, trials: int, seed: int) -> Estimate | None:
    try:
        return simulate(layout, model, trials, seed).object_lost
    except LayoutImpossible:
        return None


def _figure_warnings(layout: Layout, figures: Figures, scrub_bytes_per_second: float | None) -> list[str]:
    found = []
    unknown = [
        text
        for figure, text in (
            (figures.repair_rate, f"{show_size(figures.repair_rate.amount)}/s to repair"),
            (figures.detection, f"{show_duration(figures.detection.amount)} to notice"),
        )
        if figure.source == "assumed"
    ]
    if unknown:
        found.append(f"repair was not measured on this store; assumed are {' and '.join(unknown)}")
    if layout.spare_nodes < 1 and figures.replacement.source == "assumed":
        found.append(
            f"there is no spare node to rebuild on: that a person replaces a disk within "
            f"{show_duration(figures.replacement.amount)} is assumed"
        )
    if scrub_bytes_per_second:
        seconds = figures.node_bytes.amount / scrub_bytes_per_second
        if seconds > SCRUB_SECONDS_MAX:
            found.append(
                f"a scrub takes {show_duration(seconds)} at the rate measured: unreadable fragments gather "
                "meanwhile, more than --ure says"
            )
    if down_seconds(layout, figures) > figures.years.amount * SECONDS_YEAR:
        found.append("a repair takes longer than the time asked about: the numbers mean little")
    return found


def _trial_warnings(*outcomes: Outcome) -> list[str]:
    thin = [outcome for outcome in outcomes if outcome.object_lost.effective < EFFECTIVE_MIN]
    return ["Monte Carlo saw too few losses to be precise; raise --trials"] if thin else []
