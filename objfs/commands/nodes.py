"""objfs node list, add, replace, drain, remove, set-domain and rebalance."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any, cast

from objfs.cli import CommandFailed
from objfs.commands.common import on_store

if TYPE_CHECKING:
    from engine.care.nodes import NodeWork
    from engine.store import Store


def list_nodes(arguments: argparse.Namespace) -> int:
    from objfs.render import columns, node_rows

    report = on_store(arguments.data, lambda store: store.status())
    nodes = cast(list[dict[str, Any]], report["nodes"])
    print(json.dumps(nodes, indent=2, default=str) if arguments.json else columns(node_rows(nodes)))
    return 0


def replace(arguments: argparse.Namespace) -> int:
    on_store(arguments.data, lambda store: store.replace_node(arguments.node_id, arguments.path))
    print(f"node {arguments.node_id} has an empty directory again and is being filled; objfs status shows how far")
    return 0


def add(arguments: argparse.Namespace) -> int:
    from engine.care import nodes
    from objfs.commands.stores import parse_node

    path, domain = parse_node(arguments.path)
    node_id = on_store(arguments.data, lambda store: nodes.add_node(store.parts, path, domain))
    print(f"added {node_id} at {path}; objfs node rebalance moves content there that is stored already")
    return 0


def drain(arguments: argparse.Namespace) -> int:
    from engine.care import nodes
    from objfs.progress import showing

    if arguments.cancel:
        on_store(arguments.data, lambda store: nodes.undrain_node(store.parts, arguments.node_id))
        print(f"node {arguments.node_id} is used as before again")
        return 0
    with showing() as report:

        async def run(store: Store) -> NodeWork:
            return await nodes.drain_node(
                store.parts, arguments.node_id, bytes_per_second=arguments.limit, report=report
            )

        work = on_store(arguments.data, run)
    _tell_left(work, f"node {arguments.node_id} is not empty yet")
    print(f"node {arguments.node_id} holds no content any more; objfs node remove {arguments.node_id} takes it away")
    return 0


def remove(arguments: argparse.Namespace) -> int:
    from engine.care import nodes
    from objfs.progress import showing

    with showing() as report:

        async def run(store: Store) -> NodeWork:
            return await nodes.remove_node(
                store.parts, arguments.node_id, bytes_per_second=arguments.limit, report=report
            )

        on_store(arguments.data, run)
    print(f"node {arguments.node_id} is no part of the store any more; its directory can be emptied")
    return 0


def set_domain(arguments: argparse.Namespace) -> int:
    from engine.care import nodes
    from objfs.commands.stores import parse_node
    from objfs.progress import showing

    _, domain = parse_node(f"node={arguments.domain}")
    with showing() as report:

        async def run(store: Store) -> NodeWork:
            return await nodes.set_domain(
                store.parts, arguments.node_id, domain, bytes_per_second=arguments.limit, report=report
            )

        work = on_store(arguments.data, run)
    print(f"node {arguments.node_id} is in {domain or 'no particular domain'}; {_moved(work)}")
    _tell_left(work, "some segments have more fragments in one domain than the code can lose")
    return 0


def rebalance(arguments: argparse.Namespace) -> int:
    from engine.care import nodes
    from objfs.progress import showing

    with showing() as report:

        async def run(store: Store) -> NodeWork:
            return await nodes.rebalance(store.parts, bytes_per_second=arguments.limit, report=report)

        work = on_store(arguments.data, run)
    print(_moved(work))
    _tell_left(work, "some segments have more fragments in one domain than the code can lose")
    return 0


def _moved(work: NodeWork) -> str:
    return f"{work.crowded:,} segments broke the placement rule, {work.moved:,} fragments were moved"


def _tell_left(work: NodeWork, what: str) -> None:
    for reason in work.left:
        print(f"left: {reason}")
    if work.left:
        raise CommandFailed(f"{what}; see above")
