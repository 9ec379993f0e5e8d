"""Metrics through the socket: each moves when its thing happens, and readers are in nobody's way."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from pluginsvc.api.app import make_app, serve
from pluginsvc.api.listeners import UnixListener
from pluginsvc.events.bus import Bus
from pluginsvc.events.journal import EventLog, Publisher
from pluginsvc.events.subscribers import consume, count
from pluginsvc.state import journal
from pluginsvc.state.database import Database
from tests.functional.conftest import FACTS
from tests.support.engine import CONFIG, Engine
from tests.support.memory_events import ORIGIN
from tests.support.memory_manager import MemoryManager
from tests.support.records import event, keep
from tests.support.scrape import Scrape

pytestmark = pytest.mark.anyio
READERS = 200


async def scrape(engine: Engine, accept: str = "application/openmetrics-text") -> Scrape:
    async with engine.session() as session, session.get("/metrics", headers={"Accept": accept}) as response:
        assert response.status == 200
        return Scrape(await response.text(), response.headers["Content-Type"])


@dataclass
class House:
    """A served journal.

    Attributes:
        database, bus: what is behind the streams.
        engine: where it is served.
    """

    database: Database
    bus: Bus
    engine: Engine

    async def commit(self, number: int) -> None:
        await self.database.write(lambda db: [journal.append(db, event(n)) for n in range(number)])

    async def read(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a stream, and return it after its head."""
        reader, writer = await asyncio.open_unix_connection(str(self.engine.socket))
        writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        return reader, writer


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    bus, memory = Bus(), MemoryManager()
    database = await Database.open(tmp_path / "state.db")
    app = make_app(manager=memory, directory=memory.directory, system=FACTS, events=EventLog(database, bus, ORIGIN))
    async with anyio.create_task_group() as group:
        await group.start(lambda *, task_status: Publisher(database, bus).run(task_status=task_status))
        await group.start(lambda *, task_status: consume("metrics", count, database, bus, task_status=task_status))
        async with serve(app, [UnixListener(tmp_path / "api.sock")], grace=2):
            yield House(database, bus, Engine(tmp_path / "api.sock", memory.publish))
        group.cancel_scope.cancel()
    await database.close()


@pytest.mark.parametrize("path", ["/v1.47/metrics", "/metrics/", "/pluginsvc/v1/metrics"])
async def test_has_one_path(engine: Engine, path: str) -> None:
    """It has no version of Docker's API, and no second name."""
    status, _ = await engine.call("GET", path, allow_redirects=False)
    assert status in {301, 404}


async def test_only_read(engine: Engine) -> None:
    """Nothing can be written there."""
    assert (await engine.call("POST", "/metrics"))[0] == 404


async def test_plugins(engine: Engine) -> None:
    """A plugin moves from one state to the other."""
    assert (await scrape(engine))("pluginsvc_plugins", state="stopped") == 0
    name = await engine.install("sample")
    assert (await scrape(engine))("pluginsvc_plugins", state="stopped") == 1
    assert (await engine.call("POST", f"/plugins/{name}/enable", params={"timeout": "0"}))[0] == 200
    found = await scrape(engine, "text/plain")
    assert found("pluginsvc_plugins", state="stopped") == 0
    assert found("pluginsvc_plugins", state="running") == 1


async def test_no_name_and_no_secret(engine: Engine) -> None:
    """What users call things, and what they set, is in no metric."""
    env = [{"name": "TOKEN", "value": "hunter2", "settable": ["value"]}]
    name = await engine.install("very-own-name", CONFIG | {"env": env})
    await engine.call("POST", f"/plugins/{name}/set", json=["TOKEN=hunter3"])
    await engine.call("POST", "/plugins/very-own-missing/enable", params={"timeout": "0"})
    _, text = await engine.call("GET", "/metrics")
    assert "very-own" not in text
    assert "hunter" not in text


async def test_journal_and_events(house: House) -> None:
    """Events that are committed and pruned show in the journal's bounds, the counts and the delivery."""
    before = await scrape(house.engine)
    assert [before(f"pluginsvc_journal_{what}") for what in ("events", "bytes", "newest_sequence")] == [0, 0, 0]
    assert before("pluginsvc_journal_oldest_sequence") == 1
    assert before("pluginsvc_event_streams", kind="engine") == 0
    reader, writer = await house.read()
    await house.commit(10)
    await asyncio.wait_for(reader.readuntil(b"}\n\r\n"), 10)
    found = await scrape(house.engine)
    assert found("pluginsvc_journal_events") == found("pluginsvc_journal_newest_sequence") == 10
    assert found("pluginsvc_journal_bytes") > 10
    assert found("pluginsvc_event_streams", kind="engine") == 1
    assert found("pluginsvc_bus_subscribers") == before("pluginsvc_bus_subscribers") + 1 == 2
    assert found("pluginsvc_bus_depth") == 0
    samples: list[tuple[str, dict[str, str]]] = [
        ("pluginsvc_events_total", {"action": "enable"}),
        ("pluginsvc_event_delivery_seconds_count", {}),
    ]
    with anyio.fail_after(10):
        # the counting subscriber, too, has its turn after the commit
        for name, labels in samples:
            start = before.samples.get((name, frozenset(labels.items())), 0.0)
            while (await scrape(house.engine))(name, **labels) < start + 10:
                pass
    await house.database.write(lambda db: keep(db, 3))
    found = await scrape(house.engine)
    assert (found("pluginsvc_journal_events"), found("pluginsvc_journal_oldest_sequence")) == (3, 8)
    writer.close()


async def test_depth_and_overflow(house: House) -> None:
    """A subscriber that does not read fills its buffer, which is seen, and then overflows, which is counted."""
    before = await scrape(house.engine)
    with house.bus.subscribe(buffer=4), house.bus.subscribe(buffer=100) as marker:
        await house.commit(4)
        with anyio.fail_after(10):
            await anext(marker)
        assert (await scrape(house.engine))("pluginsvc_bus_depth") == 4
        await house.commit(1)
        with anyio.fail_after(10):
            for _ in range(4):
                await anext(marker)
        found = await scrape(house.engine)
    assert found("pluginsvc_bus_overflows_total") == before("pluginsvc_bus_overflows_total") + 1


async def test_with_many_readers(house: House) -> None:
    """A scrape while 200 readers follow counts them all, takes nothing from them, and forgets those who go."""
    clients = [await house.read() for _ in range(READERS)]
    assert (await scrape(house.engine))("pluginsvc_event_streams", kind="engine") == READERS
    scrapes: list[Scrape] = []

    async def ask() -> None:
        scrapes.append(await scrape(house.engine))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(ask)
            group.start_soon(house.commit, 20)

    async def lines(reader: asyncio.StreamReader) -> None:
        for _ in range(100):
            assert b'"enable"' in await reader.readuntil(b"}\n\r\n")

    async with asyncio.timeout(20):
        await asyncio.gather(*(lines(reader) for reader, _ in clients))
    assert {found("pluginsvc_event_streams", kind="engine") for found in scrapes} == {READERS}
    for _, writer in clients:
        writer.transport.abort()
    with anyio.fail_after(10):
        while (await scrape(house.engine))("pluginsvc_event_streams", kind="engine"):
            pass
