"""Readers of the event stream over a real journal: what each is sent, and what a slow or vanished one costs others."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

from pluginsvc.api.app import Api, make_app, serve
from pluginsvc.api.listeners import UnixListener
from pluginsvc.events.bus import Bus
from pluginsvc.events.forms import engine_message
from pluginsvc.events.journal import _BATCH, EventLog, EventReader, Publisher, follow
from pluginsvc.model.event import Event
from pluginsvc.state import journal
from pluginsvc.state.database import Database
from tests.functional.conftest import FACTS
from tests.support.memory_events import ORIGIN
from tests.support.memory_manager import MemoryManager
from tests.support.records import event

pytestmark = pytest.mark.anyio
HEAD_END = b"\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
HIGH_WATER = 64 * 1024
"""Unsent bytes at which both kinds of loop tell a connection to stop writing."""


@pytest.fixture(scope="module", params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Run on both kinds of loop: they write, and hold writing up, each in its own way."""
    return "asyncio", {"use_uvloop": request.param}


@dataclass
class House:
    """A served journal.

    Attributes:
        database, bus: what is behind the streams.
        app: serves them.
        socket: where.
        outlets: for each reader so far, what takes its events past the iterator.
        clients: for each reader so far, its end of the connection.
    """

    database: Database
    bus: Bus
    app: Api
    socket: Path
    outlets: list[Callable[[Sequence[Event]], bool]]
    clients: list[asyncio.StreamWriter] = field(default_factory=list)

    async def commit(self, count: int) -> list[Event]:
        return await self.database.write(lambda db: [journal.append(db, event(n)) for n in range(count)])

    async def reader(self, *lines: str, version: str = "1.1", limit: int = 2**16) -> tuple[asyncio.StreamReader, bytes]:
        """Ask for the stream; return it after its head, and the head."""
        reader, writer = await asyncio.open_unix_connection(str(self.socket), limit=limit)
        self.clients.append(writer)
        head = "\r\n".join([f"GET /events HTTP/{version}", "Host: localhost", *lines, "", ""])
        writer.write(head.encode())
        return reader, await asyncio.wait_for(reader.readuntil(HEAD_END), 5)


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    bus = Bus()
    outlets: list[Callable[[Sequence[Event]], bool]] = []
    database = await Database.open(tmp_path / "state.db")

    def followed(*, direct: Callable[[Sequence[Event]], bool], **more: Any) -> AbstractAsyncContextManager[EventReader]:
        outlets.append(direct)
        return follow(database, bus, direct=direct, **more)

    events = EventLog(database, bus, ORIGIN)
    monkeypatch.setattr(events, "follow", followed)
    memory = MemoryManager()
    app = make_app(manager=memory, directory=memory.directory, system=FACTS, events=events)
    async with anyio.create_task_group() as group:
        await group.start(lambda *, task_status: Publisher(database, bus).run(task_status=task_status))
        async with serve(app, [UnixListener(tmp_path / "api.sock")], grace=2):
            house = House(database, bus, app, tmp_path / "api.sock", outlets)
            yield house
            for client in house.clients:
                client.transport.abort()
        group.cancel_scope.cancel()
    await database.close()


async def chunks(reader: asyncio.StreamReader, count: int) -> list[bytes]:
    async with asyncio.timeout(20):
        found = []
        for _ in range(count):
            size = int(await reader.readline(), 16)
            found.append((await reader.readexactly(size + 2))[:-2])
        return found


async def numbers(reader: asyncio.StreamReader, count: int) -> list[int]:
    """Read events; return the times that they are known by."""
    return [json.loads(chunk)["timeNano"] for chunk in await chunks(reader, count)]


async def test_each_event_is_a_line_and_a_chunk(house: House) -> None:
    """Readers of every form get the same event at the same time, each in the form it asked for."""
    plain, head = await house.reader()
    sequence, _ = await house.reader("Accept: application/json-seq")
    old, old_head = await house.reader(version="1.0")
    assert b"Transfer-Encoding: chunked" in head
    assert b"chunked" not in old_head
    sent = [engine_message(found) + b"\n" for found in await house.commit(3)]
    assert await chunks(plain, 3) == sent
    assert await chunks(sequence, 3) == [b"\x1e" + line for line in sent]
    assert await asyncio.wait_for(old.readexactly(sum(map(len, sent))), 5) == b"".join(sent)


async def test_slow_reader_loses_nothing_and_holds_little(house: House) -> None:
    """A reader that stalls is forgotten by the bus, with bounded bytes before it; later it gets all, in order."""
    slow, _ = await house.reader(limit=1024)
    fast, _ = await house.reader()
    made: list[int] = []
    for _ in range(60):
        made += [found.time_ns for found in await house.commit(100)]
        assert await numbers(fast, 100) == made[-100:]
    assert len(house.bus) == 1
    transport = house.outlets[0].__self__._transport  # type: ignore[attr-defined]  # looks inside
    assert HIGH_WATER < transport.get_write_buffer_size() < HIGH_WATER + _BATCH * 512
    assert await numbers(slow, 6000) == made
    made = [found.time_ns for found in await house.commit(2)]
    assert (await numbers(slow, 2), await numbers(fast, 2)) == (made, made)


async def test_reader_that_goes_away_is_forgotten(house: House) -> None:
    """A client that breaks its connection, also in the middle of a burst, takes nothing from the others."""
    await house.reader()
    stays, _ = await house.reader()
    made = [found.time_ns for found in await house.commit(50)]
    house.clients[0].transport.abort()
    made += [found.time_ns for found in await house.commit(50)]
    assert await numbers(stays, 100) == made
    async with asyncio.timeout(5):
        while len(house.app.streams) > 1:
            await house.commit(1)
    assert len(house.bus) == 1


async def test_end_of_service_ends_the_streams_in_order(house: House) -> None:
    """When serving ends each stream ends after a whole event, as an answer that is complete."""
    reader, _ = await house.reader()
    (made,) = await house.commit(1)
    assert await numbers(reader, 1) == [made.time_ns]
    house.app.streams.close()
    assert await asyncio.wait_for(reader.readexactly(len(LAST_CHUNK)), 5) == LAST_CHUNK
