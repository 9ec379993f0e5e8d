"""Delivery to sinks, with the real journal and a sink that fails as a test scripts it."""

import sqlite3
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
import structlog
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from pluginsvc.events import delivery
from pluginsvc.events.bus import Bus
from pluginsvc.events.delivery import SinkFailed, deliver
from pluginsvc.events.journal import Publisher
from pluginsvc.model.event import Event, Gap
from pluginsvc.state import cursors, journal
from pluginsvc.state.database import Database, StateError
from tests.support.records import event, keep

pytestmark = pytest.mark.anyio
T = TypeVar("T")
Step = Callable[[], Awaitable[None]]


async def fine() -> None:
    """Take a batch."""


async def refuse() -> None:
    raise SinkFailed("test", "scripted")


async def crash() -> None:
    raise RuntimeError("scripted")


async def hang() -> None:
    await anyio.sleep_forever()


class ScriptedSink:
    """Keeps what it is handed, and does the steps of its script: what fails has taken the items or has not."""

    name = "test"

    def __init__(self, *script: Step, keeps: bool = True) -> None:
        self.script, self.keeps = list(script), keeps
        self.batches: list[list[Event | Gap]] = []
        self.tries = self.closed = 0

    async def send(self, items: Sequence[Event | Gap]) -> None:
        self.tries += 1
        step = self.script.pop(0) if self.script else fine
        if self.keeps or step is fine:
            self.batches.append(list(items))
        await checkpoint()
        await step()

    async def close(self) -> None:
        self.closed += 1

    @property
    def items(self) -> list[Event | Gap]:
        return [item for batch in self.batches for item in batch]

    @property
    def numbers(self) -> list[int]:
        return [item.seq for item in self.items if isinstance(item, Event)]


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    """Shorten the pauses, and give what is logged, which structlog would otherwise draw with the sources it reads."""
    with pytest.MonkeyPatch.context() as patch, structlog.testing.capture_logs() as found:
        patch.setattr(delivery, "_FIRST_DELAY", 0.001)
        patch.setattr(delivery, "_LONGEST_DELAY", 0.004)
        yield found


async def commit(database: Database, count: int) -> None:
    await database.write(lambda db: [journal.append(db, event(n)) for n in range(count)])


async def until(found: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not found():  # noqa: ASYNC110 - a list grows
            await anyio.sleep(0.001)


async def cursor(database: Database) -> int | None:
    return await database.read(partial(cursors.get, name="test"))


async def delivered(sink: ScriptedSink, database: Database) -> None:
    """Run a delivery until the sink has all that is in the journal, then end it."""
    bus = Bus()
    bus.close()
    with anyio.fail_after(20):
        await deliver(sink, database, bus)


def first_times(numbers: list[int]) -> list[int]:
    return list(dict.fromkeys(numbers))


@pytest.mark.usefixtures("publishing")
async def test_every_event_in_order(database: Database, bus: Bus) -> None:
    """What is committed while it runs is handed on once and in order, no batch is large, and the cursor is saved."""
    sink = ScriptedSink()
    async with anyio.create_task_group() as group:
        await group.start(lambda *, task_status: deliver(sink, database, bus, task_status=task_status))
        for count in (1, 350, 1, 2):
            await commit(database, count)
        await until(lambda: len(sink.numbers) == 354)
        await commit(database, 1)
        await until(lambda: len(sink.numbers) == 355)
        bus.close()
    assert sink.numbers == list(range(1, 356))
    assert max(map(len, sink.batches)) <= 100
    assert await cursor(database) == 355
    assert sink.closed == 1


async def test_a_new_sink_begins_with_the_present(database: Database) -> None:
    """A sink that was never there gets nothing of the past; after a restart it gets what came in between."""
    await commit(database, 3)
    sink = ScriptedSink()
    await delivered(sink, database)
    assert (sink.items, await cursor(database)) == ([], 3)
    await commit(database, 2)
    await delivered(sink, database)
    assert sink.numbers == [4, 5]


async def test_what_was_pruned_is_told(database: Database) -> None:
    """A sink that was away for too long is told from where to where, in order with the events that are left."""
    sink = ScriptedSink()
    await delivered(sink, database)
    await commit(database, 250)
    await database.write(partial(keep, events=150))
    await delivered(sink, database)
    assert sink.items[0] == Gap(0, 101)
    assert sink.numbers == list(range(101, 251))
    assert sum(isinstance(item, Gap) for item in sink.items) == 1


async def test_pruned_while_the_sink_fails(database: Database) -> None:
    """Each try offers what is there then: what was pruned between two tries is told."""
    sink = ScriptedSink(refuse, fine, keeps=False)
    await delivered(sink, database)
    await commit(database, 10)

    async def prune() -> None:
        await database.write(partial(keep, events=4))
        raise SinkFailed("test", "scripted")

    sink.script[0] = prune
    await delivered(sink, database)
    assert sink.items[0] == Gap(0, 7)
    assert sink.numbers == [7, 8, 9, 10]


async def test_the_pause_grows_and_begins_anew(
    database: Database, monkeypatch: pytest.MonkeyPatch, logs: list[MutableMapping[str, Any]]
) -> None:
    """Pauses double up to a minute and begin anew after success; up to a minute is also what a sink may ask for."""
    monkeypatch.setattr(delivery, "_FIRST_DELAY", 0.1)
    monkeypatch.setattr(delivery, "_LONGEST_DELAY", 60.0)
    monkeypatch.setattr(delivery, "_SPREAD", 0.0)
    pauses: list[float] = []
    sleep = anyio.sleep

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(anyio, "sleep", pause)

    def ask(seconds: float) -> Step:
        async def step() -> None:
            raise SinkFailed("test", "scripted", retry_after=seconds)

        return step

    sink = ScriptedSink(*[refuse] * 12, fine, crash, ask(7), ask(3600), ask(0.01))
    await delivered(sink, database)
    await commit(database, 200)
    await delivered(sink, database)
    doubled = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60, 60]
    assert pauses == pytest.approx([*doubled, 0.1, 7, 60, 0.8])
    assert [line["event"] for line in logs] == ["sink.failed"] * 12 + ["sink.works_again"] + ["sink.failed"] * 4 + [
        "sink.works_again"
    ]
    assert sink.closed == 2 + len(pauses)


async def test_a_sink_that_hangs_is_given_up(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that takes too long is offered again, and a close that takes too long holds nobody up."""
    monkeypatch.setattr(delivery, "_SEND_SECONDS", 0.05)
    monkeypatch.setattr(delivery, "_CLOSE_SECONDS", 0.05)
    sink = ScriptedSink(hang, hang)
    monkeypatch.setattr(sink, "close", hang)
    await delivered(sink, database)
    await commit(database, 2)
    await delivered(sink, database)
    assert sink.numbers == [1, 2] * 3


@pytest.mark.usefixtures("publishing")
async def test_a_failing_sink_harms_nobody(database: Database, bus: Bus) -> None:
    """While one sink always fails another gets everything; the failing one ends by cancellation alone."""
    bad, good = ScriptedSink(*[crash, refuse] * 10_000), ScriptedSink()
    good.name = "good"
    async with anyio.create_task_group() as group:
        await group.start(lambda *, task_status: deliver(bad, database, bus, task_status=task_status))
        await group.start(lambda *, task_status: deliver(good, database, bus, task_status=task_status))
        await commit(database, 5)
        await until(lambda: len(good.numbers) == 5 and bad.tries > 5)
        group.cancel_scope.cancel()
    assert good.numbers == [1, 2, 3, 4, 5]
    assert await cursor(database) == 0
    assert bad.closed == bad.tries or bad.closed == bad.tries + 1


class FailingWrites(Database):
    """Fails to save cursors once `left` is above 0."""

    left = 0

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self.left and isinstance(work, partial) and work.func is cursors.put:
            self.left -= 1
            raise StateError(self.path, "SQLITE_FULL", "scripted")
        return await super().write(work)


async def test_a_cursor_that_cannot_be_saved(tmp_path: Path) -> None:
    """When the database is full the batch comes again, and later the cursor is saved."""
    database = await FailingWrites.open(tmp_path / "state.db")
    sink = ScriptedSink()
    await delivered(sink, database)
    await commit(database, 3)
    database.left = 2
    await delivered(sink, database)
    assert sink.numbers == [1, 2, 3] * 3
    assert await cursor(database) == 3
    await database.close()


async def test_ends_with_the_database(tmp_path: Path) -> None:
    """A database that was closed first ends it, too, in good order."""
    database = await Database.open(tmp_path / "state.db")
    bus = Bus()
    sink = ScriptedSink()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            await group.start(lambda *, task_status: deliver(sink, database, bus, task_status=task_status))
            await database.close()
            await bus.publish([event(1, seq=1)])
    assert sink.closed == 1


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.sampled_from([fine, refuse, crash]), max_size=12),
    keeps=st.booleans(),
    commits=st.lists(st.integers(1, 120), min_size=1, max_size=4),
    lives=st.lists(st.integers(0, 60), max_size=6),
)
async def test_cancelled_anywhere_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, *, steps: list[Step], keeps: bool, commits: list[int], lives: list[int]
) -> None:
    """Whatever fails and wherever a life of the daemon ends, the sink has all events, first seen in order."""
    database = await Database.open(tmp_path_factory.mktemp("d") / "state.db")
    sink = ScriptedSink(*steps, keeps=keeps)
    await delivered(sink, database)
    total = 0
    for number in range(max(len(commits), len(lives))):
        bus = Bus()
        async with anyio.create_task_group() as group:
            await group.start(lambda *, task_status, bus=bus: Publisher(database, bus).run(task_status=task_status))
            await group.start(lambda *, task_status, bus=bus: deliver(sink, database, bus, task_status=task_status))
            if number < len(commits):
                await commit(database, commits[number])
                total += commits[number]
            # so many turns of the loop it lives
            for _ in range(lives[number] if number < len(lives) else 0):
                await checkpoint()
            group.cancel_scope.cancel()
    await delivered(sink, database)
    await database.close()
    assert first_times(sink.numbers) == list(range(1, total + 1))
    assert max(map(len, sink.batches)) <= 100
    assert not any(isinstance(item, Gap) for item in sink.items)
