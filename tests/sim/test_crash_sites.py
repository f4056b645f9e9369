"""At every crash site the process ends, by kill -9 or with the power, and no promise is broken.

Each member of CrashSite has a scenario that certainly reaches it (scenarios.py); a new site
without one fails here.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.crash_sites import CrashSite
from sim.scenarios import SCENARIOS, crash
from sim.tables import TablesWorld

TIMES_MAX = 2
POWER_SEEDS = (1, 2)


@pytest.fixture
def folder() -> Iterator[Path]:
    shared = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix="objfs-crash-", dir=shared if shared.is_dir() else None))
    try:
        yield made
    finally:
        shutil.rmtree(made)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> TablesWorld:
    return TablesWorld(tmp_path_factory.mktemp("tables"))


OF_TABLES = [site for site in CrashSite if site.name.startswith("TABLES_")]
SITES = [site for site in CrashSite if site not in OF_TABLES]


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_a_process_killed_at_a_crash_site_breaks_no_promise(site: CrashSite, folder: Path) -> None:
    found = [scenario for scenario in SCENARIOS if site in scenario.sites]
    assert found, f"no scenario reaches {site.name}: add one to scenarios.py"
    for number, scenario in enumerate(found):
        for times in range(1, TIMES_MAX + 1 if number == 0 else 2):
            seed = POWER_SEEDS[-1] + times
            reached = crash(scenario, site, times, seed, folder / f"{scenario.name} {times}", power=False)
            assert reached or times > 1, f"{scenario.name} does not reach {site.name}"
            if not reached:
                break


@pytest.mark.parametrize("seed", POWER_SEEDS)
@pytest.mark.parametrize("site", SITES, ids=lambda site: site.name)
def test_a_power_cut_at_a_crash_site_breaks_no_promise(site: CrashSite, seed: int, folder: Path) -> None:
    found = [scenario for scenario in SCENARIOS if site in scenario.sites]
    for scenario in found if seed == POWER_SEEDS[0] else found[:1]:
        assert crash(scenario, site, 1, seed, folder / scenario.name, power=True)


@pytest.mark.parametrize("site", OF_TABLES, ids=lambda site: site.name)
def test_tables_left_at_a_crash_site_are_exact_again(site: CrashSite, tables: TablesWorld) -> None:
    assert tables.times(site) > 0, f"nothing reaches {site.name}"
    last = tables.times(site)
    for times in sorted({1, last}):
        assert tables.rows_after_crash(site, times) == tables.rows
    assert tables.rows_after_crash(site, last, tear=random.Random(1)) == tables.rows
