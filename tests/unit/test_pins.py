"""Pins: what they note, what others see of them, and what is left of ended processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.pins import Pins, held_chunks, living_processes, oldest_pin


class Condemned:
    """Plays the shared page."""

    def __init__(self) -> None:
        self.lsn = 0
        self.then: list[int] = []  # what later looks find

    def __call__(self) -> int:
        found = self.lsn
        if self.then:
            self.lsn = self.then.pop(0)
        return found


@pytest.fixture
def page() -> Condemned:
    return Condemned()


@pytest.fixture
def pins(tmp_path: Path, page: Condemned) -> Iterator[Pins]:
    made = Pins(tmp_path, page)
    yield made
    made.close()


def oldest(directory: Path) -> int | None:
    found = oldest_pin(directory)
    return None if found is None else found.lsn


def test_the_oldest_pin_is_seen_until_it_ends(tmp_path: Path, page: Condemned, pins: Pins) -> None:
    assert oldest(tmp_path) is None and not pins.active
    first = pins.take()
    page.lsn = 7
    second, third = pins.take(), pins.take()
    assert (first.lsn, second.lsn, oldest(tmp_path)) == (0, 7, 0)
    first.end()
    first.end()
    assert oldest(tmp_path) == 7 and pins.active
    second.end()
    assert oldest(tmp_path) == 7
    third.end()
    assert oldest(tmp_path) is None and not pins.active


def test_a_pin_taken_while_something_is_condemned_is_newer_than_that(
    tmp_path: Path, page: Condemned, pins: Pins
) -> None:
    page.then = [9]
    pin = pins.take()
    assert pin.lsn == 9 and oldest(tmp_path) == 9
    pin.end()
    assert oldest(tmp_path) is None


def test_the_oldest_of_all_processes_counts(tmp_path: Path, page: Condemned, pins: Pins) -> None:
    page.lsn = 5
    other = Pins(tmp_path, lambda: 3)
    assert living_processes(tmp_path) == 2
    with pins.hold(), other.hold():
        assert oldest(tmp_path) == 3
    other.close()
    assert living_processes(tmp_path) == 1


def test_held_chunks_are_those_of_the_last_call_until_the_process_ends(tmp_path: Path, pins: Pins) -> None:
    one, two = b"1" * 32, b"2" * 32
    assert held_chunks(tmp_path) == set()
    pins.keep([one])
    other = Pins(tmp_path, lambda: 0)
    other.keep([two])
    assert held_chunks(tmp_path) == {one, two}
    pins.keep([])
    assert held_chunks(tmp_path) == {two}
    other.close()
    assert held_chunks(tmp_path) == set()


def test_the_pins_of_a_killed_process_end_with_it(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from engine.pins import Pins\n"
        "pins = Pins(pathlib.Path(sys.argv[1]), lambda: 4)\n"
        "pin = pins.take()\n"
        "pins.keep([b'x' * 32])\n"
        "print('taken', flush=True)\n"
        "sys.stdin.read()\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"taken\n"
        found = oldest_pin(tmp_path)
        assert found is not None and (found.lsn, found.process_id) == (4, process.pid)
        assert held_chunks(tmp_path) == {b"x" * 32}
        process.kill()
        process.wait()
    assert oldest_pin(tmp_path) is None and held_chunks(tmp_path) == set()
    assert list((tmp_path / "pins").iterdir()) == []


def test_a_pin_that_outlives_the_store_ends_quietly(tmp_path: Path) -> None:
    made = Pins(tmp_path, lambda: 1)
    pin = made.take()
    made.close()
    pin.end()
    assert oldest_pin(tmp_path) is None
