"""Our own event stream over a real journal and bus: nothing lost, nothing doubled, and what a reader costs others."""

import asyncio
import json
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import anyio
import msgspec
import pytest
from aiohttp import web
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from structlog.testing import capture_logs

from pluginsvc import metrics
from pluginsvc.api import native_events
from pluginsvc.api.app import Api, make_app, serve
from pluginsvc.api.feed import Form, Outlet
from pluginsvc.api.listeners import UnixListener
from pluginsvc.events.bus import Bus
from pluginsvc.events.forms import native_message
from pluginsvc.events.journal import _BATCH, EventLog, Publisher
from pluginsvc.model.event import Event, Gap
from pluginsvc.model.plugin import PluginRecord
from pluginsvc.state import journal, plugins
from pluginsvc.state.database import Database
from tests.functional.conftest import FACTS
from tests.support import openapi
from tests.support.engine import Engine
from tests.support.fold import Fold
from tests.support.memory_events import ORIGIN
from tests.support.memory_manager import MemoryManager, Snapshot, Summary
from tests.support.records import digest, event, keep, plugin_id, record

pytestmark = pytest.mark.anyio
HEAD_END = b"\r\n\r\n"
HIGH_WATER = 64 * 1024
"""Unsent bytes at which both kinds of loop tell a connection to stop writing."""

BUFFERED = 512 * 1024
"""More than a socket and the loop's own buffer hold between them, in bytes."""


@pytest.fixture(scope="module", params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Run on both kinds of loop: they write, and hold writing up, each in its own way."""
    return "asyncio", {"use_uvloop": request.param}


@dataclass
class Records(MemoryManager):
    """A manager whose snapshot is that of the database, as the real one's.

    Attributes:
        database: holds records and journal.
        taken: snapshots that were taken.
        gate: a snapshot waits for it.
    """

    database: Database | None = None
    taken: int = 0
    gate: anyio.Event = field(default_factory=anyio.Event)

    async def snapshot(self) -> Snapshot:
        def work(db: sqlite3.Connection) -> tuple[int, list[PluginRecord]]:
            return journal.last_seq(db), plugins.load(db)

        assert self.database is not None
        await self.gate.wait()
        self.taken += 1
        seq, records = await self.database.read(work)
        return Snapshot(seq, [_summary(found) for found in records])


def _summary(found: PluginRecord) -> Summary:
    desired = "enabled" if found.enabled else "disabled"
    return Summary(found.id, found.name, desired, reference=found.reference, digest=str(found.manifest))


@dataclass
class Block:
    """One block: the lines of one name joined; ``kind`` and ``data`` are empty where it has none."""

    id: int
    kind: str
    data: Any
    comment: str


class Reader:
    """A reader's side of a stream, over HTTP/1.1."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self.head = b""
        self._held = b""

    async def piece(self) -> bytes:
        """Return what is in the next chunk; nothing at the end."""
        size = int(await self._reader.readuntil(b"\n"), 16)
        return (await self._reader.readexactly(size + 2))[:-2]

    async def raw_block(self) -> bytes | None:
        while b"\n\n" not in self._held:
            piece = await self.piece()
            if not piece:
                assert not self._held
                return None
            self._held += piece
        found, _, self._held = self._held.partition(b"\n\n")
        return found

    async def block(self) -> Block | None:
        async with asyncio.timeout(20):
            raw = await self.raw_block()
        if raw is None:
            return None
        fields = dict(line.split(": ", 1) for line in raw.decode().split("\n"))
        data = json.loads(fields["data"]) if "data" in fields else None
        return Block(int(fields["id"]), fields.get("event", ""), data, fields.get("", ""))

    async def blocks(self, count: int) -> list[Block]:
        found = [await self.block() for _ in range(count)]
        assert None not in found
        return [block for block in found if block is not None]

    async def rest(self) -> list[Block]:
        """Return all until the end."""
        found = []
        while (block := await self.block()) is not None:
            found.append(block)
        return found

    async def numbers(self, count: int) -> list[int]:
        """Read events, and past heartbeats."""
        found: list[int] = []
        while len(found) < count:
            (block,) = await self.blocks(1)
            if block.data is not None:
                assert block.kind == ""
                assert block.id == block.data["seq"]
                found.append(block.id)
        return found


@dataclass
class House:
    """A served journal."""

    database: Database
    bus: Bus
    manager: Records
    app: Api
    socket: Path
    readers: list[Reader] = field(default_factory=list)

    async def commit(self, count: int, **changes: Any) -> list[Event]:
        return await self.database.write(lambda db: [journal.append(db, event(n, **changes)) for n in range(count)])

    async def keep(self, events: int) -> None:
        await self.database.write(lambda db: keep(db, events))

    async def published(self) -> None:
        """Wait until what is committed was published, seen by one that is neither filtered nor slow."""
        with self.bus.subscribe() as subscription:
            (last,) = await self.commit(1)
            async with asyncio.timeout(10):
                while (await anext(subscription)).seq < last.seq:
                    pass

    async def ask(self, *, last: object = None, version: str = "1.1", limit: int = 2**16, **query: object) -> Reader:
        """Ask for the stream, and read the head of the answer."""
        reader = Reader(*await asyncio.open_unix_connection(str(self.socket), limit=limit))
        self.readers.append(reader)
        lines = [f"GET /pluginsvc/v1/events?{urlencode(query)} HTTP/{version}", "Host: localhost"]
        lines += [] if last is None else [f"Last-Event-ID: {last}"]
        reader.writer.write("\r\n".join([*lines, "", ""]).encode())
        reader.head = await asyncio.wait_for(reader._reader.readuntil(HEAD_END), 10)
        return reader

    async def follow(self, **options: Any) -> tuple[Reader, Block]:
        """Ask for the stream, and read its first block."""
        reader = await self.ask(**options)
        (first,) = await reader.blocks(1)
        return reader, first


@asynccontextmanager
async def opened(folder: Path, **options: float) -> AsyncIterator[House]:
    bus, manager = Bus(), Records()
    manager.gate.set()
    manager.database = database = await Database.open(folder / "state.db")
    app = make_app(
        manager=manager,
        directory=manager.directory,
        system=FACTS,
        events=EventLog(database, bus, ORIGIN),
        chain=None,
        **options,
    )
    house = House(database, bus, manager, app, folder / "api.sock")
    try:
        async with anyio.create_task_group() as group:
            await group.start(lambda *, task_status: Publisher(database, bus).run(task_status=task_status))
            async with serve(app, [UnixListener(house.socket)], grace=2):
                try:
                    yield house
                finally:
                    for reader in house.readers:
                        reader.writer.transport.abort()
            group.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await database.close()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with opened(tmp_path) as house:
        yield house


def numbered(blocks: Iterable[Block]) -> list[int]:
    return [block.id for block in blocks if block.data is not None]


async def test_live(house: House) -> None:
    """A reader is told at once where it stands, and then of each event as it is committed, in exactly these bytes."""
    await house.commit(3)
    reader = await house.ask()
    assert b"Content-Type: text/event-stream\r\n" in reader.head
    assert b"Cache-Control: no-cache\r\n" in reader.head
    assert await reader.raw_block() == b": pluginsvc\nid: 3"
    for made in await house.commit(5):
        assert await reader.raw_block() == b"id: %d\ndata: %b" % (made.seq, native_message(made))
        openapi.check("NativeEvent", json.loads(native_message(made)))


async def test_http_1_0(house: House) -> None:
    """A client that knows no chunks gets the blocks as they are, ended by the end of the connection."""
    (made,) = await house.commit(1)
    reader = await house.ask(after=0, until=time.time(), version="1.0")
    assert b"chunked" not in reader.head
    body = await asyncio.wait_for(reader._reader.read(), 10)
    assert body == b": pluginsvc\nid: 0\n\nid: 1\ndata: %b\n\n" % native_message(made)


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({"after": 0}, 1),
        ({"after": 7}, 8),
        ({"last": 7}, 8),
        ({"last": 4, "after": 7}, 5),
        ({"last": 4, "snapshot": 1}, 5),
        ({"last": 4, "since": 4_000_000_000}, 5),
        ({"last": "", "after": 7}, 8),
        ({"after": "", "since": 0}, 1),
        ({"after": 3, "since": 0}, 4),
        ({"snapshot": "no", "after": 9}, 10),
        ({"after": 7, "format": "native", "filters": ""}, 8),
    ],
)
async def test_resume(house: House, options: dict[str, Any], first: int) -> None:
    """A reader goes on behind the number that it names, the header going before the query, into what happens now."""
    await house.commit(10)
    reader, begin = await house.follow(**options)
    assert (begin.id, begin.data, begin.kind) == (first - 1, None, "")
    assert await reader.numbers(11 - first) == [*range(first, 11)]
    await house.commit(2)
    assert await reader.numbers(2) == [11, 12]


async def test_since_and_until(house: House) -> None:
    """Two moments bound the stream, both inclusive, and it ends by itself as a whole answer."""
    made = await house.commit(9)
    at = {each.seq: f"{each.time_ns // 10**9}.{each.time_ns % 10**9:09}" for each in made}
    reader, begin = await house.follow(since=at[3], until=at[6])
    assert (begin.id, numbered(await reader.rest())) == (2, [3, 4, 5, 6])
    reader, begin = await house.follow(since=at[3], after=4, until=at[6])
    assert (begin.id, numbered(await reader.rest())) == (4, [5, 6])
    reader, begin = await house.follow(until=f"{time.time() + 0.5:.6f}")
    await house.commit(2)
    assert (begin.id, numbered(await reader.rest())) == (9, [10, 11])


async def test_filters(house: House) -> None:
    """Only what the filter wants is sent, of the past and of the present."""
    wanted = json.dumps({"event": ["exit"], "plugin": ["p2"]})
    reader, _ = await house.follow(after=0, filters=wanted)
    await house.commit(4)
    await house.commit(4, action="exit")
    assert await reader.numbers(1) == [7]
    await house.commit(4, action="exit")
    assert await reader.numbers(1) == [11]
    late, _ = await house.follow(after=0, filters=wanted)
    assert await late.numbers(2) == [7, 11]


async def test_gap_at_the_start(house: House) -> None:
    """Who asks for what was pruned is told what is missing, and is sent all there is."""
    await house.commit(20)
    await house.keep(5)
    reader, begin = await house.follow(last=3)
    (gap,) = await reader.blocks(1)
    assert (begin.id, gap.id, gap.kind, gap.data) == (3, 15, "gap", {"gap": {"after": 3, "oldest": 16}})
    openapi.check("NativeGap", gap.data)
    assert await reader.numbers(5) == [*range(16, 21)]
    whole, _ = await house.follow(last=15)
    assert await whole.numbers(5) == [*range(16, 21)]


async def test_new_journal(house: House) -> None:
    """Who comes with a number that was never given is told that numbers began anew, and is sent the whole journal."""
    await house.commit(4)
    reader, _ = await house.follow(after=2**63 - 1)
    (gap,) = await reader.blocks(1)
    assert (gap.id, gap.data) == (0, {"gap": {"after": 2**63 - 1, "oldest": 1}})
    assert await reader.numbers(4) == [1, 2, 3, 4]


async def test_gap_in_the_middle(house: House) -> None:
    """Pruning overtakes a reader that is slow: between what it got and what is left it is told of the gap."""
    slow, _ = await house.follow(limit=1024)
    for _ in range(60):
        await house.commit(100)
    await house.published()
    await house.keep(10)
    found = await slow.blocks(1)
    while found[-1].id < 6001:
        found += await slow.blocks(1)
    (gap,) = [block for block in found if block.kind]
    after = gap.data["gap"]["after"]
    assert 0 < after < 5000
    assert (gap.kind, gap.data) == ("gap", {"gap": {"after": after, "oldest": 5992}})
    assert [block.id for block in found] == [*range(1, after + 1), 5991, *range(5992, 6002)]


async def test_snapshot_after_a_gap(house: House) -> None:
    """Who keeps a list gets a new one behind a gap; the gap itself does not move it, in case it is cut off between."""
    await house.database.write(lambda db: plugins.put(db, record(1)))
    await house.commit(20)
    await house.keep(5)
    reader, begin = await house.follow(last=3, snapshot=1)
    gap, snapshot = await reader.blocks(2)
    assert (begin.id, gap.id, gap.kind, gap.data) == (3, 3, "gap", {"gap": {"after": 3, "oldest": 16}})
    assert (snapshot.id, snapshot.kind, snapshot.data["seq"]) == (20, "snapshot", 20)
    assert [plugin["Name"] for plugin in snapshot.data["plugins"]] == ["p1:latest"]
    await house.commit(2)
    assert await reader.numbers(2) == [21, 22]


def change(db: sqlite3.Connection, dice: random.Random) -> None:
    """Change some plugin in some way that is possible, with its event."""
    number = dice.randrange(8)
    found = {each.id: each for each in plugins.load(db)}.get(plugin_id(number))
    if found is None:
        new = record(number, reference=f"r{number}")
        plugins.put(db, new)
        journal.append(db, event(number, action="create", attributes={"reference": "", "digest": ""} | _facts(new)))
        return
    action = dice.choice(["disable" if found.enabled else "enable", "upgrade", "remove", "exit"])
    if action == "remove":
        plugins.delete(db, found.id)
    elif action == "upgrade":
        found = msgspec.structs.replace(found, manifest=digest(dice.randrange(99)), reference=f"r{dice.randrange(9)}")
        plugins.put(db, found)
    elif action != "exit":
        plugins.put(db, msgspec.structs.replace(found, enabled=action == "enable"))
    journal.append(db, event(number, action=action, attributes=_facts(found)))


def _facts(found: PluginRecord) -> dict[str, str]:
    return {"reference": found.reference, "digest": str(found.manifest)}


async def test_snapshot_is_exact(house: House) -> None:
    """While plugins change all the time, each list and the events behind it make the list that all events make."""
    dice = random.Random(7)
    changing = True

    async def keep_changing() -> None:
        while changing:
            await house.database.write(lambda db: change(db, dice))

    folds = []
    async with anyio.create_task_group() as group:
        group.start_soon(keep_changing)
        whole, _ = await house.follow(after=0)
        begun = []
        for _ in range(15):
            reader, first = await house.follow(snapshot=1)
            fold = Fold()
            fold.snapshot(first.data["plugins"], first.data["seq"])
            assert first.id == first.data["seq"]
            begun.append(first.id)
            folds.append((fold, reader))
            await reader.numbers(1)
        changing = False
    assert begun == sorted(set(begun))
    last = await house.database.read(journal.last_seq)
    for fold, start in [(Fold(), 0), *((fold, fold.seq) for fold, _ in folds)]:
        for found in await house.database.read(partial(journal.after, seq=start, limit=10**6)):
            fold.apply(json.loads(native_message(found)))
        assert fold.seq == last
        expected = [msgspec.to_builtins(_summary(each)) for each in await house.database.read(plugins.load)]
        other = Fold()
        other.snapshot(expected)
        assert fold.plugins == other.plugins
    assert await whole.numbers(last) == [*range(1, last + 1)]
    for (_, reader), start in zip(folds, begun, strict=True):
        # the first behind the list was read above
        assert await reader.numbers(last - start - 1) == [*range(start + 2, last + 1)]


async def test_snapshot_is_taken_once_for_all_who_wait(house: House) -> None:
    """Readers who come together, as after a restart, share one list; who comes later gets a new one."""
    await house.database.write(lambda db: plugins.put(db, record(1)))
    await house.commit(2)
    house.manager.gate = anyio.Event()
    found: list[tuple[Reader, Block]] = []

    async def come() -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            found.append(await house.follow(snapshot=1))

    async def waiting(count: int) -> None:
        async with asyncio.timeout(10):
            while house.app.native._taking.statistics().tasks_waiting != count:  # noqa: ASYNC110 - looks inside
                await anyio.sleep(0.001)

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(come)
        await waiting(49)
        # whoever takes it may go away
        house.readers.pop(0).writer.transport.abort()
        await waiting(48)
        house.manager.gate.set()
    assert (len(found), house.manager.taken) == (49, 1)
    assert {first.id for _, first in found} == {2}
    await house.commit(1)
    for reader, _ in found:
        assert await reader.numbers(1) == [3]
    before = house.manager.taken
    _, late = await house.follow(snapshot=1)
    assert (late.id, house.manager.taken) == (3, before + 1)


async def test_each_event_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty readers, at once and late, cost one encoding of each event."""
    encoded: list[int] = []

    def encode(item: Event | Gap) -> bytes:
        assert isinstance(item, Event)
        encoded.append(item.seq)
        return native_message(item)

    monkeypatch.setattr(native_events, "native_message", encode)
    async with opened(tmp_path) as house:
        readers = [(await house.follow())[0] for _ in range(40)]
        await house.commit(100)
        for reader in readers:
            assert await reader.numbers(100) == [*range(1, 101)]
        late, _ = await house.follow(after=0)
        assert await late.numbers(100) == [*range(1, 101)]
    assert encoded == [*range(1, 101)]


async def test_heartbeat(tmp_path: Path) -> None:
    """A reader whose filter lets nothing through is moved on all the same, and resumes from there without a gap."""
    async with opened(tmp_path, heartbeat=0.05) as house:
        narrow, _ = await house.follow(filters='{"event":["never"]}')
        await house.commit(30)
        (beat,) = await narrow.blocks(1)
        async with asyncio.timeout(10):
            while beat.id < 30:
                assert (beat.kind, beat.data, beat.comment) == ("", None, "heartbeat")
                (beat,) = await narrow.blocks(1)
        await house.keep(1)
        again, _ = await house.follow(last=beat.id, filters='{"event":["never","enable"]}')
        await house.commit(1)
        assert await again.numbers(1) == [31]


async def test_slow_reader_loses_nothing_and_holds_little(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that stalls is forgotten by the bus, with bounded bytes before it; later it gets all, in order."""
    transports: list[Any] = []

    def outlet(request: web.BaseRequest, form: Form, *, timeout: float) -> Outlet:
        assert request.transport is not None
        transports.append(request.transport)
        return Outlet(request, form, timeout=timeout)

    monkeypatch.setattr(native_events, "Outlet", outlet)
    slow, _ = await house.follow(limit=1024)
    fast, _ = await house.follow()
    for number in range(60):
        await house.commit(100)
        assert await fast.numbers(100) == [*range(number * 100 + 1, number * 100 + 101)]
    assert len(house.bus) == 1
    assert HIGH_WATER < transports[0].get_write_buffer_size() < HIGH_WATER + _BATCH * 512
    assert await slow.numbers(6000) == [*range(1, 6001)]
    await house.commit(2)
    assert (await slow.numbers(2), await fast.numbers(2)) == ([6001, 6002], [6001, 6002])


async def test_stalled_reader_is_cut_off(tmp_path: Path) -> None:
    """One that reads nothing for too long is dropped, logged and counted, heartbeats or not; others get everything."""

    def dropped() -> float:
        return metrics.REGISTRY.get_sample_value("pluginsvc_event_readers_dropped_total") or 0.0

    before = dropped()
    async with opened(tmp_path, reader_timeout=0.5, heartbeat=0.1) as house:
        with capture_logs() as logs:
            stalled, _ = await house.follow(limit=1024)
            fast, _ = await house.follow()
            made = await house.commit(6000)
            assert sum(len(native_message(each)) for each in made) > BUFFERED
            assert await fast.numbers(6000) == [*range(1, 6001)]
            async with asyncio.timeout(10):
                while len(house.app.native) > 1:
                    await house.commit(1)
        lines = [line for line in logs if line["event"] == "events.reader_dropped"]
        assert [(line["path"], line["log_level"]) for line in lines] == [("/pluginsvc/v1/events", "warning")]
        assert dropped() == before + 1
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await stalled.numbers(6000)


async def test_slow_is_not_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that takes many times the time-out for what it was sent, but reads all the while, is not cut off."""

    async def many() -> Snapshot:
        return Snapshot(0, [Summary(f"{number:064x}", "n" * 1000, "disabled") for number in range(4000)])

    async with opened(tmp_path, reader_timeout=0.3) as house:
        monkeypatch.setattr(house.manager, "snapshot", many)
        slow = await house.ask(snapshot=1)
        got = 0
        while got < 4_000_000:
            # a fifth of a second's worth at a time, as over a slow line: the time is what this is about
            for _ in range(8):
                got += len(await asyncio.wait_for(slow._reader.read(2**16), 5))
            await asyncio.sleep(0.1)
        assert len(house.app.native) == 1


async def test_cloud_events(house: House) -> None:
    """Events and gaps are CloudEvents 1.0 to the reference implementation, with our own form as their data."""
    await house.commit(3)
    await house.keep(2)
    reader = await house.ask(after=0, format="cloudevents")
    await reader.raw_block()
    judged = []
    for _ in range(3):
        raw = await reader.raw_block()
        assert raw is not None
        body = raw.partition(b"data: ")[2]
        found = JSONFormat().read(CloudEvent, body)
        assert json.loads(JSONFormat().write(found))["data"] == found.get_data()
        judged.append(found)
    gap, first, second = judged
    assert (gap.get_type(), gap.get_data()) == ("pluginsvc.gap", {"after": 0, "oldest": 2})
    made = await house.database.read(lambda db: journal.after(db, 1, 9))
    assert [each.get_data() for each in (first, second)] == [json.loads(native_message(each)) for each in made]
    assert [each.get_id() for each in (first, second)] == ["2", "3"]
    assert first.get_source() == f"urn:uuid:{ORIGIN.id}"
    assert first.get_extension("host") == ORIGIN.host


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"after": "-1"}, 'invalid after "-1": give the number'),
        ({"after": "1.5"}, 'invalid after "1.5"'),
        ({"after": "+5"}, 'invalid after "+5"'),
        ({"after": "٣"}, 'invalid after "٣"'),
        ({"after": 2**63}, 'invalid after "9223372036854775808"'),
        ({"after": "9" * 5000}, 'invalid after "999'),
        ({"last": "last"}, 'invalid Last-Event-ID "last"'),
        ({"last": "7", "after": "x"}, 'invalid after "x"'),
        ({"format": "xml"}, 'invalid format "xml": events come as native'),
        ({"since": 2, "until": 1}, "`since` time (2) cannot be after `until` time (1)"),
        ({"since": "yesterday"}, "invalid value for 'since'"),
        ({"filters": "{"}, "invalid"),
        ({"filters": '{"label":["x"]}'}, "invalid filter 'label'"),
    ],
)
async def test_bad_input(house: House, options: dict[str, Any], text: str) -> None:
    """What cannot be meant is refused with what is wrong and what would be right."""
    reader = await house.ask(**options)
    assert reader.head.startswith(b"HTTP/1.1 400 ")
    message = json.loads(await asyncio.wait_for(reader._reader.readline(), 10))["message"]
    assert text in message


async def test_end_of_service(house: House) -> None:
    """A stream is counted while it lives, ends after a whole block when serving ends, and no new one begins."""
    reader, _ = await house.follow()
    await house.commit(1)
    assert await reader.numbers(1) == [1]
    _, facts = await Engine(house.socket, house.manager.publish).call("GET", "/info")
    assert facts["NEventsListener"] == 1
    house.app.native.close()
    assert await reader.rest() == []
    assert len(house.app.native) == 0
    refused = await house.ask()
    assert refused.head.startswith(b"HTTP/1.1 503 ")


async def test_reader_that_goes_away_is_forgotten(house: House) -> None:
    """A client that breaks its connection takes nothing from the others, and nothing of it is left."""
    gone, _ = await house.follow()
    stays, _ = await house.follow()
    await house.commit(50)
    gone.writer.transport.abort()
    await house.commit(50)
    assert await stays.numbers(100) == [*range(1, 101)]
    async with asyncio.timeout(10):
        while len(house.app.native) > 1:
            await house.commit(1)
    assert len(house.bus) == 1
