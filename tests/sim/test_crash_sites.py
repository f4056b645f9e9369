"""At every crash site the process ends, by kill -9 or with the power, and no promise is broken.

Each member of CrashSite has a scenario that certainly reaches it (scenarios.py); a new site
without one fails here.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.crash_sites import CrashSite
from sim.scenarios import SCENARIOS, crash

TIMES_MAX = 3
POWER_SEEDS = (1, 2, 3)


@pytest.fixture
def folder() -> Iterator[Path]:
    shared = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="objfs-crash-", dir=shared if shared.is_dir() else None))
    try:
        yield made
    finally:
        shutil.rmtree(made)


SITES = [site for site in CrashSite if not site.name.startswith("TABLES_")]


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_a_process_killed_at_a_crash_site_breaks_no_promise(site: CrashSite, folder: Path) -> None:
    found = [scenario for scenario in SCENARIOS if site in scenario.sites]
    assert found, f"no scenario reaches {site.name}: add one to scenarios.py"
    for scenario in found:
        for times in range(1, TIMES_MAX + 1):
            reached = crash(scenario, site, times, times, folder / f"{scenario.name} {times}", power=False)
            assert reached or times > 1, f"{scenario.name} does not reach {site.name}"
            if not reached:
                break


@pytest.mark.parametrize("seed", POWER_SEEDS)
@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_a_power_cut_at_a_crash_site_breaks_no_promise(site: CrashSite, seed: int, folder: Path) -> None:
    for scenario in SCENARIOS:
        if site in scenario.sites:
            assert crash(scenario, site, 1, seed, folder / scenario.name, power=True)
