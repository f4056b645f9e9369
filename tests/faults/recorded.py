"""Clients that share keys, at both doors, and the record of what they asked and were told.

An S3 client opens a new connection now and then, and so meets both gateway workers. A
mount client makes its files aside and renames them into place, so that everything it does
to a shared key is one operation. Contents are unique, of one length and within a page:
that is what a read at the mount sees at one moment while another door replaces the file.
Other keys are claimed and given up: they exist, with nothing in them, or they do not.
"""

from __future__ import annotations

import os
import random
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from doors import MountDoor, NotSent, S3Door, Unknown
from linearizability import NEVER, Call, State, holds, is_absent, is_there, read, take, write
from served import BUCKET, ServedStore

KEYS, CLAIMS = 4, 2
CONTENT_BYTES = 3_000
SHARED, ASIDE = "keys", "aside"
PAUSE_SECONDS = 0.02
UNKNOWNS_MAX = 3  # per client: each makes the search wider

Step = Callable[[State], State]


class History:
    """Filled by every client's thread."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.counts: Counter[str] = Counter()

    def record(self, key: str, text: str, act: Callable[[], Any], judge: Callable[[Any], Step]) -> Any:
        """Do it and note it. `judge` makes the step of an answer; of None when there was none.
        The answer, or None."""
        sent = time.monotonic_ns()
        answered, answer = NEVER, None
        try:
            answer = act()
            answered = time.monotonic_ns()
            text += f" → {_show(answer)}"
        except NotSent:
            return None
        except Unknown:
            text += ": unknown"
        self.calls.append(Call(key, text, sent, answered, judge(answer)))
        self.counts["unknown" if answered == NEVER else text.split()[1]] += 1
        return answer


class SharingClient(ABC):
    def __init__(self, name: str, seed: int, history: History, content_bytes: int = CONTENT_BYTES) -> None:
        self.name = name
        self._content_bytes = content_bytes
        self.rng = random.Random(seed)
        self.history = history
        self.last: dict[str, bytes] = {}  # what was last read or written, for If-Match
        self.unknowns = 0
        self._written = 0

    def work(self, stop: threading.Event) -> None:
        while not stop.is_set() and self.unknowns < UNKNOWNS_MAX:
            before = len(self.history.calls)
            if self.rng.random() < 0.25:
                self.claim(f"claim{self.rng.randrange(CLAIMS)}")
            else:
                self.step(str(self.rng.randrange(KEYS)))
            if len(self.history.calls) == before:
                time.sleep(PAUSE_SECONDS)  # nobody listens at the moment
        self.close()

    @abstractmethod
    def step(self, key: str) -> None: ...

    @abstractmethod
    def claim(self, key: str) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    def new_content(self) -> bytes:
        self._written += 1
        start = f"{self.name}-{self._written} ".encode()
        return start + self.rng.randbytes(self._content_bytes - len(start))

    def do(self, key: str, what: str, act: Callable[[], Any], judge: Callable[[Any], Step]) -> Any:
        def noting() -> Any:
            try:
                return act()
            except Unknown:
                self.unknowns += 1
                raise

        return self.history.record(key, f"{self.name} {what}", noting, judge)


class SharingS3Client(SharingClient):
    def __init__(
        self, name: str, seed: int, history: History, served: ServedStore, content_bytes: int = CONTENT_BYTES
    ) -> None:
        super().__init__(name, seed, history, content_bytes)
        self._door = S3Door(served.environment, BUCKET)

    def close(self) -> None:
        self._door.close()

    def step(self, key: str) -> None:
        if self.rng.random() < 0.3:
            self._door.close()
        path, content, known = f"{SHARED}/{key}", self.new_content(), self.last.get(key, b"never")
        match self.rng.choices(("get", "put", "new", "match", "delete", "delete match"), (6, 2, 3, 3, 1, 1))[0]:
            case "get":
                found = self.do(key, "get", lambda: (self._door.get(path),), _reading)
                if found is not None and found[0] is not None:
                    self.last[key] = found[0]
            case "put":
                self._write(key, "put", content, lambda: self._door.put(path, content))
            case "new":
                put_new = lambda: self._door.put(path, content, only_new=True)  # noqa: E731
                self._write(key, "put-if-new", content, put_new, is_absent)
            case "match":
                put_over = lambda: self._door.put(path, content, only_over=known)  # noqa: E731
                self._write(key, f"put-if-match {known[:12]!r}", content, put_over, holds(known))
            case "delete":
                self._write(key, "delete", None, lambda: self._door.delete(path))
            case _:
                delete_over = lambda: self._door.delete(path, only_over=known)  # noqa: E731
                self._write(key, f"delete-if-match {known[:12]!r}", None, delete_over, holds(known))

    def claim(self, key: str) -> None:
        path = f"{SHARED}/{key}"
        match self.rng.choice(("claim", "give up", "look")):
            case "claim":
                self._write(key, "put-if-new", b"", lambda: self._door.put(path, b"", only_new=True), is_absent)
            case "give up":
                self._write(key, "delete", None, lambda: self._door.delete(path))
            case _:
                self.do(key, "head", lambda: (b"" if self._door.exists(path) else None,), _reading)

    def _write(
        self,
        key: str,
        what: str,
        content: State,
        act: Callable[[], bool],
        condition: Callable[[State], bool] = lambda state: True,
    ) -> None:
        def judge(happened: bool | None) -> Step:
            return write(content, condition=condition, happened=happened)

        label = f"{what} {content[:12]!r}" if content is not None else what
        if self.do(key, label, act, judge) and content is not None:
            self.last[key] = content


class SharingMountClient(SharingClient):
    def __init__(self, name: str, seed: int, history: History, served: ServedStore) -> None:
        super().__init__(name, seed, history)
        self._shared = MountDoor(served.bucket_path / SHARED)
        self._top = served.bucket_path

    def close(self) -> None:
        self._shared.close()

    def claim(self, key: str) -> None:
        if not self._mounted():
            return
        match self.rng.choice(("create", "link", "symlink", "give up", "look")):
            case "create":
                self._claim(key, "create", lambda: self._create(key))
            case "link":
                if aside := self._aside(b"linked"):
                    self._claim(key, "link", lambda: self._shared.link(aside, key))
            case "symlink":
                self._claim(key, "symlink", lambda: self._shared.symlink(key))
            case "give up":
                unlink = lambda: _happened(self._shared.unlink, key, refused=FileNotFoundError)  # noqa: E731
                self.do(key, "unlink", unlink, _unlinking)
            case _:
                self.do(key, "stat", lambda: (b"" if self._shared.exists(key) else None,), _reading)

    def _claim(self, key: str, what: str, act: Callable[[], None]) -> None:
        self.do(key, what, lambda: _happened(act, refused=FileExistsError), _creating)

    def _mounted(self) -> bool:
        try:
            self._shared.open_directory()
        except NotSent:
            return False
        return True

    def step(self, key: str) -> None:
        if not self._mounted():
            return
        match self.rng.choices(("read", "write", "new", "unlink", "take"), (6, 2, 3, 1, 1))[0]:
            case "read":
                self.do(key, "read", lambda: (self._read(key),), _reading)
            case "write":
                self._place(key, replace=True)
            case "new":
                self._place(key, replace=False)
            case "unlink":
                self.do(
                    key, "unlink", lambda: _happened(self._shared.unlink, key, refused=FileNotFoundError), _unlinking
                )
            case _:
                self._take(key)

    def _read(self, key: str) -> State:
        try:
            return self._shared.read(key)
        except FileNotFoundError:
            return None

    def _create(self, key: str) -> None:
        self._shared.close_file(self._shared.open(key, os.O_CREAT | os.O_EXCL | os.O_RDWR))

    def _place(self, key: str, *, replace: bool) -> None:
        """Write aside, then rename into place."""
        content = self.new_content()
        aside = self._aside(content)
        if aside is None:
            return

        def judge(happened: bool | None) -> Step:
            return write(content, condition=(lambda state: True) if replace else is_absent, happened=happened)

        what = "rename" if replace else "rename-if-new"
        self.do(
            key,
            f"{what} {content[:12]!r}",
            lambda: _happened(self._shared.rename, aside, key, replace=replace, refused=FileExistsError),
            judge,
        )

    def _aside(self, content: bytes) -> str | None:
        """The name of a new file nobody else sees; None if the mount died meanwhile."""
        self._written += 1
        aside = f"../{ASIDE}/{self.name}-{self._written}"
        try:
            descriptor = self._shared.open(aside, os.O_CREAT | os.O_EXCL | os.O_RDWR)
            written = self._shared.write(descriptor, content, 0)
            os.close(descriptor)
        except (Unknown, NotSent, OSError):
            return None
        return aside if written == len(content) else None

    def _take(self, key: str) -> None:
        """Rename away, and see what it was."""
        self._written += 1
        aside = f"../{ASIDE}/{self.name}-{self._written}"

        def act() -> tuple[State]:
            if not _happened(self._shared.rename, key, aside, refused=FileNotFoundError):
                return (None,)
            try:
                return (self._shared.read(aside),)
            except NotSent as error:
                raise Unknown(str(error)) from error

        def judge(found: tuple[State] | None) -> Step:
            if found is None:
                return write(None, happened=None)
            return read(None) if found[0] is None else take(found[0])

        self.do(key, "take", act, judge)


def _show(answer: Any) -> str:
    if not isinstance(answer, tuple):
        return "yes" if answer else "refused"
    return "absent" if answer[0] is None else f"{len(answer[0])} bytes {answer[0][:12]!r}…{answer[0][-4:]!r}"


def _happened(act: Callable[..., None], *arguments: Any, refused: type[OSError], **named: Any) -> bool:
    try:
        act(*arguments, **named)
    except refused:
        return False
    return True


def _reading(found: tuple[State] | None) -> Step:
    return (lambda state: state) if found is None else read(found[0])


def _creating(happened: bool | None) -> Step:
    return write(b"", condition=is_absent, happened=happened)


def _unlinking(happened: bool | None) -> Step:
    return write(None, condition=is_there, happened=happened)


def prepare(served: ServedStore) -> None:
    """The bucket and its two directories."""
    S3Door(served.environment, BUCKET).request("PUT")
    for name in (SHARED, ASIDE):
        Path(served.bucket_path / name).mkdir()


def run_together(clients: list[SharingClient], meanwhile: Callable[[], None]) -> None:
    """All clients work until `meanwhile` returns. Raises what a client raised."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(client: SharingClient) -> None:
        try:
            client.work(stop)
        except BaseException as error:  # noqa: BLE001 - raised below, in the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(client,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    try:
        meanwhile()
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a client hangs"
    if failures:
        raise failures[0]
