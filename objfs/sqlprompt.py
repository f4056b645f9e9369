"""The prompt of `objfs sql`: statements end with `;`, history stays, Ctrl-D ends.

Knows how to ask and where to print, not how a statement is answered.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import BinaryIO

import pyarrow
from prompt_toolkit import PromptSession
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from engine.errors import StoreError
from objfs.sqlformat import write

PROMPT = "objfs> "
CONTINUATION = "  ...> "
QUIT_WORDS = frozenset({"exit", "quit", "\\q", ".quit", ".exit"})
KEYWORDS = (
    "SELECT",
    "FROM",
    "WHERE",
    "GROUP",
    "BY",
    "ORDER",
    "LIMIT",
    "OFFSET",
    "WITH",
    "AS",
    "AND",
    "OR",
    "NOT",
    "NULL",
    "IS",
    "IN",
    "LIKE",
    "COUNT",
    "SUM",
    "AVG",
    "MIN",
    "MAX",
    "DISTINCT",
    "JOIN",
    "LEFT",
    "USING",
    "ON",
    "HAVING",
    "DESC",
    "ASC",
    "UNION",
    "ALL",
    "DESCRIBE",
    "SHOW",
    "TABLES",
    "SUMMARIZE",
    "EXPLAIN",
)
RELATIONS = (
    "inventory",
    "journal",
    "s3_inventory",
    "space",
    "space_by_bucket",
    "buckets",
    "versions",
    "uploads",
    "parts",
    "chunks",
    "chunk_references",
    "segments",
    "fragments",
    "protection",
    "chunk_protection",
    "nodes",
    "users",
    "store_journal",
)


def is_complete(text: str) -> bool:
    """Whether Enter runs what is typed: it ends with `;` outside quotes and comments, is a
    word that quits, or is empty."""
    stripped = text.strip()
    if not stripped or stripped.lower() in QUIT_WORDS:
        return True
    return stripped.endswith(";") and not _open_at_end(stripped)


def _open_at_end(text: str) -> bool:
    """Whether the text ends inside a quotation or a comment."""
    position, closing = 0, ""
    while position < len(text):
        pair = text[position : position + 2]
        if closing:
            if text.startswith(closing, position):
                position += len(closing) - 1
                closing = ""
        elif pair in ("--", "/*"):
            closing = "\n" if pair == "--" else "*/"
            position += 1
        elif text[position] in "'\"":
            closing = text[position]
        position += 1
    return bool(closing)


def history_path() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return Path(state) / "objfs" / "sql_history"


def _history() -> History:
    """Kept in a file readable by its owner only; in memory where none can be written."""
    path = history_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with path.open("ab"):
            pass
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def session() -> PromptSession[str]:
    bindings = KeyBindings()

    @Condition
    def complete_now() -> bool:
        return is_complete(prompt.default_buffer.text)

    @bindings.add("enter", filter=complete_now)
    def _(event: KeyPressEvent) -> None:
        buffer: Buffer = event.current_buffer
        buffer.validate_and_handle()

    prompt: PromptSession[str] = PromptSession(
        history=_history(),
        multiline=True,
        key_bindings=bindings,
        prompt_continuation=CONTINUATION,
        completer=WordCompleter([*RELATIONS, *KEYWORDS], ignore_case=True),
        complete_while_typing=False,
    )
    return prompt


def run(ask: Callable[[str], pyarrow.Table], format: str, out: BinaryIO) -> None:
    """Read statements and print their answers until Ctrl-D. Called outside any event
    loop; errors of a statement are printed and the prompt goes on."""
    prompt = session()
    while True:
        try:
            statement = prompt.prompt(PROMPT).strip()
        except KeyboardInterrupt:
            continue  # Ctrl-C drops the line, as in a shell
        except EOFError:
            return
        if not statement:
            continue
        if statement.rstrip("; ").lower() in QUIT_WORDS:
            return
        answer(ask, statement, format, out)


def answer(ask: Callable[[str], pyarrow.Table], statement: str, format: str, out: BinaryIO) -> None:
    try:
        write(ask(statement), format, out)
    except StoreError as error:
        out.write(f"error: {error}\n".encode())
    out.flush()


async def run_async(ask: Callable[[str], Awaitable[pyarrow.Table]], format: str, out: BinaryIO) -> None:
    """`run` beside an event loop that answers: the prompt waits in a thread of its own."""
    import anyio.from_thread
    import anyio.to_thread

    async def answered(statement: str) -> pyarrow.Table:
        return await ask(statement)

    def ask_loop(statement: str) -> pyarrow.Table:
        return anyio.from_thread.run(answered, statement)

    await anyio.to_thread.run_sync(run, ask_loop, format, out)
