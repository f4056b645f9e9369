"""objfs node list and replace."""

from __future__ import annotations

import argparse
import json
from typing import Any, cast

from objfs.commands.common import on_store


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
