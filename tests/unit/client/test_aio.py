"""The asynchronous client against daemons that answer byte for byte what a test says, and that go away."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluginsvc.client import aio, watch, wire
from pluginsvc.client.aio import Acquired, Client
from pluginsvc.client.connection import AnswerLost, Connection, DaemonUnreachable, InvalidHost
from pluginsvc.client.watch import Change, Watch, _Known
from pluginsvc.errors import Conflict, Forbidden, Internal, NotFound, PluginsvcError, Unavailable
from pluginsvc.model.plugin import InvalidCapability

pytestmark = pytest.mark.anyio

ID = "a" * 64
PLUGIN = {
    "Name": "a:latest",
    "ID": ID,
    "Kind": "managed",
    "State": "running",
    "Address": "unix:///x",
    "Capabilities": ["docker.volumedriver/1.0"],
}
LEASE = {"Holder": "h", "Purpose": "p", "Count": 1, "SinceNs": 1, "ExpiresNs": None}
TAKEN = {"Plugin": PLUGIN, "Lease": LEASE, "Count": None}
GIVEN = {"Plugin": None, "Lease": None, "Count": 0}
HEAD_END = b"\r\n\r\n"

Script = Callable[["Call"], Awaitable[None]]
Lease = AbstractAsyncContextManager[Acquired]


@dataclass
class Call:
    """A request that came, and the way to answer it.

    Attributes:
        line: the request line.
        headers: lower-cased names.
        body: as JSON; ``None``: there is none.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    line: str
    headers: dict[str, str]
    body: Any

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def gone(self) -> None:
        """Wait until the client has hung up."""
        assert await self.reader.read() == b""


@dataclass
class Scripted:
    """A daemon.

    Attributes:
        host: where.
        calls: what came so far.
    """

    host: str
    calls: list[Call] = field(default_factory=list)

    def bodies(self) -> list[Any]:
        return [call.body for call in self.calls]


@asynccontextmanager
async def scripted(folder: Path, *scripts: Script) -> AsyncIterator[Scripted]:
    """Serve one connection by each script, in turn; what a script raises fails the test."""
    daemon = Scripted(f"unix://{folder}/scripted.sock")
    todo = list(scripts)
    tasks: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(HEAD_END)).decode().split("\r\n")
            headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in head[1:-2])}
            length = int(headers.get("content-length", 0))
            body = json.loads(await reader.readexactly(length)) if length else None
            daemon.calls.append(Call(reader, writer, head[0], headers, body))
            await todo.pop(0)(daemon.calls[-1])
        finally:
            writer.close()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.ensure_future(serve(reader, writer)))

    path = folder / "scripted.sock"
    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(connected, path)
    try:
        yield daemon
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks)
        assert todo == []
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answer(document: object, status: str = "200 OK") -> Script:
    return raw_answer(json.dumps(document).encode(), status)


def raw_answer(body: bytes, status: str = "200 OK") -> Script:
    async def send(call: Call) -> None:
        await call.send(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    return send


def raw(data: bytes) -> Script:
    async def send(call: Call) -> None:
        await call.send(data)

    return send


NOTHING = raw(b"")


async def silent(call: Call) -> None:
    await call.gone()


@pytest.mark.parametrize("host", ["", "unix://x", "tcp://127.0.0.1", "http://127.0.0.1:1"])
def test_invalid_host(host: str) -> None:
    """What is no address of a daemon is refused at once."""
    with pytest.raises(InvalidHost):
        Client(host)


async def test_requests(tmp_path: Path) -> None:
    """Each method sends what the description of the API says, each on a connection of its own."""
    scripts = [*[answer([])] * 3, *[answer(TAKEN)] * 2, *[answer(GIVEN)] * 2, answer(TAKEN), answer(GIVEN)]
    async with scripted(tmp_path, *scripts) as daemon, Client(daemon.host) as client:
        await client.capabilities()
        await client.providers("VolumeDriver")
        await client.providers("docker.volumedriver/1.0", legacy=False)
        await client.lookup("n", "volumedriver")
        await client.acquire("n", "volumedriver", holder="h", purpose="p", seconds=5)
        assert await client.release("n", "volumedriver", holder="h", everything=True) == 0
        await client.release("n", "volumedriver", holder="i", purpose="q")
        async with client.leased("n", "volumedriver", holder="h", purpose="p", seconds=7):
            pass
    v1 = "/pluginsvc/v1/capabilities"
    assert [call.line for call in daemon.calls] == [
        f"GET {v1} HTTP/1.1",
        f"GET {v1}/VolumeDriver HTTP/1.1",
        f"GET {v1}/docker.volumedriver/1.0?legacy=0 HTTP/1.1",
        *[f"POST {v1}/volumedriver/lookup HTTP/1.1"] * 6,
    ]
    assert daemon.bodies() == [
        *[None] * 3,
        {"Mode": "lookup", "Name": "n"},
        {"Mode": "acquire", "Name": "n", "Holder": "h", "Purpose": "p", "Seconds": 5},
        {"Mode": "release", "Name": "n", "Holder": "h", "Purpose": None, "All": True},
        {"Mode": "release", "Name": "n", "Holder": "i", "Purpose": "q", "All": False},
        {"Mode": "acquire", "Name": "n", "Holder": "h", "Purpose": "p", "Seconds": 7},
        RELEASE,
    ]
    assert {call.headers["content-type"] for call in daemon.calls[3:]} == {"application/json"}


@pytest.mark.parametrize("capability", ["", "a b", "a/b/c", "../plugins", "é", "volumedriver/watch"])
async def test_nonsense_is_not_sent(tmp_path: Path, capability: str) -> None:
    """What nobody can provide is refused before anything is sent."""
    async with Client(f"unix://{tmp_path}/none.sock") as client:
        with pytest.raises(InvalidCapability):
            await client.providers(capability)


async def test_unreachable(tmp_path: Path) -> None:
    """Without a daemon the error is the one that commands show: where it was looked for, and what to do."""
    with socket.socket(socket.AF_UNIX) as left, socket.socket() as free:
        left.bind(str(tmp_path / "left.sock"))
        free.bind(("127.0.0.1", 0))
        hosts = [f"unix://{tmp_path}/none.sock", f"unix://{tmp_path}/left.sock"]
        for host in [*hosts, f"tcp://127.0.0.1:{free.getsockname()[1]}"]:
            with pytest.raises(DaemonUnreachable) as expected:
                await anyio.to_thread.run_sync(Connection(host).call, "GET", "/_ping")
            async with Client(host) as client:
                with pytest.raises(DaemonUnreachable) as caught:
                    await client.capabilities()
            assert str(caught.value) == str(expected.value)
    for path, reason in (("/" + "x" * 106, "No such file"), ("/" + "x" * 107, "so long"), ("/" + "é" * 54, "so long")):
        async with Client(f"unix://{path}") as client:
            with pytest.raises(DaemonUnreachable, match=f"cannot reach the daemon at unix://{path}: .*{reason}"):
                await client.capabilities()


async def test_nobody_takes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that takes no more connections is not waited for longer than a connection may take."""
    monkeypatch.setattr(wire, "CONNECT_TIMEOUT", 0.2)
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for other in (first, second):
            other.setblocking(False)
            other.connect_ex(full.getsockname())
        async with Client(f"tcp://127.0.0.1:{full.getsockname()[1]}") as client:
            with pytest.raises(DaemonUnreachable, match="it took too long"):
                await client.capabilities()


@pytest.mark.parametrize(
    "script",
    [
        NOTHING,
        raw(b"SSH-2.0-x\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n[]"),
        raw_answer(b"{"),
        raw_answer(b'["\xff"]'),
        raw_answer(b'[{"Capability":"\xff","Plugins":[]}]'),
        answer({"a": 1}),
        answer([{"Capability": 1, "Plugins": []}]),
    ],
)
async def test_no_answer_of_ours(tmp_path: Path, script: Script) -> None:
    """An answer that is cut, or is none, is never taken for one."""
    # a GET without any answer is tried once more by aiohttp
    again = [script] * (1 + (script is NOTHING))
    async with scripted(tmp_path, *again) as daemon, Client(daemon.host) as client:
        with pytest.raises(AnswerLost, match="no whole answer from the daemon"):
            await client.capabilities()


async def test_a_part_is_missing(tmp_path: Path) -> None:
    """An answer without the part that was asked for is none."""
    async with scripted(tmp_path, answer(GIVEN), answer(TAKEN)) as daemon, Client(daemon.host) as client:
        with pytest.raises(AnswerLost):
            await client.lookup("a", "volumedriver")
        with pytest.raises(AnswerLost):
            await client.release("a", "volumedriver", holder="h")


async def test_slow_answers(tmp_path: Path) -> None:
    """A daemon that says nothing, or never comes to an end, is not waited for longer than was said."""

    async def drips(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        with anyio.fail_after(10), suppress(ConnectionError):
            while not call.reader.at_eof():
                await call.send(b" ")
                with anyio.move_on_after(0.01):
                    await call.reader.read()

    async with scripted(tmp_path, silent, drips) as daemon, Client(daemon.host, timeout=0.2) as client:
        for _ in range(2):
            with pytest.raises(AnswerLost):
                await client.capabilities()


@pytest.mark.parametrize(
    ("status", "body", "kind", "text"),
    [
        ("404 Not Found", b'{"message":"no a"}', NotFound, "no a"),
        ("409 Conflict", b'{"message":"in use"}', Conflict, "in use"),
        ("503 Busy", b'{"message":"stopping"}', Unavailable, "stopping"),
        ("502 Bad", b"<html>", Internal, "<html>"),
        ("301 Moved\r\nLocation: /x", b"", Internal, "the daemon answered with status 301 and no reason"),
    ],
)
async def test_errors_of_the_api(
    tmp_path: Path, status: str, body: bytes, kind: type[PluginsvcError], text: str
) -> None:
    """An error of the API is raised as its kind, with its text as it is."""
    async with scripted(tmp_path, raw_answer(body, status)) as daemon, Client(daemon.host) as client:
        with pytest.raises(kind) as caught:
            await client.capabilities()
    assert (type(caught.value), str(caught.value)) == (kind, text)


RELEASE = {"Mode": "release", "Name": ID, "Holder": "h", "Purpose": "p"}


@pytest.mark.parametrize("native", [False, True], ids=["anyio", "asyncio"])
async def test_cancelled_while_it_acquires(tmp_path: Path, *, native: bool) -> None:
    """Who is cancelled before he hears that he has a lease gives it back all the same, once, by the plugin's ID."""
    asked, cancelled = anyio.Event(), anyio.Event()

    async def slowly(call: Call) -> None:
        asked.set()
        await cancelled.wait()
        await answer(TAKEN)(call)

    async with scripted(tmp_path, slowly, answer(GIVEN)) as daemon, Client(daemon.host) as client:

        async def use() -> None:
            async with client.leased("a", "volumedriver", holder="h", purpose="p"):
                pytest.fail("a cancelled block is run")

        if native:
            task = asyncio.ensure_future(use())
            await asked.wait()
            task.cancel()
            cancelled.set()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            async with anyio.create_task_group() as group:
                group.start_soon(use)
                await asked.wait()
                group.cancel_scope.cancel()
                cancelled.set()
    assert daemon.bodies()[1:] == [RELEASE]


async def by_a_time_limit(lease: Lease) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as limit, lease:
            limit.reschedule(0)


async def by_a_sibling(lease: Lease) -> None:
    used = asyncio.Event()

    async def uses() -> None:
        async with lease:
            used.set()

    async def fails() -> None:
        await used.wait()
        raise ZeroDivisionError

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(uses())
            group.create_task(fails())

    with pytest.raises(ExceptionGroup) as caught:
        await both()
    assert caught.group_contains(ZeroDivisionError)


async def again_and_again(lease: Lease) -> None:
    used = asyncio.Event()

    async def uses() -> None:
        async with lease:
            used.set()
            await anyio.sleep_forever()

    task = asyncio.ensure_future(uses())
    await used.wait()
    while not task.done():
        task.cancel()
        await anyio.lowlevel.checkpoint()
    assert task.cancelled()


@pytest.mark.parametrize("cancelled", [by_a_time_limit, by_a_sibling, again_and_again])
async def test_cancelled_while_it_releases(tmp_path: Path, cancelled: Callable[[Lease], Awaitable[None]]) -> None:
    """Who is cancelled while he gives a lease back, by whatever of asyncio, is so after the daemon has answered."""
    answered = False

    async def hears(call: Call) -> None:
        nonlocal answered
        await answer(GIVEN)(call)
        answered = True

    async with scripted(tmp_path, answer(TAKEN), hears) as daemon, Client(daemon.host) as client:
        await cancelled(client.leased("a", "volumedriver", holder="h", purpose="p"))
        assert daemon.bodies()[1:] == [RELEASE]
        assert answered


async def test_not_open(tmp_path: Path) -> None:
    """Before, after and twice inside of its block a client says so, nothing is left open, and it can be reopened."""
    async with scripted(tmp_path, *[answer([])] * 2) as daemon:
        client = Client(daemon.host)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="the client is not open: use it inside its `async with` block"):
                await client.capabilities()
            async with client:
                with pytest.raises(RuntimeError, match="the client is open already"):
                    await client.__aenter__()
                assert await client.capabilities() == []
        with pytest.raises(RuntimeError, match="is not open"):
            async with client.watch("volumedriver"):
                pytest.fail("a client that is not open watches")
        # a session that is open complains when it goes
        del client
        gc.collect()


async def test_a_daemon_that_does_not_answer_holds_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the way out neither an acquire nor a release without an answer is waited for for long."""
    monkeypatch.setattr(aio, "_GIVE_BACK_TIMEOUT", 0.1)
    began = anyio.current_time()
    async with scripted(tmp_path, silent, answer(TAKEN), silent) as daemon, Client(daemon.host) as client:
        for seconds in (0.05, 5.0):
            with anyio.move_on_after(seconds) as scope:
                async with client.leased("a", "volumedriver", holder="h", purpose="p"):
                    scope.cancel()
                    await anyio.sleep_forever()
            assert scope.cancelled_caught
    assert [body["Mode"] for body in daemon.bodies()] == ["acquire", "acquire", "release"]
    assert anyio.current_time() - began < aio.ANSWER_TIMEOUT / 4


async def test_what_is_told_of_a_release_that_fails(tmp_path: Path) -> None:
    """A release that fails is told, unless the block has failed: then that is."""
    refused = answer({"message": "broken"}, "500 Oh")
    scripts = [answer(TAKEN), refused] * 2
    async with scripted(tmp_path, *scripts) as daemon, Client(daemon.host) as client:
        with pytest.raises(Internal, match="broken"):
            async with client.leased("a", "volumedriver", holder="h", purpose="p"):
                pass
        with pytest.raises(ZeroDivisionError):
            async with client.leased("a", "volumedriver", holder="h", purpose="p"):
                raise ZeroDivisionError
    assert daemon.bodies()[1::2] == [RELEASE] * 2


async def test_an_acquire_that_fails_releases_nothing(tmp_path: Path) -> None:
    """Without a lease nothing is given back: it would be another's."""
    refused = answer({"message": "off"}, "409 Conflict")
    legacy = answer(TAKEN | {"Plugin": PLUGIN | {"ID": "", "Kind": "legacy"}, "Lease": None})
    async with scripted(tmp_path, refused, legacy) as daemon, Client(daemon.host) as client:
        with pytest.raises(Conflict):
            async with client.leased("a", "volumedriver", holder="h", purpose="p"):
                pytest.fail("a plugin that is off is used")
        async with client.leased("a", "volumedriver", holder="h", purpose="p") as found:
            assert found.lease is None
    assert len(daemon.calls) == 2


def block(kind: str, run: int = 1, **change: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(PLUGIN | {'Run': str(run)} | change)}\n\n".encode()


CURRENT = b'event: current\ndata: {"Count":1}\n\n'


def stream(*pieces: bytes, whole: bool = True) -> Script:
    """Send pieces, each in a chunk, then end the stream in good order, break it off, or wait for the client to go."""

    async def send(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in pieces:
            await call.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        if whole:
            await call.send(b"0\r\n\r\n")

    return send


def lasting(*pieces: bytes) -> Script:
    async def send(call: Call) -> None:
        await stream(*pieces, whole=False)(call)
        await call.gone()

    return send


async def told(changes: Watch, count: int) -> list[tuple[str, int]]:
    with anyio.fail_after(10):
        return [(change.kind, int(change.plugin.run)) for change in [await anext(changes) for _ in range(count)]]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Give the pauses before new connections, which are not waited for."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)
        await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(watch, "sleep", sleep)
    return found


async def test_watch_reads_what_comes(tmp_path: Path) -> None:
    """Blocks are taken as they are whole, wherever they are cut; what is not known, and heartbeats, are passed over."""
    whole = b": heartbeat\n\n" + block("ready") + CURRENT + b"event: other\ndata: {}\n\nid: 7\n\n" + block("gone")
    pieces = [whole[i : i + 7] for i in range(0, len(whole), 7)]
    scripts = [lasting(*pieces, block("ready", 2)), answer([])]
    async with scripted(tmp_path, *scripts) as daemon, Client(daemon.host) as client:
        async with client.watch("volumedriver") as changes:
            assert await told(changes, 3) == [("ready", 1), ("gone", 1), ("ready", 2)]
            # it stays open beside other requests
            assert await client.capabilities() == []
        assert daemon.calls[0].line == "GET /pluginsvc/v1/capabilities/volumedriver/watch HTTP/1.1"


async def test_watch_loses_nothing_when_cancelled(tmp_path: Path) -> None:
    """A wait that is cancelled in the middle of a block goes on where it was."""
    first, second = block("ready")[:50], block("ready")[50:]
    go = anyio.Event()

    async def slowly(call: Call) -> None:
        await stream(first, whole=False)(call)
        await go.wait()
        await call.send(b"%x\r\n%b\r\n" % (len(second), second))
        await call.gone()

    async with (
        scripted(tmp_path, slowly) as daemon,
        Client(daemon.host) as client,
        client.watch("volumedriver") as changes,
    ):
        with anyio.move_on_after(0.1):
            pytest.fail(f"{await anext(changes)} out of half a block")
        go.set()
        assert await told(changes, 1) == [("ready", 1)]
        assert len(daemon.calls) == 1


async def test_watch_over_losses(tmp_path: Path, pauses: list[float]) -> None:
    """However a stream ends, another follows, after a pause that grows to a bound until there is news."""
    busy = answer({"message": "stopping"}, "503 Busy")
    scripts = [
        stream(block("ready"), CURRENT),
        stream(block("ready"), CURRENT, whole=False),
        raw(b"SSH-2.0-x\r\n\r\n"),
        *[busy] * 5,
        stream(b'event: ready\ndata: {"half\n\n'),
        stream(CURRENT, b"data: {"),
        lasting(block("ready", 3), CURRENT),
    ]
    async with (
        scripted(tmp_path, *scripts) as daemon,
        Client(daemon.host) as client,
        client.watch("volumedriver") as changes,
    ):
        assert await told(changes, 3) == [("ready", 1), ("gone", 1), ("ready", 3)]
    assert pauses == [0.2, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0, 0.2]


async def test_watch_is_refused(tmp_path: Path, pauses: list[float]) -> None:
    """A daemon that comes to refuse, as one of another version would, is not asked again and again."""
    refused = answer({"message": "no"}, "403 Forbidden")
    async with (
        scripted(tmp_path, stream(CURRENT), refused) as daemon,
        Client(daemon.host) as client,
        client.watch("volumedriver") as changes,
    ):
        with pytest.raises(Forbidden, match="no"):
            await told(changes, 1)


async def test_watch_notices_silence(tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection on which not even heartbeats come is given up for another, however long answers may take."""
    monkeypatch.setattr(watch, "SILENCE", 0.2)
    scripts = [lasting(block("ready")), lasting(block("ready", 2))]
    async with (
        scripted(tmp_path, *scripts) as daemon,
        Client(daemon.host, timeout=60) as client,
        client.watch("volumedriver") as changes,
    ):
        assert await told(changes, 3) == [("ready", 1), ("gone", 1), ("ready", 2)]


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({}, []),
        ({"State": "healthy"}, []),
        ({"run": 2}, ["gone", "ready"]),
        ({"Name": "b:latest"}, ["gone", "ready"]),
        ({"Address": "unix:///y"}, ["gone", "ready"]),
        ({"Capabilities": ["docker.volumedriver/2.0"]}, ["gone", "ready"]),
        ({"ID": "b" * 64}, ["ready", "gone"]),
    ],
)
def test_differences(change: dict[str, Any], kinds: list[str]) -> None:
    """After losses only what is another is told, once."""
    known = _Known()
    known.begin()
    assert [each.kind for each in fed(known, block("ready"), CURRENT)] == ["ready"]
    known.begin()
    known.begin()
    assert [each.kind for each in fed(known, block("ready", **change), CURRENT)] == kinds
    known.begin()
    assert fed(known, block("ready", **change), CURRENT) == []


def test_what_is_gone_is_as_it_was_last() -> None:
    """What goes is shown as it was told last, also where that was no news, and goes once."""
    known = _Known()
    known.begin()
    fed(known, block("ready"), CURRENT)
    known.begin()
    fed(known, block("ready", State="healthy"), CURRENT)
    assert [change.plugin.state for change in fed(known, block("gone", State="stopping"))] == ["healthy"]
    assert fed(known, block("gone")) == []


def fed(known: _Known, *blocks: bytes) -> list[Change]:
    found: list[Change] = []
    for each in blocks:
        kind, data = each.rstrip().split(b"\n")
        found += known.changes(kind.removeprefix(b"event: "), data.removeprefix(b"data: "))
    return found


STEPS = st.tuples(st.sampled_from(["up", "down", "lost", "current"]), st.integers(0, 2))


@given(st.lists(STEPS, max_size=30))
def test_the_fold_is_what_is_ready(steps: list[tuple[str, int]]) -> None:
    """Whatever is lost when, plugins are told ready and gone in turn, and those left are those that are ready."""
    known, folded = _Known(), dict[str, int]()
    up: dict[str, int] = {}
    told_of: set[str] = set()
    run = 0
    known.begin()

    def fold(*blocks: bytes) -> None:
        for change in fed(known, *blocks):
            if change.kind == "ready":
                assert change.plugin.name not in folded
                folded[change.plugin.name] = int(change.plugin.run)
            else:
                del folded[change.plugin.name]

    def all_told() -> None:
        for name in sorted(set(up) - told_of):
            fold(block("ready", up[name], Name=name, ID=""))
            told_of.add(name)
        fold(CURRENT)

    for step, number in steps:
        name = f"p{number}"
        if step == "lost":
            told_of.clear()
            known.begin()
        elif step == "current":
            all_told()
            assert folded == up
        else:
            run += 1
            if name in up:
                fold(*[block("gone", up.pop(name), Name=name, ID="")] * (name in told_of))
                told_of.discard(name)
            if step == "up":
                up[name] = run
                fold(block("ready", run, Name=name, ID=""))
                told_of.add(name)
    all_told()
    assert folded == up
