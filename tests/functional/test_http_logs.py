"""Plugins' output and processes over HTTP, and pluginctl's view of them."""

import asyncio
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from anyio import to_thread

from pluginsvc.api.app import make_app, serve
from pluginsvc.api.listeners import UnixListener
from tests.functional.conftest import FACTS
from tests.support import openapi
from tests.support.engine import Engine
from tests.support.memory_manager import MemoryManager
from tests.unit.runtime.test_history import START, Log

pytestmark = pytest.mark.anyio

PATH = "/pluginsvc/v1/plugins/demo/logs"
BOTH = {"stdout": "1", "stderr": "1"}


@pytest.fixture
async def log(engine: Engine, memory: MemoryManager, tmp_path: Path) -> Log:
    """Give the log of an installed plugin called demo."""
    await engine.install("demo")
    memory.log_root = tmp_path / "logs"
    folder = memory.log_root / memory.find("demo").id
    folder.mkdir(parents=True)
    return Log(folder)


def print_now(log: Log, memory: MemoryManager, *texts: str, **more: Any) -> None:
    log.print(*texts, **more)
    printed, memory.printed = memory.printed, anyio.Event()
    printed.set()


def frames(body: bytes) -> list[tuple[int, bytes]]:
    """Decode as docker-py does."""
    found = []
    while body:
        stream, size = struct.unpack_from(">BxxxL", body)
        assert body[1:4] == b"\0\0\0"
        assert len(body) >= 8 + size
        found.append((stream, body[8 : 8 + size]))
        body = body[8 + size :]
    return found


async def get(engine: Engine, **query: str) -> list[tuple[int, bytes]]:
    async with engine.session() as session, session.get(PATH, params=BOTH | query) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "application/vnd.docker.multiplexed-stream"
        assert response.headers["Transfer-Encoding"] == "chunked"
        return frames(await response.read())


async def next_frame(response: aiohttp.ClientResponse) -> tuple[int, bytes]:
    async with asyncio.timeout(5):
        stream, size = struct.unpack(">BxxxL", await response.content.readexactly(8))
        return stream, await response.content.readexactly(size)


async def test_the_past(engine: Engine, log: Log) -> None:
    """Lines come as Docker frames them, in order, their bytes as they were, and bounds and tail choose among them."""
    log.print("one\x1b[31m")
    log.print("two", stream="stderr")
    log.print("thr", flag="P")
    log.print("ee")
    whole = [(1, b"one\x1b[31m\n"), (2, b"two\n"), (1, b"thr"), (1, b"ee\n")]
    assert await get(engine) == await get(engine, tail="all", since="0", until="0") == whole
    assert await get(engine, tail="-1") == whole
    assert await get(engine, stdout="0") == whole[1:2]
    assert await get(engine, stderr="false", tail="1") == whole[2:]
    seconds, nanoseconds = divmod(START + 1, 10**9)
    at = f"{seconds}.{nanoseconds:09}"
    assert await get(engine, since=at, until=at) == whole[1:2]
    assert (await get(engine, tail="1", timestamps="1"))[-1] == (1, b"2026-09-21T14:13:20.000000003Z ee\n")


async def test_nothing_yet(engine: Engine) -> None:
    """A plugin that was never started has an empty log."""
    await engine.install("demo")
    assert await get(engine) == []
    assert await get(engine, follow="1") == []


@pytest.mark.parametrize(
    ("name", "query", "status", "text"),
    [
        ("demo", "", 400, "Bad parameters: you must choose at least one stream"),
        ("demo", "stdout=0&follow=1", 400, "Bad parameters: you must choose at least one stream"),
        ("demo", "stdout=1&tail=some", 400, 'strconv.Atoi: parsing "some": invalid syntax'),
        ("demo", "stdout=1&since=x", 400, "invalid value for 'since': strconv.ParseInt: parsing \"x\": invalid syntax"),
        (
            "demo",
            "stdout=1&until=1.x",
            400,
            "invalid value for 'until': strconv.ParseInt: parsing \"x\": invalid syntax",
        ),
        ("nope", "stdout=1", 404, 'plugin "nope" not found'),
    ],
)
async def test_refused(engine: Engine, log: Log, name: str, query: str, status: int, text: str) -> None:
    """What cannot be answered is an ordinary error, with Docker's text."""
    found = await engine.call("GET", f"/pluginsvc/v1/plugins/{name}/logs?{query}")
    assert found == (status, {"message": text})


async def test_following(engine: Engine, memory: MemoryManager, log: Log) -> None:
    """Headers come at once, then each line as it is printed, until the plugin is disabled."""
    await engine.call("POST", "/plugins/demo/enable", params={"timeout": "0"})
    async with engine.session() as session, session.get(PATH, params=BOTH | {"follow": "1"}) as response:
        print_now(log, memory, "first")
        assert await next_frame(response) == (1, b"first\n")
        log.rotate()
        print_now(log, memory, "second", stream="stderr")
        assert await next_frame(response) == (2, b"second\n")
        await engine.call("POST", "/plugins/demo/disable")
        async with asyncio.timeout(3):
            assert await response.read() == b""


async def test_end_of_service(memory: MemoryManager, engine: Engine, log: Log, tmp_path: Path) -> None:
    """When the daemon stops, a follower's answer ends in good order, and at once."""
    await engine.call("POST", "/plugins/demo/enable", params={"timeout": "0"})
    log.print("first")
    app = make_app(manager=memory, directory=memory.directory, system=FACTS, events=memory.events)
    connector = aiohttp.UnixConnector(str(tmp_path / "other.sock"))
    async with aiohttp.ClientSession("http://localhost", connector=connector) as session:
        async with serve(app, [UnixListener(tmp_path / "other.sock")], grace=5):
            response = await session.get(PATH, params=BOTH | {"follow": "1"})
            assert await next_frame(response) == (1, b"first\n")
            assert len(app.output) == 1
            began = anyio.current_time()
        assert await response.read() == b""
        assert anyio.current_time() - began < 2
        assert len(app.output) == 0


async def test_stalled_reader_is_given_up(
    memory: MemoryManager, engine: Engine, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader who takes nothing holds up nobody, and after a while its connection is broken."""
    monkeypatch.setattr("pluginsvc.api.logs.WRITE_TIMEOUT", 0.5)
    log.print(*("x" * 1000 for _ in range(8000)))
    app = make_app(manager=memory, directory=memory.directory, system=FACTS, events=memory.events)
    async with serve(app, [UnixListener(tmp_path / "other.sock")], grace=5):
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "other.sock"), limit=1024)
        try:
            writer.write(f"GET {PATH}?stdout=1 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            assert len(app.output) == 1
            assert len(await get(engine, tail="5")) == 5
            with anyio.fail_after(5):
                while len(app.output):  # noqa: ASYNC110 - nobody tells
                    await anyio.sleep(0.02)
        finally:
            writer.close()


async def test_top(engine: Engine) -> None:
    """Processes come as in Docker's answer; a plugin that does not run has none and that is a conflict."""
    await engine.install("demo")
    path = "/pluginsvc/v1/plugins/demo/top"
    assert await engine.call("GET", path) == (409, {"message": "plugin demo:latest is not running"})
    await engine.call("POST", "/plugins/demo/enable", params={"timeout": "0"})
    status, found = await engine.call("GET", path)
    assert status == 200
    openapi.check("Top", found)
    assert found == {"Titles": ["PID", "CMD"], "Processes": [["7", "/sample \x1b[31m"]]}
    assert (await engine.call("GET", "/pluginsvc/v1/plugins/nope/top"))[0] == 404


class Ctl:
    """A `pluginctl` that runs."""

    def __init__(self, engine: Engine, *words: str) -> None:
        command = [sys.executable, "-m", "pluginsvc.client.pluginctl", "--host", engine.host, *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    async def line(self) -> bytes:
        assert self.process.stdout is not None
        with anyio.fail_after(10):
            return await to_thread.run_sync(self.process.stdout.readline, abandon_on_cancel=True)

    async def end(self) -> tuple[int, bytes, bytes]:
        with anyio.fail_after(10):
            out, err = await to_thread.run_sync(self.process.communicate, abandon_on_cancel=True)
        return self.process.returncode, out, err


@pytest.fixture
async def ctl(engine: Engine) -> AsyncIterator[Any]:
    """Give a function that starts `pluginctl`; what still runs at the end is killed."""
    begun: list[Ctl] = []

    def start(*words: str) -> Ctl:
        begun.append(Ctl(engine, *words))
        return begun[-1]

    yield start
    for each in begun:
        each.process.kill()
        await to_thread.run_sync(each.process.communicate)


async def test_pluginctl_shows_the_past(log: Log, ctl: Any) -> None:
    """Each stream goes to its own, with times where wanted, at the beginning of lines only."""
    log.print("one\x1b[31m")
    log.print("two", stream="stderr")
    log.print("thr", flag="P")
    log.print("ee")
    assert await ctl("logs", "demo").end() == (0, b"one\x1b[31m\nthree\n", b"two\n")
    assert await ctl("logs", "--stderr", "demo").end() == (0, b"", b"two\n")
    stamp = b"2026-09-21T14:13:20.00000000"
    expected = stamp + b"2Z three\n"
    assert await ctl("logs", "-t", "--stdout", "-n", "1", "demo").end() == (0, expected, b"")
    code, _, err = await ctl("logs", "--since", "yesterday", "demo").end()
    assert (code, b"is no time" in err) == (2, True)
    assert await ctl("logs", "nope").end() == (1, b"", b'pluginctl: plugin "nope" not found\n')


async def test_pluginctl_top(engine: Engine, log: Log, ctl: Any) -> None:
    """Processes are a table, harmless to the terminal."""
    await engine.call("POST", "/plugins/demo/enable", params={"timeout": "0"})
    code, out, _ = await ctl("top", "demo").end()
    assert code == 0
    assert [line.split() for line in out.splitlines()] == [[b"PID", b"CMD"], [b"7", b"/sample", rb"\u001b[31m"]]


async def test_pluginctl_follows_over_the_end_of_the_daemon(
    engine: Engine, memory: MemoryManager, log: Log, ctl: Any, tmp_path: Path
) -> None:
    """It goes on exactly after the last line it has shown, though lines share their time, and ends with the plugin."""
    await engine.call("POST", "/plugins/demo/enable", params={"timeout": "0"})
    socket = tmp_path / "other.sock"
    words = ["--host", f"unix://{socket}", "logs", "-f", "demo"]

    def daemon() -> Any:
        app = make_app(manager=memory, directory=memory.directory, system=FACTS, events=memory.events)
        return serve(app, [UnixListener(socket)], grace=5)

    async with daemon():
        follower = ctl(*words)
        log.print("1", "2", at_ns=START)
        assert [await follower.line() for _ in range(2)] == [b"1\n", b"2\n"]
    log.print("3", at_ns=START)
    log.print("4", at_ns=START + 1)
    async with daemon():
        assert [await follower.line() for _ in range(2)] == [b"3\n", b"4\n"]
        log.rotate()
        print_now(log, memory, "5")
        assert await follower.line() == b"5\n"
        await engine.call("POST", "/plugins/demo/disable")
        code, out, err = await follower.end()
    assert (code, out) == (0, b"")
    assert err.count(b"waiting for it") == 1
