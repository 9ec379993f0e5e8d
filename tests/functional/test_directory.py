"""Who provides what, through the socket: lists, lookups with leases, streams; by pluginctl and the Python client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web

from pluginsvc.api import directory
from pluginsvc.api.app import Api, make_app, serve
from pluginsvc.api.feed import Pipe
from pluginsvc.api.listeners import TcpListener, UnixListener
from pluginsvc.client.aio import Client
from pluginsvc.client.connection import DaemonUnreachable
from pluginsvc.client.watch import Change, Watch
from pluginsvc.directory.legacy import LegacyNotFound
from pluginsvc.directory.provider import Provider
from pluginsvc.directory.rpc import Client as Rpc
from pluginsvc.errors import Conflict, InvalidParameter, NotFound
from pluginsvc.model.plugin import Capability
from tests.functional.conftest import FACTS, Ctl
from tests.support import openapi
from tests.support.engine import CONFIG, Engine
from tests.support.memory_manager import MemoryManager

pytestmark = pytest.mark.anyio
V1 = "/pluginsvc/v1/capabilities"
VOLUME = "docker.volumedriver/1.0"
HEAD_END = b"\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
HIGH_WATER = 64 * 1024
"""Unsent bytes at which the loop tells a connection to stop writing."""


class Others:
    """Legacy plugins without files."""

    def __init__(self, *names: str) -> None:
        capabilities = (Capability("docker", "volumedriver", "1.0"),)
        self.found = {
            name: Provider(
                name=name,
                plugin_id="",
                capabilities=capabilities,
                address=f"unix:///x/{name}.sock",
                enabled=True,
                state="legacy",
                up=True,
                run="1",
                client=Rpc(f"unix:///x/{name}.sock"),
            )
            for name in names
        }

    async def get(self, name: str, **_more: object) -> Provider:
        if name not in self.found:
            raise LegacyNotFound(name)
        return self.found[name]

    async def all(self) -> list[Provider]:
        return [self.found[name] for name in sorted(self.found)]


def with_legacy(memory: MemoryManager, *names: str) -> None:
    memory.directory._legacy = Others(*names)  # type: ignore[assignment]  # it has what the directory uses


def providing(*types: str) -> dict[str, Any]:
    return CONFIG | {"interface": {"socket": "sample.sock", "types": list(types)}}


async def enabled(engine: Engine, name: str, *types: str) -> str:
    found = await engine.install(name, providing(*types or (VOLUME,)))
    assert (await engine.call("POST", f"/plugins/{found}/enable", params={"timeout": "0"}))[0] == 200
    return found


async def test_list(engine: Engine, memory: MemoryManager) -> None:
    """What enabled plugins provide is listed by capability in any case, sorted, on wish without legacy ones."""
    assert await engine.call("GET", V1) == (200, [])
    await enabled(engine, "b")
    await enabled(engine, "a", "Docker.VolumeDriver/1.0", "docker.authz/1.0", VOLUME)
    await engine.install("off")
    with_legacy(memory, "old")
    authz = {"Capability": "docker.authz/1.0", "Plugins": ["a:latest"]}
    volume = {"Capability": VOLUME, "Plugins": ["a:latest", "b:latest", "old"]}
    assert await engine.call("GET", V1) == (200, [authz, volume])
    volume["Plugins"] = ["a:latest", "b:latest"]
    for no in ("0", "false", ""):
        assert await engine.call("GET", V1, params={"legacy": no}) == (200, [authz, volume])


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("volumedriver", ["a:latest", "b:latest", "old"]),
        ("VolumeDriver", ["a:latest", "b:latest", "old"]),
        ("docker.volumedriver/1.0", ["a:latest", "old"]),
        ("docker.volumedriver%2F1.0", ["a:latest", "old"]),
        ("VOLUMEDRIVER/2.0", ["b:latest"]),
        ("volumedriver/1.0?legacy=0", ["a:latest"]),
        ("volumedriver?legacy=1", ["a:latest", "b:latest", "old"]),
        ("volume", []),
        ("other.volumedriver", []),
        ("volumedriver/watch/1", None),
        ("watch", []),
        ("lookup", []),
        ("volumedriver/lookup", None),
        ("", None),
        ("a b", None),
        ("%C3%A9", None),
        ("volumedriver/", None),
    ],
)
async def test_providers(engine: Engine, memory: MemoryManager, wanted: str, found: list[str] | None) -> None:
    """Who provides something is listed, any version or exactly one, in any case; nobody is fine, nonsense is not."""
    await enabled(engine, "b", "docker.volumedriver/2.0")
    await enabled(engine, "a")
    await engine.install("off")
    with_legacy(memory, "old", "a")
    status, listed = await engine.call("GET", f"{V1}/{wanted}")
    if found is None:
        assert status == 400
        assert listed["message"].startswith("invalid capability ")
        return
    assert (status, [each["Name"] for each in listed]) == (200, found)
    for each in listed:
        openapi.check("Provider", each)
        assert each["Kind"] == ("legacy" if each["ID"] == "" else "managed")


async def lookup(engine: Engine, capability: str = VOLUME, **body: Any) -> tuple[int, Any]:
    status, answer = await engine.call("POST", f"{V1}/{capability}/lookup", json=body)
    if status == 200:
        assert set(answer) == {"Plugin", "Lease", "Count"}
        return status, {key: value for key, value in answer.items() if value is not None}
    return status, answer["message"]


async def test_lookup(engine: Engine, memory: MemoryManager) -> None:
    """A plugin is found by any of its names, if it provides what is wanted; not found, unfit and disabled differ."""
    name = await enabled(engine, "a")
    off = await engine.install("off")
    with_legacy(memory, "old", "off")
    _, (shown,) = await engine.call("GET", f"{V1}/{VOLUME}?legacy=0")
    for typed in (name, "a", shown["ID"], shown["ID"][:9]):
        assert await lookup(engine, "VolumeDriver", Mode="lookup", Name=typed) == (200, {"Plugin": shown})
    _, found = await lookup(engine, Mode="lookup", Name="old")
    assert (found["Plugin"]["Kind"], found["Plugin"]["Address"]) == ("legacy", "unix:///x/old.sock")
    unfit = 'plugin does not provide "networkdriver" capability'
    for mode in ({"Mode": "lookup"}, {"Mode": "acquire", "Holder": "h", "Purpose": "p"}):
        assert await lookup(engine, "NetworkDriver", Name="a", **mode) == (400, unfit)
        assert await lookup(engine, Name=off, **mode) == (409, "plugin off:latest found but disabled")
        status, text = await lookup(engine, Name="none", **mode)
        assert (status, text.endswith("plugin not found")) == (404, True)
    assert await engine.call("GET", f"/pluginsvc/v1/plugins/{name}/leases") == (200, [])


async def test_ambiguous(engine: Engine, memory: MemoryManager) -> None:
    """The beginning of several IDs is refused as such, in every mode."""
    for number in range(17):
        await engine.install(f"p{number}")
    firsts = [plugin_id[0] for plugin_id in memory.plugins]
    twice = next(first for first in firsts if firsts.count(first) > 1)
    for mode in ({"Mode": "lookup"}, {"Mode": "release", "Holder": "h"}):
        assert await lookup(engine, Name=twice, **mode) == (400, f'multiple plugins found for "{twice}"')


async def test_acquire_and_release(engine: Engine, memory: MemoryManager) -> None:
    """A lease is taken, keeps the plugin from being disabled, and is given back, in part or all of it."""
    name = await enabled(engine, "a")
    mine = {"Name": "a", "Holder": "web", "Purpose": "volume v"}
    status, first = await lookup(engine, Mode="acquire", Seconds=60, **mine)
    assert (status, first["Plugin"]["Name"], first["Lease"]["Count"]) == (200, name, 1)
    openapi.check("PluginLease", first["Lease"])
    assert first["Lease"]["ExpiresNs"] is not None
    counts = [(await lookup(engine, Mode="acquire", **mine))[1]["Lease"]["Count"] for _ in range(2)]
    other = await lookup(engine, Mode="acquire", **mine | {"Purpose": "volume w"})
    assert (counts, other[1]["Lease"]["Count"]) == ([2, 3], 1)
    status, refused = await engine.call("POST", "/plugins/a/disable")
    assert (status, "in use by web (volume v)" in refused["message"]) == (409, True)
    assert await lookup(engine, Mode="release", **mine | {"Purpose": "volume w"}) == (200, {"Count": 0})
    assert await lookup(engine, Mode="release", **mine) == (200, {"Count": 2})
    assert await lookup(engine, Mode="release", Name="a", Holder="web", All=True) == (200, {"Count": 0})
    assert (await engine.call("POST", "/plugins/a/disable"))[0] == 200
    with_legacy(memory, "old")
    status, legacy = await lookup(engine, Mode="acquire", **mine | {"Name": "old"})
    assert (status, [*legacy], legacy["Plugin"]["Name"]) == (200, ["Plugin"], "old")


async def test_release_always_works(engine: Engine, memory: MemoryManager) -> None:
    """What is disabled, provides something else, is legacy or is gone is released all the same (REF 7.38)."""
    name = await enabled(engine, "a")
    for purpose in ("x", "y"):
        await lookup(engine, Mode="acquire", Name=name, Holder="h", Purpose=purpose)
    await engine.call("POST", f"/plugins/{name}/disable", params={"force": "1"})
    assert await lookup(engine, "authz", Mode="release", Name=name, Holder="h") == (200, {"Count": 1})
    assert await lookup(engine, Mode="release", Name=name, Holder="h") == (200, {"Count": 0})
    with_legacy(memory, "old")
    await engine.call("DELETE", f"/plugins/{name}")
    for gone in (name, "never", "old", "No Name"):
        assert await lookup(engine, Mode="release", Name=gone, Holder="h") == (200, {"Count": 0})


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (None, "Expected `object`, got `null`"),
        ([], "Expected `object`, got `array`"),
        ({"Name": "a"}, "missing required field `Mode`"),
        ({"Mode": "peek", "Name": "a"}, "Invalid value 'peek' - at `$.Mode`"),
        ({"Mode": "lookup"}, "missing required field `Name`"),
        ({"Mode": "lookup", "Name": 1}, "`$.Name`"),
        ({"Mode": "lookup", "Name": "a", "Holder": "h"}, "unknown field `Holder`"),
        ({"Mode": "acquire", "Name": "a", "Holder": "h"}, "missing required field `Purpose`"),
        ({"Mode": "acquire", "Name": "a", "Purpose": "p"}, "missing required field `Holder`"),
        ({"Mode": "acquire", "Name": "a", "Holder": "h", "Purpose": "p", "All": True}, "unknown field `All`"),
        ({"Mode": "acquire", "Name": "a", "Holder": "h", "Purpose": "p", "Seconds": 0}, "`$.Seconds`"),
        ({"Mode": "acquire", "Name": "a", "Holder": "", "Purpose": "p"}, "Holder has to be"),
        ({"Mode": "release", "Name": "a"}, "missing required field `Holder`"),
        ({"Mode": "release", "Name": "a", "Holder": "h", "Seconds": 1}, "unknown field `Seconds`"),
        ({"Mode": "release", "Name": "a", "Holder": "h", "Count": 1}, "unknown field `Count`"),
    ],
)
async def test_bad_lookups(engine: Engine, body: object, says: str) -> None:
    """A body with fields that its mode does not have, or without those that it needs, is a 400 that names the field."""
    await enabled(engine, "a")
    status, refused = await engine.call("POST", f"{V1}/{VOLUME}/lookup", json=body)
    assert (status, says in refused["message"]) == (400, True), refused
    assert await engine.call("GET", "/pluginsvc/v1/plugins/a/leases") == (200, [])


async def test_routes_keep_apart(engine: Engine) -> None:
    """Methods and last words lead where they should, and nonsense before them is told as such."""
    assert (await engine.call("POST", f"{V1}/a b/lookup", json={"Mode": "release", "Name": "a", "Holder": "h"}))[
        0
    ] == 400
    assert (await engine.call("GET", f"{V1}/a b/watch"))[0] == 400
    for method, path in (("POST", V1), ("POST", f"{V1}/volumedriver"), ("GET", f"/v1.47{V1}")):
        assert await engine.call(method, path) == (404, {"message": "page not found"})


@dataclass
class Block:
    """A block of a stream; a heartbeat has no kind."""

    kind: str
    data: Any


class Reader:
    """A reader's side of a stream, over HTTP/1.1."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def block(self) -> Block:
        async with asyncio.timeout(10):
            size = int(await self.reader.readline(), 16)
            raw = (await self.reader.readexactly(size + 2))[:-2]
        assert raw.endswith(b"\n\n")
        if raw == b": heartbeat\n\n":
            return Block("", None)
        kind, data = raw[:-2].split(b"\n")
        assert kind.startswith(b"event: ")
        assert data.startswith(b"data: ")
        return Block(kind[7:].decode(), json.loads(data[6:]))

    async def told(self, count: int) -> list[tuple[str, object]]:
        """Return what comes next, heartbeats left out: names of plugins, or how many are ready."""
        found: list[tuple[str, object]] = []
        while len(found) < count:
            block = await self.block()
            if block.kind == "current":
                found.append((block.kind, block.data["Count"]))
            elif block.kind:
                openapi.check("Provider", block.data)
                found.append((block.kind, f"{block.data['Name']}#{block.data['Run']}"))
        return found


@dataclass
class Counted(MemoryManager):
    """A manager whose plugins are started again at will.

    Attributes:
        runs: how often, by ID.
        starting: names of those that are wished for and not up.
        seen: called whenever somebody looks.
    """

    runs: dict[str, int] = field(default_factory=dict)
    starting: set[str] = field(default_factory=set)
    seen: Callable[[], None] = lambda: None

    def providers(self) -> list[Provider]:
        found = [replace(each, run=str(self.runs.get(each.plugin_id, 1))) for each in super().providers()]
        self.seen()
        return [replace(each, up=each.up and each.name not in self.starting) for each in found]

    def notify(self) -> None:
        for call in self.watchers:
            call()

    def restart(self, name: str) -> None:
        plugin = self.find(name)
        self.runs[plugin.id] = self.runs.get(plugin.id, 1) + 1
        self.notify()

    def switch(self, name: str, *, on: bool) -> None:
        self._switch(self.find(name), name, on=on)
        self.notify()


@dataclass
class House:
    """A daemon whose plugins come and go."""

    memory: Counted
    app: Api
    engine: Engine
    readers: list[Reader] = field(default_factory=list)

    async def watch(self, capability: str = "volumedriver", *, version: str = "1.1", limit: int = 2**16) -> Reader:
        reader = Reader(*await asyncio.open_unix_connection(str(self.engine.socket), limit=limit))
        self.readers.append(reader)
        reader.writer.write(f"GET {V1}/{capability}/watch HTTP/{version}\r\nHost: localhost\r\n\r\n".encode())
        head = await asyncio.wait_for(reader.reader.readuntil(HEAD_END), 10)
        assert head.startswith(f"HTTP/{version} 200 OK\r\n".encode()), head
        assert b"Content-Type: text/event-stream\r\n" in head
        return reader


@asynccontextmanager
async def opened(
    folder: Path, memory: Counted | None = None, *, reader_timeout: float = 300, heartbeat: float = 15
) -> AsyncIterator[House]:
    memory = memory or Counted()
    socket = folder / "api.sock"
    app = make_app(
        manager=memory,
        directory=memory.directory,
        system=FACTS,
        events=memory.events,
        reader_timeout=reader_timeout,
        heartbeat=heartbeat,
    )
    async with serve(app, [UnixListener(socket)], grace=2):
        house = House(memory, app, Engine(socket, memory.publish))
        try:
            yield house
        finally:
            for reader in house.readers:
                reader.writer.transport.abort()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with opened(tmp_path) as house:
        yield house


async def test_watch(house: House) -> None:
    """A reader is told who is ready, that this is all, then of each start, restart and end, of that capability only."""
    await enabled(house.engine, "a")
    await enabled(house.engine, "guard", "docker.authz/1.0")
    house.memory.starting.add(await enabled(house.engine, "b"))
    reader = await house.watch("Docker.VolumeDriver/1.0")
    assert await reader.told(2) == [("ready", "a:latest#1"), ("current", 1)]
    house.memory.restart("guard")
    house.memory.starting.clear()
    house.memory.notify()
    assert await reader.told(1) == [("ready", "b:latest#1")]
    house.memory.switch("b", on=False)
    assert await reader.told(1) == [("gone", "b:latest#1")]
    house.memory.restart("a")
    assert await reader.told(2) == [("gone", "a:latest#1"), ("ready", "a:latest#2")]
    nobody = await house.watch("logdriver")
    assert await nobody.told(1) == [("current", 0)]


async def test_watch_over_http_1_0(house: House) -> None:
    """A client that knows no chunks gets the blocks as they are."""
    reader = await house.watch(version="1.0")
    expected = b'event: current\ndata: {"Count":0}\n\n'
    assert await asyncio.wait_for(reader.reader.readexactly(len(expected)), 10) == expected


async def test_heartbeats(tmp_path: Path) -> None:
    """A reader of whom nothing is to be told hears that we are there, again and again."""
    async with opened(tmp_path, heartbeat=0.02) as house:
        reader = await house.watch()
        assert [(await reader.block()).kind for _ in range(4)] == ["current", "", "", ""]
        await enabled(house.engine, "a")
        house.memory.notify()
        assert await reader.told(1) == [("ready", "a:latest#1")]


async def test_who_goes_while_we_look(tmp_path: Path) -> None:
    """A plugin that ends while we look is told as we saw it, and then as gone."""
    memory = Counted()
    async with opened(tmp_path, memory, heartbeat=0.02) as house:
        await enabled(house.engine, "a")

        def end() -> None:
            # the first look has it, the one after that does not
            memory.seen = lambda: None
            memory.switch("a", on=False)

        memory.seen = end
        reader = await house.watch()
        assert await reader.told(3) == [("ready", "a:latest#1"), ("current", 1), ("gone", "a:latest#1")]


async def test_streams_end_with_the_daemon(tmp_path: Path) -> None:
    """When the daemon stops listening, each stream ends as a whole answer, at once, and none begins."""
    memory, socket = MemoryManager(), tmp_path / "api.sock"
    app = make_app(manager=memory, directory=memory.directory, system=FACTS, events=memory.events)
    readers = []
    with anyio.fail_after(20):
        async with serve(app, [UnixListener(socket)], grace=30):
            house = House(Counted(), app, Engine(socket, memory.publish))
            for _ in range(3):
                readers.append(await house.watch())
                assert await readers[-1].told(1) == [("current", 0)]
        for reader in readers:
            assert await reader.reader.read() == LAST_CHUNK
            reader.writer.close()
    assert len(app.capabilities) == 0
    async with serve(app, [UnixListener(socket)], grace=2):
        status, refused = await house.engine.call("GET", f"{V1}/volumedriver/watch")
        assert (status, refused["message"].startswith("the daemon is shutting down")) == (503, True)


async def test_reader_that_goes_away_is_forgotten(house: House) -> None:
    """A client that breaks its connection is forgotten, and others are told on."""
    gone, stays = await house.watch(), await house.watch()
    for reader in (gone, stays):
        assert await reader.told(1) == [("current", 0)]
    assert len(house.app.capabilities) == 2
    gone.writer.transport.abort()
    with anyio.fail_after(10):
        while len(house.app.capabilities) > 1:
            await house.engine.call("GET", "/_ping")
    await enabled(house.engine, "a")
    house.memory.notify()
    assert await stays.told(1) == [("ready", "a:latest#1")]


async def test_stalled_reader_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that reads nothing for too long is dropped, heartbeats or not, with few bytes before it; others are not."""
    transports: list[Any] = []

    def pipe(request: web.BaseRequest, *, timeout: float) -> Pipe:
        transports.append(request.transport)
        return Pipe(request, timeout=timeout)

    monkeypatch.setattr(directory, "Pipe", pipe)
    async with opened(tmp_path, reader_timeout=0.3, heartbeat=0.05) as house:
        await enabled(house.engine, "a")
        stalled, fast = await house.watch(limit=1024), await house.watch()
        assert await fast.told(2) == [("ready", "a:latest#1"), ("current", 1)]
        number, most = 1, 0
        with anyio.fail_after(20):
            while len(house.app.capabilities) > 1:
                house.memory.restart("a")
                number += 1
                changes = await fast.told(2)
                assert changes == [("gone", f"a:latest#{number - 1}"), ("ready", f"a:latest#{number}")]
                most = max(most, transports[0].get_write_buffer_size())
        assert HIGH_WATER < most < HIGH_WATER + 1024
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError, ValueError)):
            await stalled.told(2 * number + 1)


@pytest.fixture
async def client(engine: Engine) -> AsyncIterator[Client]:
    async with Client(engine.host) as found:
        yield found


async def test_client_reads(engine: Engine, memory: MemoryManager, client: Client) -> None:
    """The Python client lists and finds, and raises the kinds of errors that the daemon means, with their texts."""
    assert (await client.capabilities(), await client.providers("volumedriver")) == ([], [])
    name = await enabled(engine, "a")
    with_legacy(memory, "old")
    (offer,) = await client.capabilities()
    assert (offer.capability, offer.plugins) == (VOLUME, [name, "old"])
    managed, legacy = await client.providers("VolumeDriver/1.0")
    assert (managed.name, managed.kind, legacy.name, legacy.kind) == (name, "managed", "old", "legacy")
    assert await client.providers("volumedriver", legacy=False) == [managed]
    assert await client.lookup("a", VOLUME) == managed
    with pytest.raises(NotFound, match="plugin not found"):
        await client.lookup("none", VOLUME)
    with pytest.raises(InvalidParameter, match=r'^plugin does not provide "authz" capability$'):
        await client.lookup("a", "authz")
    await engine.call("POST", "/plugins/a/disable")
    with pytest.raises(Conflict, match=r"^plugin a:latest found but disabled$"):
        await client.lookup("a", VOLUME)


async def holders(engine: Engine) -> list[tuple[str, int]]:
    _, listed = await engine.call("GET", "/pluginsvc/v1/plugins/a/leases")
    return [(lease["Holder"], lease["Count"]) for lease in listed]


async def test_client_leases(engine: Engine, memory: MemoryManager, client: Client) -> None:
    """The Python client takes leases and gives them back, for the length of a block as well, whatever ends it."""
    await enabled(engine, "a")
    found = await client.acquire("a", VOLUME, holder="h", purpose="p", seconds=60)
    assert (found.plugin.name, found.lease and found.lease.count) == ("a:latest", 1)
    assert await client.release("a", VOLUME, holder="h", everything=True) == 0
    async with client.leased("a", VOLUME, holder="h", purpose="p") as used:
        assert used.lease is not None
        assert await holders(engine) == [("h", 1)]
    assert await holders(engine) == []
    with pytest.raises(ZeroDivisionError):
        async with client.leased("a", VOLUME, holder="h", purpose="p"):
            raise ZeroDivisionError
    assert await holders(engine) == []
    with_legacy(memory, "old")
    async with client.leased("old", VOLUME, holder="h", purpose="p") as used:
        assert used.lease is None
    with pytest.raises(NotFound):
        async with client.leased("none", VOLUME, holder="h", purpose="p"):
            pytest.fail("a plugin that is not there is used")


@pytest.mark.parametrize("native", [False, True], ids=["anyio", "asyncio"])
async def test_cancelled_while_leased(engine: Engine, client: Client, *, native: bool) -> None:
    """A block that is cancelled, by either library's way, gives its lease back before the cancellation goes on."""
    await enabled(engine, "a")
    inside = anyio.Event()

    async def use() -> None:
        async with client.leased("a", VOLUME, holder="h", purpose="p"):
            inside.set()
            await anyio.sleep_forever()

    if native:
        task = asyncio.ensure_future(use())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        async with anyio.create_task_group() as group:
            group.start_soon(use)
            await inside.wait()
            assert await holders(engine) == [("h", 1)]
            group.cancel_scope.cancel()
    assert await holders(engine) == []


async def next_of(changes: Watch, count: int) -> list[tuple[str, str]]:
    found: list[Change] = []
    with anyio.fail_after(20):
        while len(found) < count:
            found.append(await anext(changes))
    return [(change.kind, f"{change.plugin.name}#{change.plugin.run}") for change in found]


async def test_client_watches(house: House) -> None:
    """The Python client iterates over changes, and a wait that is cancelled loses none."""
    await enabled(house.engine, "a")
    async with Client(house.engine.host) as client, client.watch("volumedriver") as changes:
        assert await next_of(changes, 1) == [("ready", "a:latest#1")]
        for _ in range(5):
            with anyio.move_on_after(0.01):
                pytest.fail(f"{await anext(changes)} out of nothing")
        house.memory.restart("a")
        assert await next_of(changes, 2) == [("gone", "a:latest#1"), ("ready", "a:latest#2")]
    with pytest.raises(InvalidParameter):
        async with Client(house.engine.host) as client, client.watch("a b"):
            pytest.fail("nonsense is watched")


async def test_client_watches_over_restarts(tmp_path: Path) -> None:
    """A watcher of a daemon that ends and comes back is told only of what became another meanwhile."""
    memory = Counted()
    async with Client(f"unix://{tmp_path}/api.sock") as client:
        with pytest.raises(DaemonUnreachable):
            async with client.watch("volumedriver"):
                pytest.fail("nobody is watched")
        async with opened(tmp_path, memory) as house:
            for name in ("stays", "goes", "again"):
                await enabled(house.engine, name)
            watching = client.watch("volumedriver")
            changes = await watching.__aenter__()
            assert sorted(await next_of(changes, 3)) == [
                ("ready", "again:latest#1"),
                ("ready", "goes:latest#1"),
                ("ready", "stays:latest#1"),
            ]
        memory.switch("goes", on=False)
        memory.restart("again")
        async with opened(tmp_path, memory):
            assert await next_of(changes, 3) == [
                ("gone", "again:latest#1"),
                ("ready", "again:latest#2"),
                ("gone", "goes:latest#1"),
            ]
            memory.restart("stays")
            assert await next_of(changes, 2) == [("gone", "stays:latest#1"), ("ready", "stays:latest#2")]
            await watching.__aexit__(None, None, None)


async def test_client_comes_back_to_the_same_daemon(house: House) -> None:
    """Cut off from a daemon that lives on, a watcher is told of what started again meanwhile."""
    for name in ("a", "b"):
        await enabled(house.engine, name)
    async with Client(house.engine.host) as client, client.watch("volumedriver") as changes:
        assert await next_of(changes, 2) == [("ready", "a:latest#1"), ("ready", "b:latest#1")]
        for scope in list(house.app.capabilities._open):
            scope.cancel()
        house.memory.restart("b")
        assert await next_of(changes, 2) == [("gone", "b:latest#1"), ("ready", "b:latest#2")]


async def test_client_over_tcp(memory: MemoryManager) -> None:
    """A loopback port serves the Python client as well as a socket."""
    app = make_app(manager=memory, directory=memory.directory, system=FACTS, events=memory.events)
    async with serve(app, [TcpListener("127.0.0.1", 0)], grace=2) as addresses, Client(addresses[0]) as client:
        assert await client.capabilities() == []


@pytest.fixture
def ctl(ctl: Ctl) -> Ctl:
    """Give a function that runs ``pluginctl capabilities``."""
    return partial(ctl, "capabilities")


async def test_pluginctl(ctl: Ctl, engine: Engine, memory: MemoryManager) -> None:
    """pluginctl shows capabilities, or who provides one, for people and for programs."""
    assert (await ctl()).stdout.split() == ["CAPABILITY", "PLUGINS"]
    await enabled(engine, "a")
    with_legacy(memory, "old")
    header, row = (await ctl()).stdout.splitlines()
    assert row.split() == [VOLUME, "a:latest,", "old"]
    assert json.loads((await ctl("--format", "json")).stdout) == {"Capability": VOLUME, "Plugins": ["a:latest", "old"]}
    header, first, second = (await ctl("VolumeDriver")).stdout.splitlines()
    (shown,) = (await engine.call("GET", f"{V1}/{VOLUME}?legacy=0"))[1]
    assert header.split() == ["NAME", "ID", "KIND", "STATE", "ADDRESS"]
    assert first.split() == ["a:latest", shown["ID"][:12], "managed", "running", shown["Address"]]
    assert second.split() == ["old", "legacy", "legacy", "unix:///x/old.sock"]
    lines = (await ctl("docker.volumedriver/1.0", "--format", "json")).stdout.splitlines()
    assert json.loads(lines[0]) == shown
    assert (await ctl("authz", "--format", "json")).stdout == ""
    assert "invalid capability 'a b'" in (await ctl("a b", status=1)).stderr
