"""What a person typing objfs sees: help, one-line errors, exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from objfs import cli
from objfs.commands.stores import parse_code, parse_node

ROOT = Path(__file__).parents[2]


def objfs(*arguments: str | Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "objfs", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OBJFS_ROOT_ACCESS_KEY": "", "OBJFS_ROOT_SECRET_KEY": "", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["mount"],
        ["serve", "--workers", "-1"],
        ["serve", "--nodes"],
        ["user"],
        ["init", "--cod", "4+2"],
    ],
)
def test_what_is_typed_wrong_is_one_line_and_exit_code_2(arguments: list[str]) -> None:
    answer = objfs(*arguments)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.count("\n") == 1
    assert "--help" in answer.stderr


@pytest.mark.parametrize(
    "arguments",
    [["status"], ["serve"], ["sql", "SELECT 1"], ["credentials"], ["fsck"], ["user", "list"], ["mount", "x"]],
)
def test_a_wrong_data_path_is_one_line_and_creates_nothing(arguments: list[str], tmp_path: Path) -> None:
    answer = objfs(*arguments, "--data", tmp_path / "absent")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr.count("\n") == 1
    assert str(tmp_path / "absent") in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_comes_without_loading_the_store() -> None:
    script = (
        "import sys; from objfs.cli import make_parser; make_parser().format_help(); "
        "sys.exit(any(name in sys.modules for name in ('trio', 'anyio', 'duckdb', 'msgspec', 'engine')))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_a_code_is_k_plus_m() -> None:
    assert parse_code("4+2") == (4, 2)
    for wrong in ("", "4", "4+", "+2", "0+2", "4+0", "4-2", "four+2", "4+2+1"):
        with pytest.raises(cli.CommandFailed, match="not K"):
            parse_code(wrong)


def test_a_node_may_carry_its_failure_domain() -> None:
    assert parse_node("/disks/1") == ("/disks/1", "")
    assert parse_node("/disks/1=west/r1/h1") == ("/disks/1", "west/r1/h1")
    assert parse_node("/odd=name=west") == ("/odd=name", "west")
    for wrong in ("=west", "", "/disks/1=a/b/c/d"):
        with pytest.raises(cli.CommandFailed):
            parse_node(wrong)


def test_init_refuses_half_a_pair_of_root_keys(tmp_path: Path) -> None:
    answer = objfs("init", "--data", tmp_path / "s", environment={"OBJFS_ROOT_ACCESS_KEY": "only-one"})
    assert answer.returncode == 1
    assert "OBJFS_ROOT_SECRET_KEY" in answer.stderr
    assert not (tmp_path / "s").exists()


def test_init_refuses_too_few_nodes(tmp_path: Path) -> None:
    answer = objfs("init", "--data", tmp_path / "s", "--node", tmp_path / "one")
    assert answer.returncode == 1
    assert "6 nodes" in answer.stderr
    assert not (tmp_path / "s").exists()
