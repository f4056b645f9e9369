"""Rounds of work, kills and power cuts on a served store, every promise checked each round.

    python kill_rounds.py --rounds N --seed S      (tools/kill-rounds)

In a round clients work at both doors, each on keys of its own, while single processes are
killed with -9. Then everything ends: most often with all processes killed and the power
cut, sometimes killed without, or in order. The server starts again, and each client's
Expectation judges what is there, read at both doors.

One seed draws the same contents and kills; threads and clocks make each run its own.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path

from doors import MULTIPART_BYTES_MIN, MountDoor, NotSent, S3Door, Unknown
from expectation import Expectation, delete, patch, put, rename
from served import BUCKET, K, M, ServedStore

S3_CLIENTS, MOUNT_CLIENTS = 3, 2
KEYS = 5
UNKNOWNS_MAX = 4  # a client that does not know this many outcomes waits for the round's end
SIZES = (0, 1, 100, 4_000, 30_000, 70_000, 200_000, 1_200_000)
WRITE_BYTES = 100_000  # one write(2) into the mount
WORK_SECONDS = (0.8, 2.5)
KEEPING = 0.5  # of the rounds have garbage collected and so on meanwhile
FAULTY_NODES_MAX = M  # at a time; of the others every promise holds
ROUNDS_PER_STORE = 25  # then a new one: nothing here collects what is overwritten
RETRY_SECONDS = 0.05
VICTIMS = ("index", "index", "gateway", "gateway", "mount", "tables", "caretaker", "supervisor", "disk", "disk")


def draw_content(rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice(SIZES))


class Client(ABC):
    """A thread that works in rounds on keys below `name`/."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.expectation = Expectation(name)
        self.rng = random.Random(seed)
        self.done: Counter[str] = Counter()

    def work(self, stop: threading.Event) -> None:
        while not stop.is_set() and self.expectation.unknowns < UNKNOWNS_MAX:
            try:
                self.step()
            except NotSent:
                self.done["not sent"] += 1
                time.sleep(RETRY_SECONDS)
        self.rest()

    @abstractmethod
    def step(self) -> None: ...

    def rest(self) -> None:  # noqa: B027 - a client that holds nothing open has nothing to end
        """The round is over."""

    def key(self) -> str:
        return f"{self.name}/{self.rng.randrange(KEYS)}"


class S3Client(Client):
    def __init__(self, name: str, seed: int, served: ServedStore) -> None:
        super().__init__(name, seed)
        self._door = S3Door(served.environment, BUCKET)
        self._last: dict[str, bytes] = {}  # content last put, to be named in If-Match

    def step(self) -> None:
        key, content = self.key(), draw_content(self.rng)
        kind = self.rng.choices(
            ("put", "if new", "if match", "delete", "delete if match", "multipart"), (8, 2, 2, 2, 1, 0.3)
        )[0]
        known = self._last.get(key, b"never put")
        match kind:
            case "put":
                act, operation = (lambda: self._door.put(key, content)), put(key, content)
            case "if new":
                act = lambda: self._door.put(key, content, only_new=True)  # noqa: E731
                operation = put(key, content, only_new=True)
            case "if match":
                act = lambda: self._door.put(key, content, only_over=known)  # noqa: E731
                operation = put(key, content, only_over=known)
            case "delete":
                act, operation = (lambda: self._door.delete(key)), delete(key)
            case "delete if match":
                act = lambda: self._door.delete(key, only_over=known)  # noqa: E731
                operation = delete(key, only_over=known)
            case _:
                parts = [self.rng.randbytes(MULTIPART_BYTES_MIN), content or b"end"]
                content = b"".join(parts)
                act, operation = (lambda: self._in_parts(key, parts)), put(key, content)
        try:
            happened = act()
        except Unknown:
            self.done["unknown"] += 1
            self.expectation.unknown(operation)
            return
        if happened:
            self.expectation.acknowledged(operation, durable=True)
        else:
            self.expectation.refused(operation)
        self.done[kind if happened else "refused"] += 1
        if happened and "delete" not in kind and kind != "multipart":
            self._last[key] = content

    def _in_parts(self, key: str, parts: list[bytes]) -> bool:
        self._door.put_in_parts(key, parts)
        return True

    def rest(self) -> None:
        self._door.close()


class MountClient(Client):
    """What is acknowledged: fsync of a file, and of the directory."""

    def __init__(self, name: str, seed: int, served: ServedStore) -> None:
        super().__init__(name, seed)
        self._door = MountDoor(served.bucket_path / name)
        self._new = 0

    def step(self) -> None:
        self._door.open_directory()
        kind = self.rng.choices(("write new", "replace", "patch", "append", "rename", "unlink"), (3, 4, 3, 2, 2, 2))[0]
        name = str(self.rng.randrange(KEYS))
        match kind:
            case "write new":
                self._write(name, draw_content(self.rng))
            case "replace":
                if self._write("temporary", draw_content(self.rng)):
                    self._rename("temporary", name)
            case "patch":
                self._patch(name, self.rng.randrange(100_000))
            case "append":
                self._patch(name, None)
            case "rename":
                self._rename(name, str(self.rng.randrange(KEYS)), replace=self.rng.random() < 0.5)
            case _:
                self._unlink(name)
        if self.rng.random() < 0.3:
            self._sync_directory()
        self.done[kind] += 1

    def rest(self) -> None:
        self._door.close()

    def _write(self, name: str, content: bytes) -> bool:
        """A new file, written and synced; whether all of that was answered."""
        key, empty = f"{self.name}/{name}", put(f"{self.name}/{name}", b"", only_new=True)
        try:
            descriptor = self._door.open(name, 0o302)  # O_CREAT | O_EXCL | O_RDWR
        except FileExistsError:
            self.expectation.refused(empty)
            return False
        except Unknown:
            self.expectation.unknown(empty)
            return False
        self.expectation.acknowledged(empty, durable=False)
        return self._fill(key, descriptor, content)

    def _fill(self, key: str, descriptor: int, content: bytes) -> bool:
        written, ends = 0, []
        try:
            while written < len(content):
                written += self._door.write(descriptor, content[written : written + WRITE_BYTES], written)
                ends.append(written)
            self._door.sync(descriptor)
        except Unknown:
            # close() publishes what is there by then, and so does each process we start
            # meanwhile, when it closes its copy of our descriptor.
            self.expectation.unknown(put(key, content[:written]), *(put(key, content[:end]) for end in ends[:-1]))
            return False
        else:
            self.expectation.acknowledged(put(key, content), durable=True)
            return True
        finally:
            self._door.close_file(descriptor)

    def _patch(self, name: str, offset: int | None) -> None:
        key, content = f"{self.name}/{name}", self.rng.randbytes(self.rng.choice((1, 3_000, 90_000)))
        operation = patch(key, offset, content)
        try:
            descriptor = self._door.open(name, 0o2)
        except FileNotFoundError:
            self.expectation.refused(operation)
            return
        except Unknown:
            self.done["unknown"] += 1
            return  # opening changes nothing
        try:
            start = self._door.size(descriptor) if offset is None else offset
            written = self._door.write(descriptor, content, start)
            operation = patch(key, offset, content[:written])
            self._door.sync(descriptor)
        except Unknown:
            self.expectation.unknown(operation)
        else:
            self.expectation.acknowledged(operation, durable=True)
        finally:
            self._door.close_file(descriptor)

    def _rename(self, name: str, target: str, *, replace: bool = True) -> None:
        if name == target:
            return
        operation = rename(f"{self.name}/{name}", f"{self.name}/{target}", replace=replace)
        try:
            self._door.rename(name, target, replace=replace)
        except (FileNotFoundError, FileExistsError):
            self.expectation.refused(operation)
        except Unknown:
            self.expectation.unknown(operation)
        else:
            self.expectation.acknowledged(operation, durable=False)

    def _unlink(self, name: str) -> None:
        operation = delete(f"{self.name}/{name}", must_exist=True)
        try:
            self._door.unlink(name)
        except FileNotFoundError:
            self.expectation.refused(operation)
        except Unknown:
            self.expectation.unknown(operation)
        else:
            self.expectation.acknowledged(operation, durable=False)

    def _sync_directory(self) -> None:
        try:
            self._door.sync_directory()
        except (Unknown, NotSent):
            return
        self.expectation.made_durable()


class Keeper(Client):
    """Keeps house beside the clients: what is deleted is collected while they work."""

    COMMANDS = (
        ("gc", "--wait", "2s"),
        ("compact", "--wait", "2s", "--threshold", "0.95"),
        ("checkpoint",),
        ("scrub",),
        ("repair", "--grace", "1s"),
    )

    def __init__(self, seed: int, served: ServedStore) -> None:
        super().__init__("keeper", seed)
        self._served = served

    def step(self) -> None:
        time.sleep(self.rng.uniform(0, 1))
        name, *arguments = self.rng.choice(self.COMMANDS)
        outcome = self._served.command(name, *arguments)
        if outcome is None:
            raise NotSent("the server is down")
        self.done[f"{name} {outcome}" if outcome in ("done", "killed") else f"{name} not done"] += 1


class KillRounds:
    """A store and its clients. `program`: the objfs to test."""

    def __init__(self, directory: Path, seed: int, program: list[str | Path] | None = None) -> None:
        self.rng = random.Random(seed)
        self.served = ServedStore(directory)
        if program is not None:
            self.served.store.program = program
        self.rounds: Counter[str] = Counter()
        try:
            self._prepare(seed)
        except BaseException:
            self.close()
            raise

    def _prepare(self, seed: int) -> None:
        self.served.start()
        S3Door(self.served.environment, BUCKET).request("PUT")
        self.clients: list[Client] = [
            *(S3Client(f"s{number}", seed * 100 + number, self.served) for number in range(S3_CLIENTS)),
            *(MountClient(f"m{number}", seed * 100 + 50 + number, self.served) for number in range(MOUNT_CLIENTS)),
        ]
        self.keeper = Keeper(seed * 100 + 99, self.served)
        for number in range(MOUNT_CLIENTS):
            (self.served.bucket_path / f"m{number}").mkdir()
        door = MountDoor(self.served.bucket_path)
        door.open_directory()
        door.sync_directory()
        door.close()

    def round(self) -> None:
        """Raises Broken."""
        stop = threading.Event()
        failures: list[BaseException] = []

        def work(client: Client) -> None:
            try:
                client.work(stop)
            except BaseException as error:  # noqa: BLE001 - raised below, in the main thread
                failures.append(error)

        workers = [*self.clients, *([self.keeper] if self.rng.random() < KEEPING else [])]
        threads = [threading.Thread(target=work, args=(client,), daemon=True) for client in workers]
        for thread in threads:
            thread.start()
        try:
            self._disturb(time.monotonic() + self.rng.uniform(*WORK_SECONDS))
            ending = self.rng.choices(("power cut", "killed", "ended"), (6, 2, 1))[0]
            if ending == "ended":
                stop.set()  # else work goes on under the kill
            self._end(ending)
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
        assert not any(thread.is_alive() for thread in threads), "a client hangs"
        if failures:
            raise failures[0]
        self.rounds[ending] += 1
        for client in self.clients:
            client.expectation.stopped(power_cut=ending == "power cut")
        self.served.start()
        self._check(power_cut=ending == "power cut")

    def _disturb(self, until: float) -> None:
        """Kill single processes now and then."""
        kills = self.rng.choice((0, 0, 1, 1, 2, 3))
        for moment in sorted(self.rng.uniform(0.1, 1.0) for _ in range(kills)):
            time.sleep(max(until - 1.2 + moment - time.monotonic(), 0))
            victim = self.rng.choice(VICTIMS)
            if victim == "disk":
                self._break_disk()
            elif victim == "supervisor":
                self.served.kill_all()  # its children die with it
                self.served.start()
                self.rounds["supervisor killed"] += 1
            elif pids := self.served.processes(victim):
                self.served.signal(self.rng.choice(pids), signal.SIGKILL)
                self.rounds[f"{victim} killed"] += 1
        time.sleep(max(until - time.monotonic(), 0))

    def _break_disk(self) -> None:
        """The next calls on a node's disk or two fail."""
        for number in self.rng.sample(range(1, K + M + 1), self.rng.randint(1, FAULTY_NODES_MAX)):
            kind = self.rng.choice(("sync", "sync", "write", "full"))
            self.served.disks.command("fail", f"node{number}", kind, self.rng.randint(1, 3))
            self.rounds[f"disk: {kind} failed"] += 1

    def _end(self, ending: str) -> None:
        match ending:
            case "power cut":
                lost = self.served.cut_power(self.rng.getrandbits(32), lose_index=self.rng.random() < 0.15)
                self.rounds["unsynced writes lost"] += lost["writes"]
            case "killed":
                self.served.kill_all()
            case _:
                self.served.stop()

    def _check(self, *, power_cut: bool) -> None:
        door = S3Door(self.served.environment, BUCKET)
        for client in self.clients:
            found = door.contents(f"{client.name}/")
            if power_cut:
                client.expectation.seen_after_power_cut(found)
            else:
                client.expectation.seen(found)
            self.rounds["contents checked"] += len(found)
            if isinstance(client, MountClient):
                self._check_mounted(client.name, found)
        door.close()

    def _check_mounted(self, name: str, expected: dict[str, bytes]) -> None:
        door = MountDoor(self.served.bucket_path / name)
        door.open_directory()
        found = {f"{name}/{file}": door.read(file) for file in door.names()}
        door.close()
        assert found == expected, f"the mount shows other files below {name}/ than S3: {sorted(found)}"

    def finish(self) -> None:
        """The store is whole in the end, and so is every byte on its nodes."""
        self.served.stop()
        self.served.store.objfs("repair", "--grace", "1s")
        self.served.store.objfs("fsck")
        self.served.store.objfs("scrub", "--all")

    def close(self) -> None:
        self.served.close()


def run(rounds: int, seed: int, directory: Path) -> Counter[str]:
    """Raises Broken, with the seed and the round; the store is then left as it was."""
    done: Counter[str] = Counter()
    while done["rounds"] < rounds:
        place = directory / f"store{done['rounds']}"
        place.mkdir()
        kills = KillRounds(place, seed + done["rounds"])
        try:
            for _ in range(min(ROUNDS_PER_STORE, rounds - done["rounds"])):
                try:
                    kills.round()
                except BaseException as error:
                    error.add_note(f"round {done['rounds']} of seed {seed}; the store is in {place}")
                    raise
                done["rounds"] += 1
                print(f"round {done['rounds']}: {dict(kills.rounds)}", file=sys.stderr, flush=True)
            kills.finish()
        finally:
            kills.close()
        done.update(kills.rounds)
        for client in (*kills.clients, kills.keeper):
            done.update(client.done)
        shutil.rmtree(place)
    return done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30), metavar="S")
    parser.add_argument("--directory", type=Path, metavar="DIR", help="where the stores lie (default: a temporary one)")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    directory = options.directory or Path(tempfile.mkdtemp(prefix="kill-rounds-"))
    directory.mkdir(exist_ok=True)
    done = run(options.rounds, options.seed, directory)
    shutil.rmtree(directory)
    print(", ".join(f"{count} {what}" for what, count in sorted(done.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
