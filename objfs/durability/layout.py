"""A layout: a code, nodes with what they share, and the groups of nodes stripes are laid on.

Groups come from the store's own placement, so the numbers are about where stripes really
go. Pure: reading a store is at_hand.py's work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import comb

from engine.errors import StoreError
from engine.placement import choose_nodes
from engine.types import NodeEntry

NODES_MAX = 256  # the choice of groups grows with the cube of the nodes
COPYSETS_MAX = 2_000_000  # sets of m+1 nodes that are counted; beyond, a bound is given
LEVELS = ("zone", "rack", "host")


class LayoutImpossible(StoreError):
    """The layout cannot hold a stripe, or is too large to compute."""


@dataclass(frozen=True)
class Place:
    """A node and what it shares. Nodes with the same `device` are one disk; nodes with the
    same (zone, rack, host) prefix fail together at that level. `domain` is what placement
    sees; the levels are filled in where it says nothing."""

    node_id: str
    domain: str
    device: str
    zone: str
    rack: str
    host: str

    def level(self, name: str) -> str:
        return str(getattr(self, name))


@dataclass(frozen=True)
class Layout:
    k: int  # what placement achieves, which may be less than asked
    m: int
    asked_k: int
    places: tuple[Place, ...]
    groups: tuple[tuple[int, ...], ...]  # each: the places one stripe is laid on
    title: str
    notes: tuple[str, ...] = ()  # warnings that only who made the layout can know

    @property
    def n(self) -> int:
        return self.k + self.m

    @property
    def spare_nodes(self) -> int:
        """Nodes a lost fragment can be rebuilt on without a new disk."""
        return len(self.places) - self.n

    @cached_property
    def devices(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(place.device for place in self.places))

    def group_weights(self, group: Sequence[int]) -> tuple[int, ...]:
        """How many fragments of a stripe each of the group's devices holds, largest first."""
        counts = Counter(self.places[index].device for index in group)
        return tuple(sorted(counts.values(), reverse=True))

    @cached_property
    def copysets(self) -> int | None:
        """How many distinct sets of m+1 nodes hold m+1 fragments of some stripe: losing one
        such set at once loses content. None if there are too many to count."""
        size = self.m + 1
        if len(self.groups) * comb(self.n, size) > COPYSETS_MAX:
            return None
        return len({chosen for group in self.groups for chosen in combinations(sorted(group), size)})


def make_layout(k: int, m: int, places: Sequence[Place], title: str, notes: Iterable[str] = ()) -> Layout:
    """The layout placement makes of these nodes. Raises LayoutImpossible."""
    if len(places) > NODES_MAX:
        raise LayoutImpossible(f"{len(places)} nodes are more than the {NODES_MAX} this can compute; ask for fewer")
    if len(places) < m + 1:
        raise LayoutImpossible(f"code {k}+{m} needs at least {m + 1} nodes and there are {len(places)}; add nodes")
    entries = [NodeEntry(place.node_id, "", place.domain) for place in places]
    index_of = {place.node_id: index for index, place in enumerate(places)}
    groups: dict[tuple[int, ...], None] = {}
    achieved = k
    for rotation in range(len(places)):
        achieved, chosen = choose_nodes(entries, k, m, rotation)
        groups[tuple(sorted(index_of[entry.node_id] for entry in chosen))] = None
    return Layout(achieved, m, k, tuple(places), tuple(groups), title, tuple(notes))


def hypothetical_places(nodes: int, domains: int | None, named: Sequence[str]) -> list[Place]:
    """Places of a layout that does not exist. `domains` deals the nodes to that many racks;
    `named` gives each node its zone/rack/host. A level nothing is said of is the node's own."""
    if domains is not None:
        named = [f"site/rack{index % domains + 1}/host{index + 1}" for index in range(nodes)]
    places = []
    for index in range(nodes):
        domain = named[index] if named else ""
        parts = [part for part in domain.split("/") if part]
        node_id = f"node{index + 1}"
        zone = parts[0] if parts else "site"
        rack = "/".join(parts[:2]) if len(parts) > 1 else f"{zone}/~{node_id}"
        host = "/".join(parts) if len(parts) > 2 else f"{rack}/~{node_id}"
        places.append(Place(node_id, domain, node_id, zone, rack, host))
    return places


def warnings(layout: Layout) -> list[str]:
    """Where the layout makes the numbers fiction, one line each."""
    found = list(layout.notes)
    code = f"{layout.asked_k}+{layout.m}"
    if layout.k < layout.asked_k:
        found.append(
            f"not enough nodes: code {code} needs {layout.asked_k + layout.m} and there are {len(layout.places)}; "
            f"stripes are laid as {layout.k}+{layout.m}"
        )
    reported = layout.m
    # From the narrowest: what shares a host shares its rack too, so a wider level is only
    # worth a line where more fragments meet in it.
    for level in ("device", *reversed(LEVELS)):
        most = _most_shared(layout, level)
        if most <= reported or (level == "zone" and _one_zone(layout)):
            continue
        reported = most
        if level == "device" and len(layout.devices) == 1:
            found.append(
                f"all {len(layout.places)} nodes are on one device: if it fails, all content is lost; "
                f"code {code} cannot help"
            )
        else:
            found.append(
                f"{most} of {layout.n} fragments of a stripe are in one {level}: losing it loses content, "
                f"code {code} bears the loss of {layout.m}"
            )
    return found


def _most_shared(layout: Layout, level: str) -> int:
    return max(max(Counter(layout.places[index].level(level) for index in group).values()) for group in layout.groups)


def _one_zone(layout: Layout) -> bool:
    """One zone for everything is usual where no zones are told apart; no line for that."""
    return len({place.zone for place in layout.places}) == 1
