"""README and FORMAT against the code: commands, options, SQL columns, crash sites."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import duckdb

from engine.crash_sites import CrashSite
from engine.tables.schema import TABLES, VIEWS, create_table
from objfs.cli import make_parser

INTERNAL = (  # how the tables keep themselves
    "tables_state",
    "journal_buckets",
    "journal_uploads",
    "journal_events",
    "past_",
    "segment_states",
)
README = (Path(__file__).parents[1] / "README.md").read_text()
FORMAT = (Path(__file__).parents[1] / "engine" / "FORMAT.md").read_text()


def leaves(parser: argparse.ArgumentParser, words: str = "objfs") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield words, parser
    for group in groups:
        for name, child in group.choices.items():
            yield from leaves(child, f"{words} {name}")


def test_readme_names_every_command_and_option() -> None:
    for words, parser in leaves(make_parser()):
        assert f"`{words}" in README, words
        for action in parser._actions:
            for option in action.option_strings:
                assert option in ("-h", "--help") or option in README, f"{words} {option}"


def test_every_command_line_in_readme_parses() -> None:
    lines = [
        line.removeprefix("$ ").removeprefix(".venv/bin/")
        for block in re.findall(r"```sh\n(.*?)```", README, re.S)
        for line in block.splitlines()
    ]
    typed = [line for line in lines if line.startswith("objfs ")]
    assert typed
    for line in typed:
        make_parser().parse_args(shlex.split(line, comments=True)[1:])


def relations() -> dict[str, list[str]]:
    """Every relation a person may ask, with its columns in order, as DuckDB has them."""
    with duckdb.connect() as connection:
        for name in TABLES:
            connection.execute(create_table(name))
        for name, query in VIEWS.items():
            connection.execute(f"CREATE VIEW {name} AS {query}")
        return {
            name: [column for column, *_ in connection.execute(f"SELECT * FROM {name} LIMIT 0").description]
            for name in [*VIEWS, *TABLES]
            if not name.startswith(INTERNAL)
        }


def test_readme_lists_every_relation_with_its_columns() -> None:
    listed = re.findall(r"^\| `(\w+)` \| [^|]+ \| (.+) \|$", README, re.M)
    assert {name: columns.split(", ") for name, columns in listed} == relations()


def test_the_crash_table_has_a_row_for_every_crash_site() -> None:
    table = FORMAT.partition("## Crash table")[2].partition("\n## ")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert sorted(row[0].strip("| `") for row in rows) == sorted(site.name for site in CrashSite)
    assert all(len(row) == 4 and all(cell.strip("| ") for cell in row) for row in rows)
