"""objfs sql: one statement, or a prompt when none is given."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from objfs.cli import CommandFailed
from objfs.commands.common import on_store

if TYPE_CHECKING:
    import pyarrow

    from engine.store import Store


def sql(arguments: argparse.Namespace) -> int:
    if arguments.statement is None:
        return _prompt(arguments)
    if arguments.format == "parquet" and not arguments.output:
        raise CommandFailed("parquet is not text; add --output FILE")

    async def ask(store: Store) -> pyarrow.Table:
        return await store.query(arguments.statement)

    answer = on_store(arguments.data, ask)
    if arguments.output:
        _write_file(answer, arguments.format, Path(arguments.output))
    else:
        _write(answer, arguments.format, sys.stdout.buffer)
    return 0


def _prompt(arguments: argparse.Namespace) -> int:
    from objfs import sqlprompt

    if arguments.output or arguments.format == "parquet":
        raise CommandFailed('--output and parquet need a statement: objfs sql "SELECT ..."')
    if not sys.stdin.isatty():
        raise CommandFailed('no statement given, and no terminal to prompt on; type objfs sql "SELECT ..."')

    async def converse(store: Store) -> None:
        await sqlprompt.run_async(store.query, arguments.format, sys.stdout.buffer)

    on_store(arguments.data, converse)
    return 0


def _write_file(answer: pyarrow.Table, format: str, path: Path) -> None:
    """Whole or not at all: a scratch file beside `path` takes its place at the end."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(scratch, "xb") as file:
            _write(answer, format, file)
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def _write(answer: pyarrow.Table, format: str, out: BinaryIO) -> None:
    from objfs.sqlformat import write

    write(answer, format, out)
    out.flush()
