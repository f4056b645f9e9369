"""A world: clients, faults and crashes around one store, and the model beside it.

A world lives in processes (machine.Process). In each the store is opened and steps are
played until the process ends, orderly or not; then disks suffer what they suffer and the
next process opens what is left. After every step the promises are checked.

What was in flight when a process ended is doubtful: the next process asks which requests
the store knows as done (the table that makes retried commits happen once), and the model
takes over those, in commit order; everything must then be as the model says, so a change
that is half there, or there and denied, is found.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import anyio
import anyio.lowlevel
import trio

from engine.care.collect import collect
from engine.crash_sites import CrashSite
from engine.errors import IndexUnavailable, NodeFull, StoreError, Unreadable, WritesStopped
from engine.keymap.answers import idempotent
from engine.store import Opening, Store, init_store, open_store
from sim.checks import Violation, check_books, check_bytes, check_listings
from sim.faults import Faults
from sim.machine import EPOCH_NS, Machine
from sim.model import Model
from sim.operations import Clients, Operation, Prepare
from sim.upkeep import Care, Upkeep

ENVIRONMENT = (WritesStopped, NodeFull, IndexUnavailable, Unreadable)  # not the change's fault: may be tried again
HANG_SECONDS = 100_000.0
# k, m, nodes; the last four can't be written while m nodes are away
LAYOUTS = ((4, 2, 6), (2, 1, 3), (2, 1, 4), (1, 2, 5), (2, 2, 6), (3, 3, 7), (1, 1, 2), (1, 2, 3), (2, 2, 4), (3, 3, 6))


class World:
    def __init__(self, seed: int, folder: Path, steps: int, *, tell: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.steps = steps
        self.dice = random.Random(f"world {seed}")
        self.small = self.dice.random() < 0.9
        self.machine = Machine(seed, folder, small=self.small)
        self.k, self.m, self.nodes = self.dice.choice(LAYOUTS)
        self.clients = Clients(self.dice, 40_000 if self.small else 3_000_000)
        self.faults = Faults(self.machine, self.dice, self.m)
        self.upkeep = Upkeep(self.dice, self.faults, self.m)
        self.model = Model()
        self.durable_model = Model()  # what no power cut may take back …
        self.volatile: list[Operation] = []  # … and what was applied since
        self.doubtful: list[Operation] = []  # no answer, or an error that leaves it open
        self.away: list[Operation] = []  # gone with a node that is away, and back with it unless overruled
        self.opened_at = 0  # the last LSN when the process opened the store
        self.may_lose_unsynced = False
        self._tell = tell

    def tell(self, line: str) -> None:
        if self._tell is not None:
            self._tell(f"{(self.machine.now_ns() - EPOCH_NS) / 1e9:9.3f} {line}")

    # -- lives ---------------------------------------------------------------------------

    def play(self) -> None:
        paths = [(str(self.machine.folder / "nodes" / str(number)), "") for number in range(1, self.nodes + 1)]
        self.tell(f"code {self.k}+{self.m} on {self.nodes} nodes, {'small' if self.small else 'full'} sizes")
        init_store(self.machine.data, k=self.k, m=self.m, nodes=paths)
        while self.steps > 0:
            self._between_processes(self.machine.run(self._live))
        self.faults.calm()
        self.machine.run(self._epilogue)

    def _between_processes(self, ended_orderly: bool) -> None:
        self.steps -= 1
        power = self.dice.random() < 0.5
        self.tell(f"-- process {'ended' if ended_orderly else 'was killed'}{', power cut' if power else ''}")
        if power:
            self.machine.power_cut()
            # Closing syncs what was ordered, if the nodes let it.
            self.may_lose_unsynced |= not ended_orderly or not self.faults.enough_to_write()
        self.faults.between_processes(power)

    async def _live(self) -> None:
        trio.lowlevel.spawn_system_task(self._watch_for_hangs)
        if self.dice.random() < 0.2:
            self._plan_crash()
        async with self._opened() as store:
            await self._settle_doubts(store)
            if self.dice.random() < 0.8:
                self.machine.process.spare()
            await self._check(store, thorough=True)
            while self.steps > 0:
                self.steps -= 1
                if not await self._step(store):
                    return

    async def _epilogue(self) -> None:
        """All faults over: everything heals by itself, and what is dead goes."""
        async with self._opened() as store:
            await self._settle_doubts(store)
            await self.faults.heal_all(store)
            await self._check(store, thorough=True)
            self.tell(await self.upkeep.run(store, "collect", lambda store: collect(store.parts, compact=True)))
            self.faults.check_no_strays(store)
            await self._check(store, thorough=True)

    def _opened(self):  # type: ignore[no-untyped-def]
        return open_store(self.machine.data, Opening.OWN, node_opener=self.machine.open_node)

    async def _watch_for_hangs(self) -> None:
        await trio.sleep(HANG_SECONDS)
        waiting = "\n".join(_waits(trio.lowlevel.current_root_task()))
        raise Violation(f"nothing moves any more in the world of seed {self.seed}:\n{waiting}")

    # -- steps ---------------------------------------------------------------------------

    async def _step(self, store: Store) -> bool:
        """One step and its checks; False ends the process orderly."""
        choice = self.dice.random()
        if choice < 0.58:
            await self._batch(store)
        elif choice < 0.70:
            await self._batch(store, self.upkeep.next(store), clients=self.dice.choice((0, 2, 5)))
        elif choice < 0.80:
            seconds = self.dice.choice((0.2, 1.5, 5, 45))
            await self._wait(seconds)
        elif choice < 0.92:
            await self.faults.change(store, self.tell)
        elif choice < 0.95:
            self.tell("seal")
            await self._seal(store)
        elif choice < 0.98:
            self.tell("kill")
            self.machine.process.end()
        else:
            return False
        await self.faults.note_clean(store)
        await self._check(store, thorough=self.dice.random() < 0.1)
        return True

    async def _wait(self, seconds: float) -> None:
        self.tell(f"{seconds} s pass")
        await anyio.sleep(seconds)

    async def _seal(self, store: Store) -> None:
        try:
            await store.parts.plane.seal()
        except ENVIRONMENT as error:
            self.machine.process.go_on()
            self._must_be_excused(error)

    def _plan_crash(self) -> None:
        process = self.machine.process
        if self.dice.random() < 0.5:
            process.crash_in = self.dice.choice((self.dice.randint(1, 8), self.dice.randint(1, 80)))
            self.tell(f"crash planned in {process.crash_in} node operations")
        else:
            process.crash_at = (self.dice.choice(list(CrashSite)), self.dice.randint(1, 3))
            self.tell(f"crash planned where {process.crash_at[0]} ({process.crash_at[1]})")

    async def _batch(self, store: Store, care: tuple[str, Care] | None = None, clients: int | None = None) -> None:
        """A few clients at once, and perhaps some care of the store beside them."""
        count = self.dice.choice((1, 1, 2, 3, 6)) if clients is None else clients
        if self.dice.random() < 0.12:
            self._plan_crash()
        await self._play(store, [self.clients.next(self.model) for _ in range(count)], care)

    async def _play(self, store: Store, prepared: Sequence[Prepare], care: tuple[str, Care] | None = None) -> None:
        started: list[Operation] = []
        try:
            async with anyio.create_task_group() as tasks:
                if care is not None:
                    tasks.start_soon(self._care, store, *care)
                for prepare in prepared:
                    hangs_up = self.dice.random() < 0.06
                    tasks.start_soon(self._fickle if hangs_up else self._client, store, prepare, started)
        finally:
            self.doubtful += started
            for operation in started:
                self.tell(f"  {operation}")
        if any(operation.result is None and operation.error is None for operation in started):
            await anyio.sleep(0.1)  # whoever asked has gone; what was asked may still be done
        self.doubtful = self._take_over(store, self.doubtful)
        self._settle_durable(store)

    async def _fickle(self, store: Store, prepare: Prepare, started: list[Operation]) -> None:
        """A client that hangs up somewhere in the middle."""
        patience = self.dice.choice((1, 5, 20, 60))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._client, store, prepare, started)
            for _ in range(patience):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()

    async def _care(self, store: Store, name: str, care: Care) -> None:
        self.tell(await self.upkeep.run(store, name, care))

    async def _client(self, store: Store, prepare: Prepare, started: list[Operation]) -> None:
        with store.pins.hold():
            try:
                operation = await prepare(store)
            except ENVIRONMENT as error:
                self.machine.process.go_on()
                self.tell(f"  writing: {type(error).__name__}: {error}")
                self._must_be_excused(error)
                return
            self.machine.process.go_on()
            if operation is not None:
                started.append(operation)
                await self._commit(store, operation)

    async def _commit(self, store: Store, operation: Operation) -> None:
        try:
            result = await store.commit(operation.change, operation.origin, durable=operation.durable)
        except StoreError as error:
            self.machine.process.go_on()
            operation.error = error
            if isinstance(error, ENVIRONMENT):
                self._must_be_excused(error)
            return
        self.machine.process.go_on()  # an answer of a dead process is none
        operation.result = result

    def _must_be_excused(self, error: StoreError) -> None:
        if not self.faults.excuse(error):
            raise Violation(f"{type(error).__name__} with nothing wrong: {error}") from error

    # -- the model follows ---------------------------------------------------------------

    def _take_over(self, store: Store, operations: Sequence[Operation]) -> list[Operation]:
        """Apply what happened, in commit order, and judge refusals. Returns what remains
        doubtful."""
        done: list[tuple[int, Operation]] = []
        refused: list[Operation] = []
        doubtful: list[Operation] = []
        for operation in operations:
            if _refused(operation):
                refused.append(operation)
                continue
            found = idempotent(store.index._db, operation.request_id)  # type: ignore[attr-defined]
            if operation.result is not None and (found is None or found.lsn != operation.result.lsn):
                raise Violation(f"{operation} was answered, the store now says {found and found.lsn}")
            if found is not None:
                operation.result = found
                done.append((found.lsn, operation))
            else:
                doubtful.append(operation)
        states = [self.model.copy()] if refused else []
        for _, operation in sorted(done, key=lambda pair: pair[0]):
            self._apply(self.model, operation)
            self.volatile.append(operation)
            if refused:
                states.append(self.model.copy())
        for operation in refused:
            self._judge_refusal(operation, states)
        return doubtful

    def _apply(self, model: Model, operation: Operation) -> None:
        result = operation.result
        assert result is not None
        try:
            model.apply(
                operation.change, operation.content, lsn=result.lsn, time_ns=result.time_ns, origin=operation.origin
            )
        except StoreError as error:
            raise Violation(f"{operation} was accepted, it should be refused: {type(error).__name__}") from error

    def _judge_refusal(self, operation: Operation, states: Sequence[Model]) -> None:
        """It must be what some state in between calls for."""
        said: set[str] = set()
        for state in states:
            try:
                state.copy().apply(operation.change, operation.content, lsn=1 << 60, time_ns=0, origin=operation.origin)
                said.add("accepted")
            except StoreError as error:
                said.add(type(error).__name__)
        if type(operation.error).__name__ not in said:
            raise Violation(f"{operation} ({operation.error}), expected {said}")

    def _settle_durable(self, store: Store) -> None:
        """What the store calls durable now, nothing takes back."""
        durable = store.index.durable_lsn()  # type: ignore[attr-defined]
        if durable > self.opened_at:  # a new epoch has overruled what nobody was answered
            self.away = []
        self.volatile.sort(key=lambda operation: operation.result.lsn if operation.result else 0)
        while self.volatile and self.volatile[0].result is not None and self.volatile[0].result.lsn <= durable:
            self._apply(self.durable_model, self.volatile.pop(0))

    async def _settle_doubts(self, store: Store) -> None:
        """After opening: which of the unsynced and unanswered changes are there?"""
        end = self.opened_at = store.keymap.applied_lsn()
        self.doubtful += self.away
        self.volatile += [operation for operation in self.doubtful if operation.result is not None]
        self.doubtful = [operation for operation in self.doubtful if operation.result is None]
        lost: list[Operation] = []
        kept: list[Operation] = []
        for operation in self.volatile:
            assert operation.result is not None
            found = idempotent(store.index._db, operation.request_id)  # type: ignore[attr-defined]
            (lost if found is None else kept).append(operation)
        must_stay = [op for op in lost if not self.may_lose_unsynced or (op.durable and op.error is None)]
        if must_stay:
            raise Violation(f"lost after recovery at LSN {end}: " + "; ".join(map(str, must_stay)))
        newest_kept = max((op.result.lsn for op in kept if op.result), default=0)
        holes = [op for op in lost if op.result and op.result.lsn < newest_kept]
        if holes:
            raise Violation(f"a hole: LSN {newest_kept} is there, but not " + "; ".join(map(str, holes)))
        for operation in lost:
            self.tell(f"  taken back by the power cut: {operation}")
        self.model = self.durable_model.copy()
        self.volatile = []
        # A refusal that was not to be durable may tell of something the power cut took back.
        judged = [op for op in self.doubtful if not (_refused(op) and self.may_lose_unsynced and not op.durable)]
        unseen = self._take_over(store, [*kept, *judged])
        self.doubtful = []
        for operation in lost:
            operation.result = None
        self.away = [*lost, *unseen] if store.parts.nodes.missing else []
        self.may_lose_unsynced = False
        try:
            await store.index.wait_durable(end)  # type: ignore[attr-defined]
        except WritesStopped as error:
            self._must_be_excused(error)
        self._settle_durable(store)

    # -- promises ------------------------------------------------------------------------

    async def _check(self, store: Store, *, thorough: bool) -> None:
        check_listings(store, self.model, self.dice)
        if not self.faults.beyond_reading():
            await check_bytes(store, self.model, self.dice, 1.0 if thorough else 0.3)
            if thorough:
                await check_books(store)


def _refused(operation: Operation) -> bool:
    """It never happens; any other error leaves open whether it did."""
    return operation.error is not None and not isinstance(operation.error, ENVIRONMENT)


def _waits(task: trio.lowlevel.Task | None) -> Iterator[str]:
    """Where each task waits, from the outside in."""
    if task is None:
        return
    frames, awaited = [], task.coro
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "ag_frame", None)
        if frame is not None and "engine" in frame.f_code.co_filename:
            frames.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}")
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "ag_await", None)
    if frames:
        yield f"  {task.name}: {' > '.join(frames)}"
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _waits(child)


def replay_command(seed: int, steps: int) -> str:
    return f"tools/soak --seed {seed} --steps {steps}"


def describe(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))
