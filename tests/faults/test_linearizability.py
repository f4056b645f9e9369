"""The checker accepts what could have been one after another and rejects all else."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import pytest
from linearizability import NEVER, Call, Impossible, State, holds, is_absent, is_there, read, take, violation, write


def call(sent: int, answered: int, step: Callable[[State], State], key: str = "k") -> Call:
    return Call(key, f"{sent}-{answered}", sent, answered, step)


A, B = b"a", b"b"

ACCEPTED = {
    "nothing": [],
    "one after another": [call(1, 2, write(A)), call(3, 4, read(A)), call(5, 6, write(None)), call(7, 8, read(None))],
    "a read beside a write sees either": [call(1, 9, write(A)), call(2, 3, read(None)), call(4, 5, read(A))],
    "two writes beside each other in either order": [
        call(1, 9, write(A)),
        call(1, 9, write(B)),
        call(10, 11, read(A)),
    ],
    "an unanswered write happens late": [
        call(1, NEVER, write(A, happened=None)),
        call(2, 3, read(None)),
        call(4, 5, write(B)),
        call(6, 7, read(B)),
        call(8, 9, read(A)),
    ],
    "an unanswered write never happens": [call(1, NEVER, write(A, happened=None)), call(2, 3, read(None))],
    "an unanswered condition did not hold": [
        call(1, 2, write(B)),
        call(3, NEVER, write(A, condition=is_absent, happened=None)),
        call(4, 5, read(B)),
    ],
    "one of two creators wins": [
        call(1, 9, write(A, condition=is_absent)),
        call(1, 9, write(B, condition=is_absent, happened=False)),
        call(10, 11, read(A)),
    ],
    "a matching condition holds, then the other's does not": [
        call(1, 2, write(A)),
        call(3, 9, write(B, condition=holds(A))),
        call(3, 9, write(b"c", condition=holds(A), happened=False)),
        call(10, 11, read(B)),
    ],
    "keys do not know each other": [call(1, 2, write(A)), call(3, 4, read(None), key="other")],
    "taken once": [
        call(1, 2, write(A)),
        call(3, 9, take(A)),
        call(3, 9, write(None, condition=is_there, happened=False)),
    ],
}

REJECTED = {
    "a read of what was never written": [call(1, 2, read(A))],
    "a stale read": [call(1, 2, write(A)), call(3, 4, write(B)), call(5, 6, read(A))],
    "a lost write": [call(1, 2, write(A)), call(3, 4, read(None))],
    "new, then old again": [call(1, 99, write(A)), call(2, 3, read(A)), call(4, 5, read(None))],
    "two readers disagree about the order": [
        call(1, 9, write(A)),
        call(1, 9, write(B)),
        call(10, 11, read(A)),
        call(12, 13, read(B)),
    ],
    "two creators both win": [
        call(1, 9, write(A, condition=is_absent)),
        call(1, 9, write(B, condition=is_absent)),
    ],
    "a creator loses against nobody": [call(1, 2, write(A, condition=is_absent, happened=False))],
    "two replace the same version": [
        call(1, 2, write(A)),
        call(3, 9, write(B, condition=holds(A))),
        call(3, 9, write(b"c", condition=holds(A))),
    ],
    "an unanswered write happens before it was sent": [
        call(1, 2, read(A)),
        call(3, NEVER, write(A, happened=None)),
    ],
    "an unanswered write happens twice": [
        call(1, NEVER, write(A, happened=None)),
        call(2, 3, read(A)),
        call(4, 5, write(B)),
        call(6, 7, read(B)),
        call(8, 9, read(A)),
    ],
    "taken twice": [call(1, 2, write(A)), call(3, 9, take(A)), call(3, 9, take(A))],
    "deleted twice, though it must be there": [
        call(1, 2, write(A)),
        call(3, 9, write(None, condition=is_there)),
        call(3, 9, write(None, condition=is_there)),
    ],
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_could_have_been_is_accepted(name: str) -> None:
    assert violation(ACCEPTED[name]) is None


@pytest.mark.parametrize("name", REJECTED)
def test_what_could_not_have_been_is_rejected(name: str) -> None:
    assert violation(REJECTED[name]) is not None


def random_history(rng: random.Random, count: int, lies: bool) -> list[Call]:
    """Calls that happened at one moment each; with `lies`, one answer may be wrong."""
    state: State = None
    calls = []
    liar = rng.randrange(count) if lies else -1
    for number in range(count):
        moment = 10 * number
        sent, answered = moment - rng.randint(0, 25), moment + rng.randint(1, 25)
        if rng.random() < 0.15:
            answered = NEVER
        content = bytes([65 + rng.randrange(3)])
        condition = rng.choice((lambda state: True, is_absent, is_there, holds(b"A")))
        if rng.random() < 0.4:
            found = state if number != liar else content
            step = read(found) if answered < NEVER else lambda state: state
        else:
            happened = condition(state)
            told = None if answered == NEVER else happened if number != liar else not happened
            step = write(content, condition=condition, happened=told)
            state = content if happened else state
        calls.append(call(sent, answered, step))
    return calls


def could_have_been(calls: Sequence[Call]) -> bool:
    """By trying every order of every choice of the unanswered."""
    unanswered = [each for each in calls if each.answered == NEVER]
    answered = [each for each in calls if each.answered < NEVER]
    for count in range(len(unanswered) + 1):
        for chosen in itertools.combinations(unanswered, count):
            for order in itertools.permutations([*answered, *chosen]):
                if any(late.answered < early.sent for early, late in itertools.combinations(order, 2)):
                    continue
                state: State = None
                try:
                    for each in order:
                        state = each.step(state)
                except Impossible:
                    continue
                return True
    return False


def test_the_checker_agrees_with_trying_every_order() -> None:
    rng = random.Random(7)
    verdicts = []
    for _ in range(250):
        history = random_history(rng, rng.randint(1, 6), lies=True)
        verdicts.append(could_have_been(history))
        assert (violation(history) is None) == verdicts[-1], violation(history)
    assert 50 < sum(verdicts) < 230, "the histories should be of both kinds"


def test_long_true_histories_are_accepted() -> None:
    rng = random.Random(8)
    for _ in range(20):
        assert violation(random_history(rng, 150, lies=False)) is None


def test_the_explanation_names_the_calls_that_do_not_fit() -> None:
    found = violation([call(1, 2, write(A)), call(3, 4, read(B))])
    assert found is not None and "> " in found and "3-4" in found
