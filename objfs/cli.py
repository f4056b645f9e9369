"""The objfs command: parses arguments and hands them to one function per subcommand.

This module and objfs/care_arguments.py know what can be typed, not how it is done: every
subcommand lives in objfs/commands and is imported only when it runs, so that `objfs --help`
and `objfs credentials` start at once. Errors are one line on standard error that says what
to do; the exit code is 0, 1 (it failed) or 2 (it was typed wrong).
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from objfs.care_arguments import add_collecting, add_durability, add_indexing, add_node_changes, add_protecting
from objfs.parsing import DEFAULT_CODE, Commands, Parser, command, group, quantity, worker_count

DEFAULT_LISTEN = "127.0.0.1:9000"

_DESCRIPTION = """\
objfs keeps objects on erasure-coded nodes and opens three doors on them: S3, a mounted
filesystem and SQL. What one door writes, the others see at once.

A first store:
  objfs init                          make a store in ./objfs-data
  objfs serve --mount ./mnt           serve S3 on 127.0.0.1:9000 and mount it on ./mnt
  eval "$(objfs credentials)"         let aws-cli and boto3 find it
  objfs sql "SELECT * FROM inventory" ask about everything stored
"""


class CommandFailed(Exception):
    """A subcommand could not do its work; the text is the line the person reads."""


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="objfs",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"objfs {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    _add_store_commands(commands)
    _add_door_commands(commands)
    _add_people_and_nodes(commands)
    add_durability(commands)
    add_collecting(commands)
    add_indexing(commands)
    add_protecting(commands)
    return parser


def _add_store_commands(commands: Commands) -> None:
    init = command(
        commands,
        "init",
        "stores:init",
        "make a store",
        "Makes a store. Its root keys come from OBJFS_ROOT_ACCESS_KEY and OBJFS_ROOT_SECRET_KEY, or are made up; "
        "objfs credentials shows them. Back up DATA/store.key: without it, users' secrets cannot be read.",
    )
    init.add_argument(
        "--code",
        default=DEFAULT_CODE,
        metavar="K+M",
        help="cut everything into K pieces and M of parity on K+M nodes; any M may be lost (default %(default)s)",
    )
    init.add_argument(
        "--node",
        action="append",
        default=[],
        metavar="PATH[=ZONE/RACK/HOST]",
        help="a directory that holds pieces, best a disk of its own; what fails together has the same ZONE, RACK or "
        "HOST. Give it once per node (default: K+M directories under DATA/nodes)",
    )
    init.add_argument(
        "--reserve",
        type=quantity("size"),
        metavar="SIZE",
        help="keep so much aside on each node, so that a full one can be emptied again "
        "(default: 64MiB, but no more than 1%% of the node's share of its device)",
    )
    status = command(
        commands,
        "status",
        "stores:status",
        "show the health of the store",
        "Shows nodes and their health, space, what deduplication and compression save, and what lags.",
    )
    status.add_argument("--json", action="store_true", help="print everything as one JSON object")
    command(
        commands,
        "fsck",
        "stores:fsck",
        "check the store",
        "Checks that everything stored can be read and that all counters hold. Prints one line per problem; "
        "the exit code is 1 if there are any.",
    )
    command(
        commands,
        "credentials",
        "stores:credentials",
        "print the root keys as lines to eval",
        'Prints shell lines that let aws-cli and boto3 find the store: eval "$(objfs credentials)".',
    )


def _add_door_commands(commands: Commands) -> None:
    serve = command(
        commands,
        "serve",
        "serving:serve",
        "serve S3, and a mount if asked, until stopped",
        "Opens the store's doors and prints one line starting with 'ready' once every one of them answers. "
        "SIGTERM or Ctrl-C finishes the requests under way, unmounts and ends.",
    )
    serve.add_argument(
        "--listen",
        default=DEFAULT_LISTEN,
        metavar="ADDRESS:PORT",
        help="where S3 listens (default %(default)s; port 0 takes a free one)",
    )
    serve.add_argument("--mount", metavar="DIR", help="also mount the store on DIR (made if missing)")
    serve.add_argument(
        "--workers",
        type=worker_count,
        default=None,
        metavar="N",
        help="processes that serve S3 (default: one per processor core); 0 runs everything in one process",
    )
    mount = command(
        commands,
        "mount",
        "serving:mount",
        "mount the store on a directory",
        "Mounts the store on DIR, until it is unmounted or Ctrl-C. Joins a running server, or opens the store itself.",
    )
    mount.add_argument("directory", metavar="DIR", help="an empty directory (made if missing)")
    umount = command(commands, "umount", "serving:umount", "unmount a mounted store", "Unmounts the store from DIR.")
    umount.add_argument("directory", metavar="DIR", help="the directory it is mounted on")
    sql = command(
        commands,
        "sql",
        "sql:sql",
        "ask the store in SQL",
        "Answers one SQL statement, or opens a prompt when none is given. It sees everything acknowledged before "
        "it was asked, and changes nothing. Start with: SELECT * FROM inventory LIMIT 10; SHOW TABLES lists the rest.",
    )
    sql.add_argument("statement", nargs="?", metavar="STATEMENT", help="a SELECT in DuckDB's SQL")
    sql.add_argument(
        "--format",
        choices=("table", "csv", "json", "parquet"),
        default="table",
        help="how to print the answer (default %(default)s)",
    )
    sql.add_argument("--output", metavar="FILE", help="write the answer to FILE (needed for parquet)")


def _add_people_and_nodes(commands: Commands) -> None:
    user = group(commands, "user", "add and list users", "Users sign S3 requests with keys of their own.")
    add = command(
        user,
        "add",
        "users:add",
        "add a user",
        "Adds a user who may use all buckets, and prints the keys.",
    )
    add.add_argument("name", metavar="NAME", help="the user's name")
    add.add_argument(
        "--access", choices=("full", "read"), default="full", help="read: may only read (default %(default)s)"
    )
    add.add_argument("--access-key", metavar="KEY", help="an access key to use (default: made up)")
    add.add_argument("--secret-key", metavar="SECRET", help="its secret key (default: made up)")
    users = command(user, "list", "users:list_users", "list users", "Lists users, their access and access keys.")
    users.add_argument("--json", action="store_true", help="print a JSON list")

    node = group(commands, "node", "list, add, drain and replace nodes", "Nodes are the directories that hold pieces.")
    nodes = command(node, "list", "nodes:list_nodes", "list nodes", "Lists nodes, their paths, domains and states.")
    nodes.add_argument("--json", action="store_true", help="print a JSON list")
    replace = command(
        node,
        "replace",
        "nodes:replace",
        "give a lost node an empty directory",
        "Gives a lost node an empty directory, which is then filled again from the other nodes.",
    )
    replace.add_argument("node_id", metavar="NODE", help="the node's id, as objfs node list shows it")
    replace.add_argument("--path", metavar="PATH", help="the new directory (default: the node's old path)")
    add_node_changes(node)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("objfs")
    except PackageNotFoundError:
        return "(not installed)"


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = make_parser().parse_args(arguments)
    module, function = parsed.target.split(":")
    from engine.errors import StoreError

    try:
        run = getattr(importlib.import_module(f"objfs.commands.{module}"), function)
        code: int = run(parsed)
        sys.stdout.flush()
        return code
    except (CommandFailed, StoreError) as error:
        return _fail(str(error))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            # Whoever read our output has had enough; Python must not complain at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        return 130


def _fail(message: str) -> int:
    print("objfs: " + " ".join(message.split("\n")), file=sys.stderr)
    return 1
