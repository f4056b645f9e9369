"""objfs init, status, fsck and credentials."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

from objfs.cli import DEFAULT_LISTEN, CommandFailed
from objfs.commands.common import on_store

ACCESS_KEY_CHARACTERS_MIN = 3  # as other S3 servers require
SECRET_KEY_CHARACTERS_MIN = 8


def init(arguments: argparse.Namespace) -> int:
    from engine.store import init_store

    k, m = parse_code(arguments.code)
    data = Path(arguments.data)
    nodes = [parse_node(node) for node in arguments.node] or None
    if nodes is not None and len(nodes) < k + m:
        raise CommandFailed(f"--code {k}+{m} needs {k + m} nodes and {len(nodes)} are given; add --node PATH")
    access_key, secret_key = root_keys()
    warnings = init_store(
        data,
        k=k,
        m=m,
        nodes=nodes,
        root_access_key=access_key or None,
        root_secret_key=secret_key or None,
        reserve_bytes=arguments.reserve,
    )
    for warning in warnings:
        print(f"objfs: note: {warning}", file=sys.stderr)
    print(f"made a store in {data}: {k}+{m} over {len(nodes or []) or k + m} nodes. Next: {suggestion('serve', data)}")
    return 0


def parse_code(text: str) -> tuple[int, int]:
    k, _, m = text.partition("+")
    if not all(part.isascii() and part.isdigit() and len(part) < 10 and int(part) > 0 for part in (k, m)):
        raise CommandFailed(f"--code {text[:40]} is not K+M with both at least 1, such as 4+2")
    return int(k), int(m)


def parse_node(text: str) -> tuple[str, str]:
    """(path, domain) of PATH=zone/rack/host; a path that has `=` in it is told apart by
    its last one, so such a path needs a domain, or a trailing `=`."""
    path, equals, domain = text.rpartition("=")
    if not equals:
        path, domain = domain, ""
    if not path:
        raise CommandFailed(f"--node {text} names no directory; write PATH or PATH=zone/rack/host")
    if len(domain.split("/")) > 3:
        raise CommandFailed(f"--node {text}: a domain has at most three parts, zone/rack/host")
    return path, domain


def root_keys() -> tuple[str, str]:
    """The root keys the environment gives, or empty strings."""
    access_key = os.environ.get("OBJFS_ROOT_ACCESS_KEY", "")
    secret_key = os.environ.get("OBJFS_ROOT_SECRET_KEY", "")
    if bool(access_key) != bool(secret_key):
        raise CommandFailed("set both OBJFS_ROOT_ACCESS_KEY and OBJFS_ROOT_SECRET_KEY, or neither")
    if access_key:
        check_keys(access_key, secret_key)
    return access_key, secret_key


def check_keys(access_key: str | None, secret_key: str | None) -> None:
    if access_key is not None:
        plain = access_key.isascii() and access_key.isprintable() and not set(access_key) & set(" /=,")
        if not plain or len(access_key) < ACCESS_KEY_CHARACTERS_MIN:
            raise CommandFailed(
                f"an access key has {ACCESS_KEY_CHARACTERS_MIN} or more ASCII characters, no space, '/', '=' or ','"
            )
    if secret_key is not None and len(secret_key) < SECRET_KEY_CHARACTERS_MIN:
        raise CommandFailed(f"a secret key has {SECRET_KEY_CHARACTERS_MIN} or more characters")


def status(arguments: argparse.Namespace) -> int:
    report = on_store(arguments.data, lambda store: store.status())
    if arguments.json:
        print(json.dumps(report, indent=2, default=str))
    else:
        from objfs.render import render_status

        print(render_status(report))
    return 0


def fsck(arguments: argparse.Namespace) -> int:
    problems = on_store(arguments.data, lambda store: store.fsck())
    for problem in problems:
        print(problem)
    if problems:
        raise CommandFailed(f"{len(problems)} problem(s) found; nothing was changed")
    print("no problems found")
    return 0


def credentials(arguments: argparse.Namespace) -> int:
    from engine.secrets import read_root_keys

    data = Path(arguments.data)
    keys = read_root_keys(data)
    for name, value in (
        ("AWS_ACCESS_KEY_ID", keys.access_key),
        ("AWS_SECRET_ACCESS_KEY", keys.secret_key),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", f"http://{listen_address(data)}"),
    ):
        print(f"export {name}={shlex.quote(value)}")
    return 0


def listen_address(data: Path) -> str:
    """Where the running server listens; where one would by default when none runs."""
    from objfs.supervisor import read_announcement

    announcement = read_announcement(data)
    return announcement.listen if announcement else DEFAULT_LISTEN


def suggestion(command: str, data: Path) -> str:
    """The command line to type for the store at `data`."""
    usual = Path(os.environ.get("OBJFS_DATA") or "./objfs-data")
    return f"objfs {command}" if data == usual else f"objfs {command} --data {shlex.quote(str(data))}"
