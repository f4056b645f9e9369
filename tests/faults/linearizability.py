"""Whether a history of concurrent operations on one key could have been one after another.

Every call has the time it was sent and the time its answer came; it must have happened at
one moment between the two, and all calls, in the order of those moments, must have had
the answers they got. A call without an answer may have happened at any time after it was
sent, or never. The search is that of Wing and Gong, with the memory of Lowe: a set of
calls done and the state they led to are looked at once. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

State = bytes | None  # what the key holds; None: it is absent
NEVER = 1 << 62


class Impossible(Exception):
    """In this state the call would have been answered otherwise."""


@dataclass(frozen=True)
class Call:
    """`step` leads from the state before to the state after, or raises Impossible. Times are
    in ns of one clock; `answered` is NEVER without an answer. `text` is for people."""

    key: str
    text: str
    sent: int
    answered: int
    step: Callable[[State], State]


# -- steps: what a call does, given its answer -------------------------------------


def read(found: State) -> Callable[[State], State]:
    def step(state: State) -> State:
        if state != found:
            raise Impossible
        return state

    return step


def write(
    content: State, *, condition: Callable[[State], bool] = lambda state: True, happened: bool | None = True
) -> Callable[[State], State]:
    """Leaves `content` (None: a deletion) if the condition holds. `happened`: what was
    answered; None: nothing."""

    def step(state: State) -> State:
        if happened is not None and condition(state) != happened:
            raise Impossible
        return content if condition(state) else state

    return step


def take(found: State) -> Callable[[State], State]:
    """Moved away to a place of the caller's own, where it was `found`."""

    def step(state: State) -> State:
        if state is None or state != found:
            raise Impossible
        return None

    return step


def is_absent(state: State) -> bool:
    return state is None


def is_there(state: State) -> bool:
    return state is not None


def holds(content: State) -> Callable[[State], bool]:
    return lambda state: state is not None and state == content


# -- the search ------------------------------------------------------------------------


def violation(calls: Iterable[Call], initial: State = None) -> str | None:
    """None if every key's history could have been one after another; else the first that
    could not, in words."""
    by_key: defaultdict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_key[call.key].append(call)
    for key in sorted(by_key):
        history = sorted(by_key[key], key=lambda call: (call.sent, call.answered))
        best = _search(history, initial)
        if best is not None:
            return _explain(key, history, *best)
    return None


def _search(calls: Sequence[Call], initial: State) -> tuple[int, State] | None:
    """None if there is an order; else the furthest any got: (calls done, state)."""
    must = sum(1 << number for number, call in enumerate(calls) if call.answered < NEVER)
    waiting: list[tuple[int, State]] = [(0, initial)]
    seen = set(waiting)
    best, best_count = (0, initial), 0
    while waiting:
        done, state = waiting.pop()
        if done & must == must:
            return None
        if (count := (done & must).bit_count()) > best_count:
            best, best_count = (done, state), count
        for number in reversed(_next(calls, done)):
            try:
                after = (done | 1 << number, calls[number].step(state))
            except Impossible:
                continue
            if after not in seen:
                seen.add(after)
                waiting.append(after)
    return best


def _next(calls: Sequence[Call], done: int) -> list[int]:
    """Calls that may come next: sent before any other that is not done was answered."""
    found = []
    deadline = NEVER
    first = (~done & (done + 1)).bit_length() - 1  # the lowest number not done
    for number in range(first, len(calls)):
        if done >> number & 1:
            continue
        call = calls[number]
        if call.sent > deadline:
            break
        deadline = min(deadline, call.answered)
        found.append(number)
    return [number for number in found if calls[number].sent <= deadline]


def _explain(key: str, calls: Sequence[Call], done: int, state: State) -> str:
    start = calls[0].sent
    lines = [f"{key}: no order explains these answers; the furthest one leaves it {_show(state)}, and then:"]
    stuck = _next(calls, done)
    for number, call in enumerate(calls):
        if number > max(stuck, default=0) + 3 or number < min(stuck, default=0) - 25:
            continue
        mark = ">" if number in stuck else " " if done >> number & 1 else "?"
        answered = "…" if call.answered == NEVER else f"{(call.answered - start) / 1e6:.3f}"
        lines.append(f" {mark} {(call.sent - start) / 1e6:10.3f} to {answered:>10} ms  {call.text}")
    return "\n".join(lines)


def _show(state: State) -> str:
    return "absent" if state is None else f"{len(state)} bytes {state[:40]!r}"
