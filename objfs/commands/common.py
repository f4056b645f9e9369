"""What several subcommands share: running a coroutine on the open store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio

if TYPE_CHECKING:
    from engine.store import Store

Result = TypeVar("Result")


def on_store(data: str, ask: Callable[[Store], Awaitable[Result]]) -> Result:
    """The result of `ask` on the store at `data`: beside a running server, or opened here."""
    from engine.store import open_store

    async def run() -> Result:
        async with open_store(Path(data)) as store:
            return await ask(store)

    try:
        return anyio.run(run)
    except BaseExceptionGroup as group:
        raise only_error(group) from None


def only_error(error: BaseException) -> BaseException:
    """The one error inside nested groups of task groups; several stay a group."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
