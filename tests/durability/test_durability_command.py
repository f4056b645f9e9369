"""What a person typing `objfs durability` gets, and the figures measured beside it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from engine.errors import StoreError
from engine.measured import MEASURED_NAME, Measured, note, read_measured
from engine.store import init_store
from objfs import cli
from objfs.durability.at_hand import disk_of, read_layout

QUICK = ("--trials", "2000")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    init_store(tmp_path / "store", k=2, m=1, nodes=None)
    return tmp_path / "store"


def answered(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    assert cli.main(["durability", *map(str, arguments), *QUICK, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    try:
        code = cli.main(["durability", *map(str, arguments), *QUICK])
    except SystemExit as error:
        code = error.code  # type: ignore[assignment]
    output = capsys.readouterr()
    assert code in (1, 2) and output.out == ""
    assert output.err.count("\n") == 1
    return output.err


def rows(page: str) -> list[list[str]]:
    return [re.split(r"  +", line) for line in page.splitlines()]


def test_a_hypothetical_layout_is_a_table_of_four_answers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    typed = ["durability", "--data", str(absent), "--code", "8+3", "--nodes", "12", "--domains", "4", *QUICK]
    assert cli.main(typed) == 0
    page = capsys.readouterr().out
    methods = [row[:2] for row in rows(page) if row[0] in ("independent", "correlated")]
    assert methods == [
        ["independent", "closed form"],
        ["independent", "Markov chain"],
        ["independent", "Monte Carlo"],
        ["correlated", "Monte Carlo"],
    ]
    assert "code 8+3, 12 nodes" in page and "assumed" in page
    assert not absent.exists()


def test_json_holds_what_the_table_shows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = answered(capsys, "--data", tmp_path, "--nodes", "6", "--objects", "1000", "--years", "2", "--afr", "3%")
    assert found["figures"]["afr"] == {"amount": 0.03, "source": "given"}
    assert found["years"] == 2
    formula, chain = found["closed_form"], found["markov"]
    assert formula["objects_lost"] == pytest.approx(1000 * formula["object_lost"])
    assert chain["object_lost"] == pytest.approx(formula["object_lost"], rel=0.02)
    for name in ("monte_carlo_independent", "monte_carlo_correlated"):
        lost = found[name]["object_lost"]
        assert lost["low"] <= lost["probability"] <= lost["high"]
        assert sum(found[name]["causes"].values()) == pytest.approx(1)
    assert found["monte_carlo_correlated"]["object_lost"]["low"] > formula["object_lost"]


def test_the_store_at_hand_on_one_device_is_told(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    found = answered(capsys, "--data", data)
    assert (found["layout"]["code"], found["layout"]["devices"]) == ("2+1", 1)
    assert any("all 3 nodes are on one device" in warning for warning in found["warnings"])
    # One disk holds everything: an object is lost as often as a disk dies.
    assert found["closed_form"]["object_lost"] == pytest.approx(0.015, rel=0.01)
    assert found["figures"]["node_bytes"]["source"] == "counted"


def test_nodes_on_two_devices_are_told_apart(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        if Path(memory).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("/dev/shm and the temporary directory are one device")
        paths = [str(Path(memory) / "a"), str(tmp_path / "b"), str(tmp_path / "c")]
        init_store(tmp_path / "store", k=2, m=1, nodes=[(path, "") for path in paths])
        layout = read_layout(tmp_path / "store")
    assert len(layout.devices) == 2
    assert layout.group_weights(layout.groups[0]) == (2, 1)


def test_partitions_of_one_disk_are_one_device(tmp_path: Path) -> None:
    for name, number in (("sda", "8:0"), ("sda/sda1", "8:1"), ("sda/sda2", "8:2")):
        (tmp_path / "devices" / name).mkdir(parents=True)
        (tmp_path / "devices" / name / "dev").write_text(number + "\n")
        if name != "sda":
            (tmp_path / "devices" / name / "partition").write_text(name[-1])
        (tmp_path / number).symlink_to(tmp_path / "devices" / name)
    found = [disk_of(os.makedev(major, minor), tmp_path) for major, minor in ((8, 0), (8, 1), (8, 2), (0, 42))]
    assert found == ["8:0", "8:0", "8:0", "0:42"]


def test_a_lost_node_is_told_and_nothing_is_made_in_its_place(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    node = Path(read_store_paths(data)[1])
    (node / "objfs-node.json").unlink()
    before = sorted(node.iterdir())
    found = answered(capsys, "--data", data)
    assert any("1 of 3 nodes cannot be read now" in warning for warning in found["warnings"])
    assert sorted(node.iterdir()) == before


def read_store_paths(data: Path) -> list[str]:
    return [node["path"] for node in json.loads((data / "store.json").read_text())["nodes"]]


def test_it_changes_nothing(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    def state() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in data.rglob("*")}

    before = state()
    answered(capsys, "--data", data)
    assert state() == before


def test_it_answers_beside_the_process_that_owns_the_store(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdin is not None and owner.stdout is not None
        assert owner.stdout.readline() == "open\n"
        assert answered(capsys, "--data", data)["layout"]["groups"] == 1
        owner.stdin.close()
    assert owner.returncode == 0


_HOLD = """
import sys
from pathlib import Path
import anyio
from engine.store import open_store
async def main():
    async with open_store(Path(sys.argv[1])):
        print("open", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)
anyio.run(main)
"""


def test_measured_figures_are_used_and_named(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    note(data, detection_seconds=12.5, repair_bytes_per_second=2e8, stored_bytes_per_node=10**12)
    found = answered(capsys, "--data", data)["figures"]
    assert found["detection"] == {"amount": 12.5, "source": "measured"}
    assert found["repair_rate"] == {"amount": 2e8, "source": "measured"}
    assert found["node_bytes"] == {"amount": 1e12, "source": "measured"}
    # Another layout is repaired at this store's rate, but does not hold what this one holds.
    other = answered(capsys, "--data", data, "--nodes", "6")["figures"]
    assert (other["repair_rate"]["source"], other["node_bytes"]["source"]) == ("measured", "assumed")


def test_what_is_assumed_about_repair_is_told_until_measured(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    def told() -> bool:
        return any("repair was not measured" in warning for warning in answered(capsys, "--data", data)["warnings"])

    assert told()
    note(data, detection_seconds=1.0)
    assert told()
    note(data, repair_bytes_per_second=1e8)
    assert not told()


def test_a_slow_scrub_is_told(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    note(data, scrub_bytes_per_second=1e6, stored_bytes_per_node=10**13)
    assert any("a scrub takes 116 d" in warning for warning in answered(capsys, "--data", data)["warnings"])


def test_png_and_terminal_show_the_curve(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from matplotlib.image import imread

    target = tmp_path / "curve.png"
    typed = ["durability", "--data", str(tmp_path), "--nodes", "6", "--plot", str(target), "--chart", *QUICK]
    assert cli.main(typed) == 0
    chart = capsys.readouterr().out.split("a hypothetical layout: 4+2 on 6 nodes\n")[-1]
    assert chart.count("x") >= 7 and "correlated: Monte Carlo" in chart
    assert target.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    image = imread(target)
    assert image.shape[0] > 400 and image.shape[1] > 800
    pixels = image[..., :3].reshape(-1, 3)
    red = (pixels[:, 0] > 0.7) & (pixels[:, 1] < 0.3)  # the correlated curve and the causes
    blue = (pixels[:, 2] > 0.6) & (pixels[:, 0] < 0.3)  # the closed form
    assert red.sum() > 1000 and blue.sum() > 100


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--afr", "2x"], "--afr"),
        (["--afr", "100%"], "--afr"),
        (["--ure", "-1"], "--ure"),
        (["--node-bytes", "4X"], "--node-bytes"),
        (["--detection", "5"], "--detection"),
        (["--years", "0"], "--years"),
        (["--nodes", "0"], "--nodes"),
        (["--seed", "x"], "--seed"),
        (["--code", "4"], "--code"),
        (["--code", "9" * 5000 + "+2"], "--code"),
        (["--code", "4+2", "--nodes", "2"], "needs at least 3 nodes"),
        (["--nodes", "300"], "256"),
        (["--domain", "a//b"], "--domain"),
        (["--domain", "a/b/c/d"], "--domain"),
        (["--domain", "a", "--domains", "2"], "--domains"),
        (["--domain", "a", "--nodes", "6"], "--nodes"),
        (["--domains", "9"], "--domains"),
        (["--nodes", "6", "--json", "--chart"], "--chart"),
        (["--nodes", "6", "--afr", "99%", "--detection", "300d"], "shorter repair"),
        (["--nodes", "6", "--plot", "/absent/x.png"], "/absent/x.png"),
        (
            ["--nodes", "6", "--afr", "0", "--host-afr", "0", "--rack-afr", "0", "--power-events", "0", "--chart"],
            "nothing to plot",
        ),
    ],
)
def test_what_is_typed_wrong_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], says: str
) -> None:
    assert says in refused(capsys, "--data", tmp_path, *arguments)


def test_no_store_at_hand_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert str(tmp_path / "absent") in refused(capsys, "--data", tmp_path / "absent")


def test_measured_figures_are_kept_beside_one_another(data: Path) -> None:
    assert read_measured(data) == Measured()
    note(data, detection_seconds=3.0)
    note(data, scrub_bytes_per_second=5.0)
    note(data, detection_seconds=4.0)
    assert read_measured(data) == Measured(detection_seconds=4.0, scrub_bytes_per_second=5.0)


def test_damaged_figures_are_refused_and_measured_again(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note(data, detection_seconds=3.0)
    path = data / "index" / MEASURED_NAME
    for content in (b"", b"{", b'{"detection_seconds": "soon"}', b'{"repair_bytes_per_second": -1}'):
        path.write_bytes(content)
        with pytest.raises(StoreError, match=re.escape(str(path))):
            read_measured(data)
        assert str(path) in refused(capsys, "--data", data)
    note(data, detection_seconds=2.0)
    assert read_measured(data) == Measured(detection_seconds=2.0)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_figures_are_not_noted(data: Path, wrong: float) -> None:
    with pytest.raises(ValueError, match="measured"):
        note(data, repair_bytes_per_second=wrong)
    with pytest.raises(ValueError, match="measured"):
        note(data, no_such_figure=1.0)
    assert read_measured(data) == Measured()
