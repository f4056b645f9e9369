"""What the keys of one client may hold, given what it was answered.

A client works alone on its keys, one operation after another. An operation that was
acknowledged happened; one that was refused did not; one whose answer never came may
happen then or at any later time until every process of the server has ended, or never.
What was acknowledged without being made durable (a rename at the mount, say) survives
the end of processes, and a power cut only as a beginning of the history: nothing is kept
of what came after something that is lost.

So at any time there is a set of worlds (what each key holds) that may be true. A world
that is seen and not among them is a broken promise. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

World = frozenset[tuple[str, bytes]]
Effect = Callable[[dict[str, bytes]], bool]
"""Changes the world it is given; False if the operation is refused there."""

_State = tuple[World, frozenset[int]]  # with the unknown operations that did not happen yet


class Broken(AssertionError):
    """What was seen is not what was promised."""


@dataclass(frozen=True)
class Operation:
    """`text` is for people."""

    text: str
    effect: Effect

    def apply(self, world: World) -> World | None:
        changed = dict(world)
        return frozenset(changed.items()) if self.effect(changed) else None


class Expectation:
    def __init__(self, name: str) -> None:
        self.name = name
        self.history: list[str] = []
        self._now: set[_State] = {(frozenset(), frozenset())}
        self._safe = set(self._now)  # what a power cut may bring back
        self._unknown: list[tuple[Operation, ...]] = []

    # -- what was answered -----------------------------------------------------

    def acknowledged(self, operation: Operation, *, durable: bool) -> None:
        self._note("ok" if durable else "applied", operation)
        self._now = self._happened(self._now, operation, happened=True)
        self._safe = set(self._now) if durable else self._safe | self._now

    def refused(self, operation: Operation) -> None:
        self._note("refused", operation)
        self._now = self._happened(self._now, operation, happened=False)

    def unknown(self, operation: Operation, *others: Operation) -> None:
        """`others`: instead of the operation one of these may have happened."""
        self._note("unknown", operation)
        number = len(self._unknown)
        self._unknown.append((operation, *others))
        self._now = {(world, waiting | {number}) for world, waiting in self._now}
        self._safe = {(world, waiting | {number}) for world, waiting in self._safe} | self._now

    def made_durable(self) -> None:
        """All that was acknowledged is durable now (an fsync of a directory)."""
        self.history.append("ok      sync")
        self._safe = set(self._now)

    @property
    def unknowns(self) -> int:
        return len(self._unknown)

    # -- what became of the server ---------------------------------------------

    def stopped(self, *, power_cut: bool) -> None:
        """Every process of the server has ended: what has not happened never will."""
        self.history.append("--------" + (" power cut" if power_cut else " stopped"))
        states = self._closure(self._safe if power_cut else self._now)
        self._now = {(world, frozenset()) for world, _ in states}
        # Without a power cut nothing became durable either: the next cut may still take it.
        self._safe = set(self._now) if power_cut else {(world, frozenset()) for world, _ in self._closure(self._safe)}
        self._unknown = []

    def seen(self, contents: dict[str, bytes]) -> None:
        """Raises Broken. Only while nobody works on the keys and nothing is unknown."""
        assert not self._unknown, "what is still under way may change what is seen"
        world = frozenset(contents.items())
        if (world, frozenset()) not in self._now:
            raise Broken(self._explain(world))
        self._now = {(world, frozenset())}

    def seen_after_power_cut(self, contents: dict[str, bytes]) -> None:
        """The same; and what survived one power cut survives the next."""
        self.seen(contents)
        self._safe = set(self._now)

    # -- inside ----------------------------------------------------------------

    def _happened(self, states: Iterable[_State], operation: Operation, *, happened: bool) -> set[_State]:
        after: set[_State] = set()
        for world, waiting in self._closure(states):
            changed = operation.apply(world)
            if happened and changed is not None:
                after.add((changed, waiting))
            elif not happened and changed is None:
                after.add((world, waiting))
        if not after:
            verb = "was acknowledged" if happened else "was refused"
            raise Broken(f"{self.name}: {operation.text} {verb}, which no possible world allows\n{self._tail()}")
        return self._closure(after)

    def _closure(self, states: Iterable[_State]) -> set[_State]:
        """With every unknown operation happening now, or later, or never."""
        found: set[_State] = set()
        open_states = list(states)
        while open_states:
            state = open_states.pop()
            if state in found:
                continue
            found.add(state)
            world, waiting = state
            for number in waiting:
                for operation in self._unknown[number]:
                    changed = operation.apply(world)
                    open_states.append((world if changed is None else changed, waiting - {number}))
        return found

    def _note(self, outcome: str, operation: Operation) -> None:
        self.history.append(f"{outcome:<8}{operation.text}")

    def _explain(self, world: World) -> str:
        nearest = min((possible for possible, _ in self._now), key=lambda possible: len(possible ^ world))
        lines = [f"{self.name}: what is seen is in none of {len(self._now)} possible worlds; against the nearest:"]
        possible, found = dict(nearest), dict(world)
        for key in sorted(possible.keys() | found.keys()):
            if possible.get(key) != found.get(key):
                lines.append(f"  {key} is {show(found.get(key))}, not {show(possible.get(key))}")
        return "\n".join(lines) + "\n" + self._tail()

    def _tail(self) -> str:
        return "\n".join(["the last that happened:", *self.history[-25:]])


def show(content: bytes | None) -> str:
    if content is None:
        return "absent"
    return f"{len(content)} bytes {content[:12].hex()}…{content[-4:].hex()}"


# -- operations --------------------------------------------------------------------


def put(key: str, content: bytes, *, only_new: bool = False, only_over: bytes | None = None) -> Operation:
    """`only_new`: If-None-Match: *, or O_EXCL. `only_over`: If-Match of that content."""

    def effect(world: dict[str, bytes]) -> bool:
        if (only_new and key in world) or (only_over is not None and world.get(key) != only_over):
            return False
        world[key] = content
        return True

    condition = " if new" if only_new else " if it matches" if only_over is not None else ""
    return Operation(f"put {key} {show(content)}{condition}", effect)


def delete(key: str, *, must_exist: bool = False, only_over: bytes | None = None) -> Operation:
    def effect(world: dict[str, bytes]) -> bool:
        if (must_exist and key not in world) or (only_over is not None and world.get(key) != only_over):
            return False
        world.pop(key, None)
        return True

    return Operation(f"delete {key}", effect)


def rename(key: str, target: str, *, replace: bool = True) -> Operation:
    def effect(world: dict[str, bytes]) -> bool:
        if key not in world or (not replace and target in world):
            return False
        world[target] = world.pop(key)
        return True

    return Operation(f"rename {key} to {target}", effect)


def patch(key: str, offset: int | None, content: bytes) -> Operation:
    """Bytes laid over a file from `offset` on, or at its end."""

    def effect(world: dict[str, bytes]) -> bool:
        if key not in world:
            return False
        old = world[key]
        start = len(old) if offset is None else offset
        world[key] = old[:start] + bytes(max(start - len(old), 0)) + content + old[start + len(content) :]
        return True

    return Operation(f"patch {key} at {offset} {show(content)}", effect)
