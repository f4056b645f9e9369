"""The objfs command: parses arguments and hands them to one function per subcommand.

This module knows what can be typed, not how it is done: every subcommand lives in
objfs/commands and is imported only when it runs, so that `objfs --help` and
`objfs credentials` start at once. Errors are one line on standard error that says what
to do; the exit code is 0, 1 (it failed) or 2 (it was typed wrong).
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

DEFAULT_DATA = "./objfs-data"
DEFAULT_LISTEN = "127.0.0.1:9000"
DEFAULT_CODE = "4+2"

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


class _Parser(argparse.ArgumentParser):
    """One line per error, as everywhere in this command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="objfs",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"objfs {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    _add_store_commands(commands)
    _add_door_commands(commands)
    _add_people_and_nodes(commands)
    _add_durability(commands)
    _add_collecting(commands)
    _add_indexing(commands)
    _add_protecting(commands)
    return parser


def _add_store_commands(commands: argparse._SubParsersAction[_Parser]) -> None:
    init = _command(
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
        type=_quantity("size"),
        metavar="SIZE",
        help="keep so much aside on each node, so that a full one can be emptied again "
        "(default: 64MiB, but no more than 1%% of the node's share of its device)",
    )
    status = _command(
        commands,
        "status",
        "stores:status",
        "show the health of the store",
        "Shows nodes and their health, space, what deduplication and compression save, and what lags.",
    )
    status.add_argument("--json", action="store_true", help="print everything as one JSON object")
    _command(
        commands,
        "fsck",
        "stores:fsck",
        "check the store",
        "Checks that everything stored can be read and that all counters hold. Prints one line per problem; "
        "the exit code is 1 if there are any.",
    )
    _command(
        commands,
        "credentials",
        "stores:credentials",
        "print the root keys as lines to eval",
        'Prints shell lines that let aws-cli and boto3 find the store: eval "$(objfs credentials)".',
    )


def _add_door_commands(commands: argparse._SubParsersAction[_Parser]) -> None:
    serve = _command(
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
        type=_worker_count,
        default=None,
        metavar="N",
        help="processes that serve S3 (default: one per processor core); 0 runs everything in one process",
    )
    mount = _command(
        commands,
        "mount",
        "serving:mount",
        "mount the store on a directory",
        "Mounts the store on DIR, until it is unmounted or Ctrl-C. Joins a running server, or opens the store itself.",
    )
    mount.add_argument("directory", metavar="DIR", help="an empty directory (made if missing)")
    umount = _command(commands, "umount", "serving:umount", "unmount a mounted store", "Unmounts the store from DIR.")
    umount.add_argument("directory", metavar="DIR", help="the directory it is mounted on")
    sql = _command(
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


def _add_people_and_nodes(commands: argparse._SubParsersAction[_Parser]) -> None:
    user = _group(commands, "user", "add and list users", "Users sign S3 requests with keys of their own.")
    add = _command(
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
    users = _command(user, "list", "users:list_users", "list users", "Lists users, their access and access keys.")
    users.add_argument("--json", action="store_true", help="print a JSON list")

    node = _group(commands, "node", "list, add, drain and replace nodes", "Nodes are the directories that hold pieces.")
    nodes = _command(node, "list", "nodes:list_nodes", "list nodes", "Lists nodes, their paths, domains and states.")
    nodes.add_argument("--json", action="store_true", help="print a JSON list")
    replace = _command(
        node,
        "replace",
        "nodes:replace",
        "give a lost node an empty directory",
        "Gives a lost node an empty directory, which is then filled again from the other nodes.",
    )
    replace.add_argument("node_id", metavar="NODE", help="the node's id, as objfs node list shows it")
    replace.add_argument("--path", metavar="PATH", help="the new directory (default: the node's old path)")
    _add_node_changes(node)


def _add_node_changes(node: argparse._SubParsersAction[_Parser]) -> None:
    add = _command(
        node,
        "add",
        "nodes:add",
        "add a node",
        "Makes an empty directory a node of the store. New content uses it at once; objfs node rebalance moves older "
        "content there too.",
    )
    add.add_argument("path", metavar="PATH[=ZONE/RACK/HOST]", help="the directory, made if missing, and where it is")
    drain = _command(
        node,
        "drain",
        "nodes:drain",
        "move everything off a node",
        "Writes nothing new to the node and copies what it holds elsewhere; then objfs node remove takes it away.",
    )
    drain.add_argument("--cancel", action="store_true", help="use the node as before again")
    remove = _command(
        node,
        "remove",
        "nodes:remove",
        "take away a node that is drained or lost",
        "Forgets a node that was drained, or one that is lost for good: what it held is rebuilt elsewhere first.",
    )
    domain = _command(
        node,
        "set-domain",
        "nodes:set_domain",
        "say where a node is",
        "Sets what fails together with the node, and moves fragments that now are too many in one place.",
    )
    for parser in (drain, remove, domain):
        parser.add_argument("node_id", metavar="NODE", help="the node's id, as objfs node list shows it")
    domain.add_argument("domain", metavar="ZONE/RACK/HOST", help="where the node is; '' for nowhere in particular")
    rebalance = _command(
        node,
        "rebalance",
        "nodes:rebalance",
        "even out what the nodes hold",
        "Moves fragments from the fullest to the emptiest nodes, and out of places that hold too many of a segment.",
    )
    for parser in (drain, remove, domain, rebalance):
        parser.add_argument(
            "--limit",
            type=_quantity("size"),
            default="100MB",
            metavar="RATE",
            help="copy at most so much a second (default %(default)s)",
        )


def _add_durability(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = _command(
        commands,
        "durability",
        "durability:durability",
        "say how likely objects are to be lost",
        "Computes the chance that an object is lost within a year: by closed form, Markov chain and Monte Carlo, for "
        "disks failing alone and for failures that come together. Without --code, --nodes, --domains or --domain it "
        "is about the store at hand, which it neither locks nor opens.",
    )
    layout = parser.add_argument_group("another layout than the store's")
    layout.add_argument("--code", metavar="K+M", help=f"its code (default {DEFAULT_CODE})")
    layout.add_argument("--nodes", type=_quantity("count"), metavar="N", help="how many nodes (default K+M)")
    layout.add_argument("--domains", type=_quantity("count"), metavar="N", help="deal the nodes to N racks of one site")
    layout.add_argument(
        "--domain",
        action="append",
        default=[],
        metavar="ZONE/RACK/HOST",
        help="where a node is; give it once per node, instead of --domains",
    )
    figures = parser.add_argument_group("figures (default: measured on the store, else assumed; the answer says which)")
    for option, kind, unit, text in (
        ("--afr", "chance", "SHARE", "disks that die in a year, such as 1.5%%"),
        ("--host-afr", "chance", "SHARE", "hosts lost for good in a year, with their disks"),
        ("--rack-afr", "chance", "SHARE", "racks lost for good in a year"),
        ("--power-events", "amount", "PER_YEAR", "power events that strike a whole zone"),
        ("--power-loss", "chance", "SHARE", "disks that do not come back from a power event"),
        ("--ure", "chance", "PER_BIT", "bits that cannot be read when a rebuild needs them, such as 1e-15"),
        ("--node-bytes", "size", "SIZE", "stored on a node, such as 4T"),
        ("--repair-rate", "size", "SIZE", "bytes of lost fragments rebuilt per second, such as 100M"),
        ("--detection", "duration", "TIME", "until a loss is noticed, such as 1h"),
        ("--replacement", "duration", "TIME", "until a new disk is in, where no spare node takes the fragments"),
        ("--object-bytes", "size", "SIZE", "how large an object is"),
        ("--objects", "count", "N", "how many objects there are"),
        ("--years", "years", "N", "how long (default 1)"),
    ):
        figures.add_argument(option, type=_quantity(kind), metavar=unit, help=text)
    trials = parser.add_argument_group("Monte Carlo and output")
    trials.add_argument(
        "--trials",
        type=_quantity("trials"),
        default=40_000,
        metavar="N",
        help="episodes played out (default %(default)s)",
    )
    trials.add_argument(
        "--seed", type=_quantity("seed"), default=1, metavar="N", help="of random numbers (default %(default)s)"
    )
    trials.add_argument("--plot", metavar="FILE", help="draw loss over repair time into FILE, a PNG")
    trials.add_argument("--chart", action="store_true", help="draw the same in the terminal")
    trials.add_argument("--json", action="store_true", help="print everything as one JSON object")


def _add_collecting(commands: argparse._SubParsersAction[_Parser]) -> None:
    gc = _command(
        commands,
        "gc",
        "collecting:gc",
        "free what nothing names any more",
        "Frees the bytes of what was deleted or overwritten, where whole segments and journal files hold nothing else; "
        "objfs compact frees the rest. Runs beside a server, or alone, and returns when the bytes are free. The exit "
        "code is 1 if something had to be left for the next run.",
    )
    compact = _command(
        commands,
        "compact",
        "collecting:compact",
        "free what lies between what is in use",
        "As objfs gc, and copies what is in use out of segments that hold little of it, so that they can go too.",
    )
    compact.add_argument(
        "--threshold",
        type=_share,
        default=0.8,
        metavar="SHARE",
        help="segments of which less is in use are rewritten (default %(default)s)",
    )
    for parser in (gc, compact):
        parser.add_argument("--dry-run", action="store_true", help="only say what would be freed, per bucket")
        parser.add_argument(
            "--abandoned-after",
            type=_quantity("duration"),
            default="7d",
            metavar="TIME",
            help="abort multipart uploads nothing was added to for so long (default %(default)s)",
        )
        parser.add_argument(
            "--limit", type=_quantity("size"), metavar="RATE", help="copy at most so much a second, such as 50MB"
        )
        parser.add_argument(
            "--wait",
            type=_quantity("duration"),
            default="60s",
            metavar="TIME",
            help="wait so long for requests older than this run; then leave what they may use (default %(default)s)",
        )
        parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def _add_indexing(commands: argparse._SubParsersAction[_Parser]) -> None:
    checkpoint = _command(
        commands,
        "checkpoint",
        "indexing:checkpoint",
        "put the journal's content into segments and start it anew",
        "Writes a snapshot of the index to m+1 nodes, moves small content out of the journal into segments, archives "
        "the journal's records and deletes its files. A server does so by itself when the journal has grown. Runs "
        "beside a server, or alone.",
    )
    checkpoint.add_argument(
        "--journal-retention",
        type=_quantity("duration"),
        default="30d",
        metavar="TIME",
        help="delete archived journal records older than this (default %(default)s)",
    )
    checkpoint.add_argument(
        "--journal-bytes",
        type=_quantity("size"),
        default="1G",
        metavar="SIZE",
        help="and the oldest ones while archives hold more than this, per copy (default %(default)s)",
    )
    checkpoint.add_argument(
        "--limit", type=_quantity("size"), metavar="RATE", help="copy at most so much a second, such as 50MB"
    )
    checkpoint.add_argument("--json", action="store_true", help="print the result as one JSON object")
    rebuild = _command(
        commands,
        "rebuild-index",
        "indexing:rebuild_index",
        "make the index anew from the nodes",
        "Sets DATA/index aside and rebuilds it from the newest index snapshot and the journal on the nodes, of which m "
        "may be missing. Only while no server has the store open. An index that is missing or found damaged is rebuilt "
        "by itself when the store is opened.",
    )
    rebuild.add_argument("--json", action="store_true", help="print the result as one JSON object")


def _add_protecting(commands: argparse._SubParsersAction[_Parser]) -> None:
    scrub = _command(
        commands,
        "scrub",
        "protecting:scrub",
        "read and check every byte",
        "Reads every fragment, journal file and snapshot on every node and checks it, down to the SHA-256 of every "
        "chunk; what was not checked for longest comes first. Damage is told here and repaired by a running server. A "
        "scrub that was interrupted goes on where it stopped. The exit code is 1 if anything is damaged.",
    )
    scrub.add_argument("--all", action="store_true", help="begin anew, even if the last scrub was interrupted")
    repair = _command(
        commands,
        "repair",
        "protecting:repair",
        "rebuild what is lost or damaged",
        "Rebuilds fragments that are damaged, or that lie on nodes that are lost, draining or came back without them; "
        "what survives the fewest losses comes first. A server does so by itself. The exit code is 1 if something "
        "stays below full protection.",
    )
    repair.add_argument(
        "--grace",
        type=_quantity("duration"),
        default="10m",
        metavar="TIME",
        help="leave a node that is lost for less than this its fragments: it may come back (default %(default)s)",
    )
    repair.add_argument(
        "--narrow",
        action="store_true",
        help="where too few nodes are left for all fragments of a segment, write it anew over those there are",
    )
    for parser, limit in ((scrub, "50MB"), (repair, "100MB")):
        parser.add_argument(
            "--limit",
            type=_quantity("size"),
            default=limit,
            metavar="RATE",
            help="read and write at most so much a second (default %(default)s)",
        )
        parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    quarantine = _group(commands, "quarantine", "show what was set aside", "Damaged files are set aside and kept.")
    listed = _command(
        quarantine,
        "list",
        "protecting:quarantine",
        "list what was set aside",
        "Lists damaged files that were set aside: what each was, on which node, since when and why.",
    )
    listed.add_argument("--json", action="store_true", help="print a JSON list")


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and at most 1, such as 0.8")
    return share


def _command(
    commands: argparse._SubParsersAction[_Parser], name: str, target: str, summary: str, description: str
) -> argparse.ArgumentParser:
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


def _group(
    commands: argparse._SubParsersAction[_Parser], name: str, summary: str, description: str
) -> argparse._SubParsersAction[_Parser]:
    parser = commands.add_parser(name, help=summary, description=description, allow_abbrev=False)
    return parser.add_subparsers(dest=f"{name}_command", metavar="COMMAND", required=True, parser_class=_Parser)


def _worker_count(text: str) -> int:
    if not text.isdigit() or int(text) > 256:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes from 0 to 256")
    return int(text)


def _quantity(kind: str) -> Callable[[str], float]:
    """The reader of one kind of amount, from objfs.durability.quantities."""

    def read(text: str) -> float:
        from objfs.durability import quantities

        try:
            value: float = getattr(quantities, kind)(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value

    return read


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
