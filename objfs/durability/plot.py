"""The curve of loss over repair time, drawn as PNG or in characters.

The drawing libraries are imported only when a plot is asked for: they are slow to load.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from objfs.durability.assessment import Assessment, CurvePoint
from objfs.durability.layout import LayoutImpossible
from objfs.durability.monte_carlo import Estimate
from objfs.durability.quantities import show_duration

_HOUR = 3600.0
_BRAILLE_SPACE = "\u2800"


def write_png(path: Path, assessment: Assessment, points: Sequence[CurvePoint]) -> None:
    """Raises OSError, and LayoutImpossible if nothing can be lost at all."""
    from matplotlib.figure import Figure

    _require_losses(points)
    figure = Figure(figsize=(11, 5), dpi=120, layout="constrained")
    axes, causes = figure.subplots(1, 2, width_ratios=(3, 1))
    hours = [point.down_seconds / _HOUR for point in points]
    axes.plot(hours, [point.closed_form for point in points], "-", color="tab:blue", label="independent: closed form")
    axes.plot(hours, [point.markov for point in points], "--", color="tab:orange", label="independent: Markov chain")
    for name, marker, line, colour, select in (
        ("independent: Monte Carlo", "o", "none", "tab:green", lambda point: point.independent),
        ("correlated: Monte Carlo", "s", "-", "tab:red", lambda point: point.correlated),
    ):
        seen = _estimates(points, select)
        axes.errorbar(
            [seconds / _HOUR for seconds, _ in seen],
            [estimate.probability for _, estimate in seen],
            yerr=(
                [estimate.probability - estimate.low for _, estimate in seen],
                [estimate.high - estimate.probability for _, estimate in seen],
            ),
            fmt=marker,
            color=colour,
            linestyle=line,
            capsize=3,
            label=f"{name} (95 %)",
        )
    here = assessment.model.down_years * 365.25 * 24
    axes.axvline(here, color="grey", linestyle=":", label=f"this layout: {show_duration(here * _HOUR)}")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="hours a lost node's fragments are missing",
        ylabel=f"chance that an object is lost in {assessment.figures.years.amount:g} year(s)",
        title=_title(assessment),
    )
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize="small")
    shares = {name: share for name, share in assessment.correlated.causes.items() if share > 0}
    causes.barh(list(shares), [share * 100 for share in shares.values()], color="tab:red")
    causes.set(xlabel="% of objects lost", title="the last blow")
    figure.savefig(path, format="png")


def terminal_chart(assessment: Assessment, points: Sequence[CurvePoint], width: int = 72) -> str:
    """The same curves in braille characters, with a legend. Raises LayoutImpossible."""
    import plotille

    _require_losses(points)
    figure = plotille.Figure()
    figure.width, figure.height = width, 18
    figure.color_mode = "names"
    figure.with_colors = False
    figure.origin = False
    figure.x_label, figure.y_label = "hours missing", "loss"
    figure.register_label_formatter(float, _power_of_ten)
    figure.plot(*_logarithms([(point.down_seconds, point.markov) for point in points]), label="independent: Markov")
    for name, marker, select in (
        ("independent: Monte Carlo", "o", lambda point: point.independent),
        ("correlated: Monte Carlo", "x", lambda point: point.correlated),
    ):
        seen = [(seconds, estimate.probability) for seconds, estimate in _estimates(points, select)]
        figure.scatter(*_logarithms(seen), marker=marker, label=name)
    drawn = figure.show(legend=True).replace(_BRAILLE_SPACE, " ")
    return "\n".join([_title(assessment), *(line.rstrip() for line in drawn.splitlines())])


def _require_losses(points: Sequence[CurvePoint]) -> None:
    if not any(point.closed_form > 0 or (point.correlated and point.correlated.probability > 0) for point in points):
        raise LayoutImpossible("there is nothing to plot: with these failure rates nothing is ever lost")


def _estimates(
    points: Sequence[CurvePoint], select: Callable[[CurvePoint], Estimate | None]
) -> list[tuple[float, Estimate]]:
    found = [(point.down_seconds, select(point)) for point in points]
    return [(seconds, estimate) for seconds, estimate in found if estimate is not None and estimate.probability > 0]


def _logarithms(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    positive = [(math.log10(seconds / _HOUR), math.log10(loss)) for seconds, loss in points if loss > 0]
    return [x for x, _ in positive], [y for _, y in positive]


def _power_of_ten(exponent: float, chars: int, delta: float, left: bool = False) -> str:
    """A tick of a logarithmic axis, in the form plotille asks its formatters for."""
    amount = 10**exponent
    text = f"{amount:,.0f}" if 100 <= amount < 1e6 else f"{amount:.2g}"
    return text.ljust(chars) if left else text.rjust(chars)


def _title(assessment: Assessment) -> str:
    layout = assessment.layout
    return f"{layout.title}: {layout.k}+{layout.m} on {len(layout.places)} nodes"
