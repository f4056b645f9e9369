"""When a mount may let the kernel keep what it tells it."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

pytest.importorskip("pyfuse3")

from engine import limits
from objfs.mount.state import MountState


@pytest.fixture
def state() -> MountState:
    process = f"{os.getpid()}-0"
    index = SimpleNamespace(awaits=lambda _: True)
    store: Any = SimpleNamespace(keymap=None, pins=SimpleNamespace(name=process), index=index)
    state = MountState(store)
    state.followed, state.alive_at = True, time.monotonic()
    return state


def test_a_mount_whose_confirmations_are_awaited(state: MountState) -> None:
    assert state.may_be_kept()
    cast(Any, state.store.index).awaits = lambda _: False
    assert not state.may_be_kept()


def test_not_one_that_does_not_follow(state: MountState) -> None:
    state.followed = False
    assert not state.may_be_kept()


def test_not_one_that_stood_still(state: MountState) -> None:
    state.alive_at -= limits.LEASE_STALL_SECONDS
    assert not state.may_be_kept()


def test_not_one_that_the_kernel_holds_up(state: MountState) -> None:
    state.behind_since = time.monotonic()
    assert state.may_be_kept()
    state.behind_since -= limits.LEASE_STALL_SECONDS
    assert not state.may_be_kept()


def test_nobody_is_given_up_while_the_kernel_may_keep_something() -> None:
    """What was told just before a mount stood still, or was held up, has run out by then."""
    assert limits.LEASE_WAIT_SECONDS >= limits.LEASE_SECONDS + limits.LEASE_STALL_SECONDS
