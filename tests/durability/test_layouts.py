"""What layouts, warnings and the exact ways promise."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objfs.durability import closed_form, markov, quantities
from objfs.durability.figures import down_seconds, make_figures, make_model
from objfs.durability.layout import LayoutImpossible, Place, hypothetical_places, make_layout, warnings

CODES = st.tuples(st.integers(1, 12), st.integers(1, 5))
QUICK = settings(max_examples=40, deadline=None)


def loss(k: int, m: int, **figures: float) -> tuple[float, float]:
    """Of one stripe on k+m nodes and a spare: by closed form, by Markov chain."""
    layout = make_layout(k, m, hypothetical_places(k + m + 1, None, []), "test")
    model = make_model(layout, make_figures({"ure": 0.0, **figures})).independent()
    return closed_form.object_probability(layout, model), markov.object_probability(layout, model)


@QUICK
@given(CODES, st.floats(0.001, 0.5))
def test_one_more_parity_fragment_is_safer(code: tuple[int, int], afr: float) -> None:
    k, m = code
    for less, more in zip(loss(k, m, afr=afr), loss(k, m + 1, afr=afr), strict=True):
        assert 0 < more < less < 1


@QUICK
@given(CODES, st.floats(1e6, 1e9), st.floats(1.05, 100))
def test_faster_repair_is_safer(code: tuple[int, int], rate: float, faster: float) -> None:
    for slow, fast in zip(loss(*code, repair_rate=rate), loss(*code, repair_rate=rate * faster), strict=True):
        assert fast < slow


@QUICK
@given(CODES, st.floats(0.001, 0.4), st.floats(1.05, 2))
def test_worse_disks_are_less_safe(code: tuple[int, int], afr: float, worse: float) -> None:
    for good, bad in zip(loss(*code, afr=afr), loss(*code, afr=afr * worse), strict=True):
        assert good < bad


@QUICK
@given(CODES, st.floats(1e-16, 1e-13))
def test_unreadable_bits_make_it_worse(code: tuple[int, int], ure: float) -> None:
    for readable, unreadable in zip(loss(*code), loss(*code, ure=ure, object_bytes=100e6), strict=True):
        assert unreadable > readable


@QUICK
@given(CODES)
def test_longer_is_less_safe(code: tuple[int, int]) -> None:
    for year, decade in zip(loss(*code), loss(*code, years=10), strict=True):
        assert decade == pytest.approx(10 * year, rel=0.05) and decade > year


def test_groups_are_where_placement_puts_stripes() -> None:
    layout = make_layout(4, 2, hypothetical_places(9, 3, []), "test")
    assert len(layout.groups) == 9
    for group in layout.groups:
        assert max(Counter(layout.places[index].rack for index in group).values()) == 2


def test_copysets_count_each_set_once() -> None:
    assert make_layout(4, 2, hypothetical_places(6, None, []), "test").copysets == 20
    seven = make_layout(4, 2, hypothetical_places(7, None, []), "test")
    assert seven.copysets == 35  # any three of seven lie in some six of them


def test_a_spare_node_saves_the_wait_for_a_disk() -> None:
    figures = make_figures({})
    full, spare = (make_layout(4, 2, hypothetical_places(nodes, None, []), "test") for nodes in (6, 7))
    assert down_seconds(full, figures) - down_seconds(spare, figures) == figures.replacement.amount


def test_given_wins_over_measured_over_counted_over_assumed() -> None:
    figures = make_figures({"afr": 0.5}, {"afr": 0.4, "detection": 9.0, "node_bytes": 7.0}, {"node_bytes": 8.0})
    assert (figures.afr.amount, figures.afr.source) == (0.5, "given")
    assert (figures.detection.amount, figures.detection.source) == (9.0, "measured")
    assert (figures.node_bytes.amount, figures.node_bytes.source) == (7.0, "measured")
    assert figures.repair_rate.source == "assumed"


def test_a_sound_layout_has_no_warning() -> None:
    assert warnings(make_layout(4, 2, hypothetical_places(6, 3, []), "test")) == []


def test_one_device_is_fiction() -> None:
    places = [replace(place, device="sda") for place in hypothetical_places(6, 3, [])]
    found = warnings(make_layout(4, 2, places, "test"))
    assert found == ["all 6 nodes are on one device: if it fails, all content is lost; code 4+2 cannot help"]


@pytest.mark.parametrize(
    "domains, level",
    [
        (["a/r1/h1"] * 3 + ["b/r2/h2", "b/r2/h3", "c/r3/h4"], "host"),
        (["a/r1"] * 3 + ["b/r2", "b/r2", "c/r3"], "rack"),
        (["a"] * 3 + ["b", "b", "c"], "zone"),
    ],
)
def test_more_than_m_fragments_in_a_domain_are_told(domains: list[str], level: str) -> None:
    (found,) = warnings(make_layout(4, 2, hypothetical_places(6, None, domains), "test"))
    assert f"3 of 6 fragments of a stripe are in one {level}" in found


def test_each_wider_level_is_told_only_if_more_meets_there() -> None:
    domains = ["a/r1/h1"] * 3 + ["a/r1/h2", "b/r2/h3", "b/r2/h4"]
    found = warnings(make_layout(4, 2, hypothetical_places(6, None, domains), "test"))
    assert [line.split(":")[0] for line in found] == [
        "3 of 6 fragments of a stripe are in one host",
        "4 of 6 fragments of a stripe are in one rack",
    ]


def test_too_few_nodes_narrow_stripes_and_are_told() -> None:
    layout = make_layout(4, 2, hypothetical_places(4, None, []), "test")
    assert (layout.k, layout.m) == (2, 2)
    assert "not enough nodes: code 4+2 needs 6 and there are 4; stripes are laid as 2+2" in warnings(layout)


@pytest.mark.parametrize("nodes", [2, 257])
def test_impossible_layouts_are_refused(nodes: int) -> None:
    with pytest.raises(LayoutImpossible, match=str(nodes)):
        make_layout(4, 2, hypothetical_places(nodes, None, []), "test")


def test_levels_nothing_is_said_of_are_the_nodes_own() -> None:
    first, second = hypothetical_places(2, None, ["a", "a"])
    assert first.zone == second.zone
    assert isinstance(first, Place) and first.rack != second.rack and first.host != second.host


@pytest.mark.parametrize(
    "kind, text, value",
    [
        ("size", "4T", 4 * 10**12),
        ("size", "64KiB", 65536),
        ("size", "100MB", 10**8),
        ("size", "512", 512),
        ("duration", "90s", 90),
        ("duration", "1.5h", 5400),
        ("duration", "2d", 172800),
        ("chance", "1.5%", 0.015),
        ("chance", "0.015", 0.015),
        ("chance", "1e-15", 1e-15),
        ("amount", "0.5", 0.5),
        ("count", "12", 12),
    ],
)
def test_quantities_are_read(kind: str, text: str, value: float) -> None:
    assert getattr(quantities, kind)(text) == pytest.approx(value)


@pytest.mark.parametrize(
    "kind, text",
    [
        *(("size", text) for text in ("", "0", "-1", "4X", "T", "4 T", "1e99", "nan", "inf", "4kb", "٤T")),
        *(("duration", text) for text in ("", "5", "0s", "1y", "-1h", "h", "1h30m")),
        *(("chance", text) for text in ("", "100%", "1", "-1%", "1.5 %", "2x", "nan")),
        *(("amount", text) for text in ("", "5%", "-1", "1e999")),
        *(("count", text) for text in ("", "0", "-1", "1.5", "9" * 5000)),
        *(("years", text) for text in ("0", "1001")),
        *(("trials", text) for text in ("99", "10000001")),
        *(("seed", text) for text in ("", "-1", "x", "9" * 19)),
    ],
)
def test_what_is_no_quantity_is_refused(kind: str, text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        getattr(quantities, kind)(text)
