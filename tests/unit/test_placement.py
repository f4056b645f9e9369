"""Nodes for a segment: m never shrinks, domains are kept apart where they can be."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import WritesStopped
from engine.nodes.descriptor import StoreDescriptor
from engine.nodes.memory import MemoryNode
from engine.placement import choose_nodes, layout_warnings
from engine.types import NodeEntry


def entries(*domains: str) -> list[NodeEntry]:
    return [NodeEntry(f"n{number}", f"/n{number}", domain) for number, domain in enumerate(domains)]


@pytest.mark.parametrize("count,k", [(8, 4), (6, 4), (5, 3), (4, 2), (3, 1)])
def test_k_shrinks_and_m_stays(count: int, k: int) -> None:
    found, chosen = choose_nodes(entries(*[""] * count), 4, 2)
    assert found == k and len({node.node_id for node in chosen}) == k + 2


def test_below_m_plus_one_writes_stop_and_the_nodes_are_named() -> None:
    with pytest.raises(WritesStopped, match="n0, n1"):
        choose_nodes(entries("", ""), 4, 2)
    with pytest.raises(WritesStopped, match="none"):
        choose_nodes([], 4, 2)


def test_rotation_spreads_the_first_fragment() -> None:
    first = Counter(choose_nodes(entries(*[""] * 6), 4, 2, turn)[1][0].node_id for turn in range(60))
    assert set(first.values()) == {10}


def test_no_more_than_m_in_a_rack_when_there_are_enough() -> None:
    nodes = entries(*["z/a"] * 4, *["z/b"] * 2, *["z/c"] * 2)
    for turn in range(8):
        racks = Counter(node.domain for node in choose_nodes(nodes, 4, 2, turn)[1])
        assert max(racks.values()) <= 2


def test_a_layout_that_cannot_separate_still_gets_written() -> None:
    k, chosen = choose_nodes(entries(*["z/a"] * 5, "z/b"), 4, 2)
    assert k == 4 and len(chosen) == 6


domain = st.sampled_from(["", "z1", "z1/r1", "z1/r1/h1", "z1/r2/h1", "z2/r1/h1", "z2/r1/h2", "z3", "z3/r1/h9"])


@given(st.lists(domain, min_size=3, max_size=14), st.integers(0, 100))
def test_any_layout_gives_distinct_nodes(domains: list[str], turn: int) -> None:
    k, chosen = choose_nodes(entries(*domains), 4, 2, turn)
    assert k == min(4, len(domains) - 2)
    assert len({node.node_id for node in chosen}) == len(chosen) == k + 2


def test_one_device_is_told() -> None:
    nodes = [MemoryNode(f"n{number}") for number in range(6)]
    descriptor = StoreDescriptor(store_id="s", k=4, m=2)
    assert layout_warnings(descriptor, nodes) == []
    for node in nodes:
        node.device = 0x801
    assert "one device (8:1)" in layout_warnings(descriptor, nodes)[0]
    for number, node in enumerate(nodes[3:]):
        node.device = 0x900 + number
    assert "3 of 6 nodes" in layout_warnings(descriptor, nodes)[0]
    nodes[0].device = 0x990
    assert layout_warnings(descriptor, nodes) == []
