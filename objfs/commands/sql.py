"""objfs sql: one statement, or a prompt when none is given."""

from __future__ import annotations

import argparse
import sys

from objfs.cli import CommandFailed


def sql(arguments: argparse.Namespace) -> int:
    if arguments.format == "parquet" and not arguments.output:
        raise CommandFailed("parquet is not text; add --output FILE")
    if arguments.statement is None and not sys.stdin.isatty():
        raise CommandFailed('no statement given and no terminal to prompt on; use objfs sql "SELECT ..."')
    raise NotImplementedError
