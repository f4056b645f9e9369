"""An assessment as a page for people and as JSON values. Pure."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from objfs.durability.assessment import Assessment, Exact
from objfs.durability.figures import down_seconds
from objfs.durability.monte_carlo import Estimate, Outcome
from objfs.durability.quantities import nines, show_chance, show_duration, show_size
from objfs.render import columns

_FIGURES = (
    ("afr", "disks that die in a year", show_chance),
    ("host_afr", "hosts lost for good in a year", show_chance),
    ("rack_afr", "racks lost for good in a year", show_chance),
    ("power_events", "power events a year, per zone", "{:.3g}".format),
    ("power_loss", "disks a power event takes", show_chance),
    ("ure", "bits that cannot be read", "{:.3g}".format),
    ("node_bytes", "stored on a node", show_size),
    ("detection", "a loss is noticed after", show_duration),
    ("replacement", "a disk is replaced after", show_duration),
    ("repair_rate", "fragments are rebuilt at", lambda amount: f"{show_size(amount)}/s"),
)


def render(assessment: Assessment) -> str:
    """The page `objfs durability` prints."""
    layout, figures = assessment.layout, assessment.figures
    years = f"{figures.years.amount:g} year" + ("" if figures.years.amount == 1 else "s")
    down = down_seconds(layout, figures)
    facts = [
        ("layout", _layout_line(assessment)),
        ("at risk", _copysets_line(assessment)),
        ("object", f"{show_size(figures.object_bytes.amount)}: {_stripes(assessment)}"),
        ("missing for", f"{show_duration(down)} after a loss, {_down_parts(assessment)}"),
    ]
    lines = [f"{name + ':':<15}{text}" for name, text in facts if text]
    lines += [f"{'note:':<15}{warning}" for warning in assessment.warnings]
    lines += ["", f"Within {years}:", "", columns(_method_rows(assessment)), ""]
    lines += [f"Mean time until a given object is lost, only disks failing: {_years(assessment.mean_years_to_loss)}"]
    if causes := _causes(assessment.correlated):
        lines += [f"The last blow, where failures are correlated: {causes}"]
    rows = [("FIGURE", "AMOUNT", "FROM")]
    for name, text, show in _FIGURES:
        figure = getattr(figures, name)
        used = name != "replacement" or layout.spare_nodes < 1
        rows.append((text, show(figure.amount), figure.source if used else f"{figure.source}, not needed: spare nodes"))
    return "\n".join([*lines, "", columns(rows)])


def as_json(assessment: Assessment) -> dict[str, Any]:
    layout, figures = assessment.layout, assessment.figures
    return {
        "layout": {
            "title": layout.title,
            "code": f"{layout.asked_k}+{layout.m}",
            "code_achieved": f"{layout.k}+{layout.m}",
            "nodes": [asdict(place) for place in layout.places],
            "devices": len(layout.devices),
            "groups": len(layout.groups),
            "copysets": layout.copysets,
        },
        "figures": {name: asdict(figure) for name, figure in vars(figures).items()},
        "missing_seconds": down_seconds(layout, figures),
        "years": figures.years.amount,
        "closed_form": _exact_json(assessment.closed_form, figures.objects.amount),
        "markov": {
            **_exact_json(assessment.markov, figures.objects.amount),
            "mean_years_to_loss": _finite(assessment.mean_years_to_loss),
        },
        "monte_carlo_independent": _outcome_json(assessment.independent, figures.objects.amount),
        "monte_carlo_correlated": _outcome_json(assessment.correlated, figures.objects.amount),
        "seed": assessment.seed,
        "warnings": assessment.warnings,
    }


def _layout_line(assessment: Assessment) -> str:
    layout = assessment.layout
    groups = "1 group of nodes" if len(layout.groups) == 1 else f"{len(layout.groups)} groups of nodes"
    return (
        f"{layout.title}, code {layout.k}+{layout.m}, {len(layout.places)} nodes on {len(layout.devices)} "
        f"device{'' if len(layout.devices) == 1 else 's'}; stripes lie on {groups}"
    )


def _copysets_line(assessment: Assessment) -> str:
    layout = assessment.layout
    copysets, size = layout.copysets, layout.m + 1
    if copysets is None or len(layout.devices) < len(layout.places):
        return ""  # too many to count, or nodes that are lost together anyway
    possible = math.comb(len(layout.places), size)
    return f"{size} nodes lost at once lose some stripes, in {copysets:,} of {possible:,} ways to choose them"


def _stripes(assessment: Assessment) -> str:
    model = assessment.model
    stripes = round(model.stripes_object * model.groups_object)
    where = "1 group" if model.groups_object == 1 else f"{model.groups_object} groups"
    return f"{stripes:,} stripe{'' if stripes == 1 else 's'} in {where}"


def _down_parts(assessment: Assessment) -> str:
    layout, figures = assessment.layout, assessment.figures
    parts = [f"{show_duration(figures.detection.amount)} to notice"]
    if layout.spare_nodes < 1:
        parts.append(f"{show_duration(figures.replacement.amount)} for a new disk")
    parts.append(f"{show_duration(figures.node_bytes.amount / figures.repair_rate.amount)} to rebuild")
    return ", ".join(parts)


def _method_rows(assessment: Assessment) -> list[tuple[str, ...]]:
    objects = assessment.figures.objects.amount
    rows: list[tuple[str, ...]] = [
        (
            "FAILURES",
            "METHOD",
            "AN OBJECT IS LOST",
            "95 % INTERVAL",
            "NINES",
            f"LOST OF {objects:,.0f}",
            "ANYTHING IS LOST",
        )
    ]
    for name, exact in (("closed form", assessment.closed_form), ("Markov chain", assessment.markov)):
        anything = f"{'≤ ' if exact.any_is_bound else ''}{_number(exact.any_lost)}"
        rows.append(("independent", name, *_cells(exact.object_lost, "", "-", objects), anything))
    for name, outcome in (("independent", assessment.independent), ("correlated", assessment.correlated)):
        lost, anything = outcome.object_lost, _estimate(outcome.any_lost)
        interval = f"{_number(lost.low)} to {_number(lost.high)}"
        rows.append(
            (
                name,
                "Monte Carlo",
                *_cells(lost.probability, "" if lost.seen else "≤ ", interval, objects),
                f"{anything} ({_number(outcome.any_lost.low)} to {_number(outcome.any_lost.high)})",
            )
        )
    return rows


def _cells(probability: float, sign: str, interval: str, objects: float) -> tuple[str, str, str, str]:
    good = "all" if probability <= 0 else f"{'≥ ' if sign else ''}{nines(probability):.1f}"
    return f"{sign}{_number(probability)}", interval, good, f"{sign}{_number(probability * objects)}"


def _estimate(estimate: Estimate) -> str:
    return f"{'' if estimate.seen else '≤ '}{_number(estimate.probability)}"


def _causes(outcome: Outcome) -> str:
    names = {"power": "power event", "unreadable": "unreadable bits"}
    shares = sorted(outcome.causes.items(), key=lambda cause: -cause[1])
    return ", ".join(f"{names.get(name, name)} {share:.1%}" for name, share in shares if share >= 0.0005)


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.2e}" if value < 0.001 or value >= 1e5 else f"{value:.3g}"


def _years(years: float) -> str:
    return "never" if math.isinf(years) else f"{_number(years)} years"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _exact_json(exact: Exact, objects: float) -> dict[str, Any]:
    return {
        "object_lost": exact.object_lost,
        "nines": _finite(nines(exact.object_lost)),
        "objects_lost": exact.object_lost * objects,
        "any_lost": exact.any_lost,
        "any_lost_is_bound": exact.any_is_bound,
    }


def _outcome_json(outcome: Outcome, objects: float) -> dict[str, Any]:
    lost = outcome.object_lost
    return {
        "object_lost": _estimate_json(lost),
        "nines": _finite(nines(lost.probability)),
        "objects_lost": lost.probability * objects,
        "any_lost": _estimate_json(outcome.any_lost),
        "causes": outcome.causes,
        "trials": outcome.trials,
    }


def _estimate_json(estimate: Estimate) -> dict[str, Any]:
    return {
        "probability": estimate.probability,
        "low": estimate.low,
        "high": estimate.high,
        "is_bound": not estimate.seen,
        "effective_trials": _finite(estimate.effective),
    }
