"""`objfs` with its syncing broken on purpose, to see whether the tests would notice.

    python without_sync.py WHAT serve …        WHAT: journal, one replica, segments, late
    python without_sync.py WHAT --role MODULE ARGUMENTS      one process of that server

"late" answers before it syncs, so that everything is synced in the end.
"""

from __future__ import annotations

import runpy
import sys
import threading
from collections.abc import Callable

from engine.nodes.directory import DirectoryNode

WHAT = sys.argv[1]
true_sync: Callable[[DirectoryNode, str], None] = DirectoryNode.sync


def broken_sync(self: DirectoryNode, name: str) -> None:
    match WHAT:
        case "journal" if name.startswith("journal/"):
            return
        case "one replica" if name.startswith("journal/") and self.node_id != min(_replicas(self, name)):
            return
        case "segments" if name.startswith("segments/"):
            return
        case "late":
            threading.Thread(target=true_sync, args=(self, name)).start()
            return
    true_sync(self, name)


def _replicas(node: DirectoryNode, name: str) -> list[str]:
    """Ids of the nodes that hold the file; ids and directories are numbered alike here."""
    from pathlib import Path

    here = Path(node.path)
    return [f"node{other.name.removeprefix('node')}" for other in here.parent.iterdir() if (other / name).exists()]


def serve() -> int:
    import objfs.commands.serving as serving
    from objfs.cli import main
    from objfs.supervisor import Role

    true_roles = serving.roles_of

    def broken_roles(*arguments: object) -> list[Role]:
        roles = true_roles(*arguments)  # type: ignore[arg-type]
        for role in roles:
            python, _, _, *module = role.command
            object.__setattr__(role, "command", [python, __file__, WHAT, "--role", *module])
        return roles

    serving.roles_of = broken_roles  # type: ignore[assignment]
    sys.argv = ["objfs", *sys.argv[2:]]
    return main(sys.argv[1:])


if __name__ == "__main__":
    DirectoryNode.sync = broken_sync  # type: ignore[method-assign]
    if sys.argv[2] == "--role":
        sys.argv = sys.argv[3:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.exit(serve())
