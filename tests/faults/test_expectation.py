"""The judge of the kill rounds accepts what the promises allow, and nothing else."""

from __future__ import annotations

import pytest
from expectation import Broken, Expectation, delete, patch, put, rename


def expectation(**keys: bytes) -> Expectation:
    made = Expectation("client")
    for key, content in keys.items():
        made.acknowledged(put(key, content), durable=True)
    return made


def test_what_was_acknowledged_must_be_there_after_a_power_cut() -> None:
    client = expectation(a=b"1")
    client.acknowledged(put("a", b"2"), durable=True)
    client.stopped(power_cut=True)
    for wrong in ({}, {"a": b"1"}, {"a": b"2", "b": b"3"}):
        with pytest.raises(Broken):
            client.seen(wrong)
    client.seen({"a": b"2"})


def test_what_was_unknown_is_there_wholly_or_not_and_stays_so() -> None:
    for outcome in (b"1", b"2"):
        client = expectation(a=b"1")
        client.unknown(put("a", b"2"))
        client.stopped(power_cut=True)
        with pytest.raises(Broken):
            client.seen({"a": b"12"})
        client.seen_after_power_cut({"a": outcome})
        client.stopped(power_cut=True)
        with pytest.raises(Broken):
            client.seen({"a": b"1" if outcome == b"2" else b"2"})


def test_what_is_unknown_may_happen_after_what_came_later() -> None:
    for outcome in (b"2", b"3"):
        client = expectation(a=b"1")
        client.unknown(put("a", b"2"))
        client.acknowledged(put("a", b"3"), durable=True)
        client.stopped(power_cut=False)
        with pytest.raises(Broken):
            client.seen({"a": b"1"})
        client.seen({"a": outcome})


def test_what_was_only_applied_may_go_with_the_power_but_only_from_the_end() -> None:
    client = expectation(a=b"1")
    client.acknowledged(rename("a", "b"), durable=False)
    client.acknowledged(delete("b", must_exist=True), durable=False)
    client.stopped(power_cut=True)
    with pytest.raises(Broken):
        client.seen({"a": b"1", "b": b"1"})
    client.seen({"b": b"1"})


def test_what_was_only_applied_survives_the_end_of_the_processes() -> None:
    client = expectation(a=b"1")
    client.acknowledged(rename("a", "b"), durable=False)
    client.stopped(power_cut=False)
    with pytest.raises(Broken):
        client.seen({"a": b"1"})
    client.seen({"b": b"1"})
    client.stopped(power_cut=True)
    client.seen({"a": b"1"})


def test_a_later_sync_makes_what_was_applied_safe() -> None:
    client = expectation(a=b"1")
    client.acknowledged(rename("a", "b"), durable=False)
    client.made_durable()
    client.stopped(power_cut=True)
    with pytest.raises(Broken):
        client.seen({"a": b"1"})


def test_refusals_are_judged_too() -> None:
    client = expectation(a=b"1")
    client.refused(put("a", b"2", only_new=True))
    with pytest.raises(Broken):
        client.refused(put("b", b"2", only_new=True))
    client = expectation(a=b"1")
    with pytest.raises(Broken):
        client.acknowledged(put("a", b"2", only_over=b"0"), durable=True)


def test_an_unknown_condition_explains_a_refusal() -> None:
    client = expectation()
    client.unknown(put("a", b"1"))
    client.refused(put("a", b"2", only_new=True))
    client.stopped(power_cut=False)
    with pytest.raises(Broken):
        client.seen({})
    client.seen({"a": b"1"})


def test_a_rename_is_never_half() -> None:
    client = expectation(a=b"1", b=b"2")
    client.unknown(rename("a", "b"))
    client.stopped(power_cut=True)
    for wrong in ({"b": b"2"}, {"a": b"1"}, {"a": b"1", "b": b"1"}, {}):
        with pytest.raises(Broken):
            client.seen(wrong)
    client.seen({"b": b"1"})


def test_patches() -> None:
    client = expectation(a=b"12345")
    client.acknowledged(patch("a", 1, b"xx"), durable=True)
    client.acknowledged(patch("a", None, b"6"), durable=True)
    client.stopped(power_cut=True)
    client.seen({"a": b"1xx456"})
