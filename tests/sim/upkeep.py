"""What takes care of a store in a world: checkpoint, scrub, repair, collection, compaction,
moves between nodes. Each runs beside clients and may be the last thing a process does.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

from engine.care.checkpoint import checkpoint
from engine.care.collect import collect
from engine.care.narrowing import narrow
from engine.care.nodes import add_node, drain_node, rebalance, remove_node, undrain_node
from engine.care.repair import repair
from engine.care.scrub import scrub
from engine.errors import NodeFull, NodeUnavailable, StoreError, StoreInUse, WritesStopped
from engine.store import Store
from engine.types import NodeState
from sim.checks import Violation
from sim.faults import Faults

NODES_MAX = 9

Care = Callable[[Store], Awaitable[object]]


class Upkeep:
    def __init__(self, dice: random.Random, faults: Faults, m: int) -> None:
        self.dice = dice
        self.faults = faults
        self.m = m

    def next(self, store: Store) -> tuple[str, Care]:
        """A piece of care, and what it is called."""
        kinds: list[tuple[int, str, Care]] = [
            (5, "collect", lambda store: collect(store.parts)),
            (6, "compact", self._compact),
            (5, "checkpoint", self._checkpoint),
            (4, "scrub", lambda store: scrub(store.parts, seal=self.dice.random() < 0.5)),
            (2, "repair", lambda store: repair(store.parts, grace_seconds=self.dice.choice((0.0, 900.0)))),
            (1, "narrow", lambda store: narrow(store.parts)),
            (1, "rebalance", lambda store: rebalance(store.parts)),
            (1, "add a node", self._add),
            (2, "drain, remove or undrain a node", self._drain),
        ]
        (chosen,) = self.dice.choices(kinds, [weight for weight, _, _ in kinds])
        return chosen[1:]

    async def run(self, store: Store, name: str, care: Care) -> str:
        """Raises Violation for an error nothing explains."""
        try:
            result = await care(store)
        except (StoreInUse, NodeFull, WritesStopped, NodeUnavailable) as error:
            if self.faults.suspects or isinstance(error, StoreInUse) or self.faults.excuse(error):
                return f"{name}: {type(error).__name__}: {error}"
            raise Violation(f"{name} with nothing wrong: {type(error).__name__}: {error}") from error
        except StoreError as error:
            if type(error) is StoreError:
                return f"{name} is refused: {error}"
            raise Violation(f"{name}: {type(error).__name__}: {error}") from error
        return f"{name}: {result}"

    async def _compact(self, store: Store) -> object:
        return await collect(store.parts, compact=True, threshold=self.dice.choice((0.5, 0.8, 1.0)))

    async def _checkpoint(self, store: Store) -> object:
        return await checkpoint(store.parts, force=True, retention_days=self.dice.choice((0.0, 30.0)))

    async def _add(self, store: Store) -> object:
        if len(store.keymap.nodes()) >= NODES_MAX:
            return None
        number = 1 + max(int(place.path.rpartition("/")[2]) for place in store.keymap.nodes())
        return await add_node(store.parts, str(self.faults.machine.folder / "nodes" / str(number)))

    async def _drain(self, store: Store) -> object:
        """Only healthy nodes, and never so many that faults may take what is left."""
        places = store.keymap.nodes()
        draining = [place for place in places if place.state is NodeState.DRAINING]
        if draining and self.dice.random() < 0.3:
            return await undrain_node(store.parts, draining[0].node_id)
        if draining:
            return await self._remove(store, draining[0].node_id, draining[0].path)
        usable = [place for place in places if place.state is NodeState.HEALTHY]
        steady = [place for place in usable if place.path not in self.faults.suspects]
        if len(usable) <= 2 * self.m + 2 or not steady:
            return None
        place = self.dice.choice(steady)
        work = await drain_node(store.parts, place.node_id)
        return work if self.dice.random() < 0.5 else await self._remove(store, place.node_id, place.path)

    async def _remove(self, store: Store, node_id: str, path: str) -> object:
        work = await remove_node(store.parts, node_id)
        self.faults.forget(path)
        return work
