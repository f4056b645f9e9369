"""How subcommands are told to argparse, and the kinds of values they take.

Knows no subcommand. Loads nothing that takes time: every `objfs --help` goes through here.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import NoReturn, TypeAlias

DEFAULT_DATA = "./objfs-data"
DEFAULT_CODE = "4+2"


class Parser(argparse.ArgumentParser):
    """One line per error, as everywhere in this command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def command(commands: Commands, name: str, target: str, summary: str, description: str) -> argparse.ArgumentParser:
    """A subcommand that runs `target`, "module:function" in objfs.commands."""
    parser = commands.add_parser(name, help=summary, description=description, allow_abbrev=False)
    parser.add_argument(
        "--data",
        default=os.environ.get("OBJFS_DATA") or DEFAULT_DATA,
        metavar="DIR",
        help=f"the store's directory (default: OBJFS_DATA, else {DEFAULT_DATA})",
    )
    parser.set_defaults(target=target)
    return parser


def group(commands: Commands, name: str, summary: str, description: str) -> Commands:
    parser = commands.add_parser(name, help=summary, description=description, allow_abbrev=False)
    return parser.add_subparsers(dest=f"{name}_command", metavar="COMMAND", required=True, parser_class=Parser)


def worker_count(text: str) -> int:
    if not text.isdigit() or int(text) > 256:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes from 0 to 256")
    return int(text)


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and at most 1, such as 0.8")
    return value


def quantity(kind: str) -> Callable[[str], float]:
    """The reader of one kind of amount, from objfs.durability.quantities."""

    def read(text: str) -> float:
        from objfs.durability import quantities

        try:
            value: float = getattr(quantities, kind)(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value

    return read
