"""Hypothesis writes scripts for a small store and shrinks the ones that break a promise.

Where a world of seeds wanders far, a script is short: every line means something in every
state, so that leaving lines out leaves a script.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.care.checkpoint import checkpoint
from engine.care.collect import collect
from engine.crash_sites import CrashSite
from engine.store import Store
from sim.world import World

KINDS = ("put", "put", "rewrite", "copy", "delete", "delete_version", "rename", "rename_directory", "link", "set_tags")
LINES = st.one_of(
    st.tuples(st.just("clients"), st.lists(st.sampled_from(KINDS), min_size=1, max_size=4)),
    st.tuples(st.just("crash at"), st.sampled_from(list(CrashSite))),
    st.tuples(st.just("crash in"), st.integers(1, 40)),
    st.tuples(st.just("end"), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from((0.5, 3.0, 45.0))),
    st.tuples(st.just("fault"), st.none()),
    st.tuples(st.just("compact"), st.none()),
    st.tuples(st.just("checkpoint"), st.none()),
)


async def _compact(store: Store) -> object:
    return await collect(store.parts, compact=True, threshold=1.0)


async def _checkpoint(store: Store) -> object:
    return await checkpoint(store.parts, force=True)


class Script(World):
    """A world that plays given lines instead of throwing dice for them."""

    def __init__(self, seed: int, folder: Path, lines: list[tuple[str, object]]) -> None:
        super().__init__(seed, folder, len(lines) + 1)
        self.lines = list(lines)

    async def _step(self, store: Store) -> bool:
        if not self.lines:
            return False
        what, argument = self.lines.pop(0)
        process = self.machine.process
        match what:
            case "clients":
                kinds = [getattr(self.clients, kind) for kind in argument]  # type: ignore[attr-defined]
                await self._play(store, [make(self.model) for make in kinds])
            case "crash at":
                process.crash_at = (argument, 1)  # type: ignore[assignment]
            case "crash in":
                process.crash_in = argument  # type: ignore[assignment]
            case "end":
                return False if argument else process.end()
            case "wait":
                await self._wait(argument)  # type: ignore[arg-type]
            case "fault":
                await self.faults.change(store, self.tell)
            case "compact":
                await self._play(store, [], (what, _compact))
            case "checkpoint":
                await self._play(store, [], (what, _checkpoint))
        await self.faults.note_clean(store)
        await self._check(store, thorough=not self.lines)
        return True


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 20), st.lists(LINES, min_size=3, max_size=25))
def test_no_script_breaks_a_promise(seed: int, lines: list[tuple[str, object]]) -> None:
    shared = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="objfs-script-", dir=shared if shared.is_dir() else None))
    try:
        Script(seed, folder, lines).play()
    finally:
        shutil.rmtree(folder)
