"""Hostile requests, clients that go away, crashes, and the end of serving."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.lowlevel
import pytest

from pluginsvc import log
from pluginsvc.api import bodies, stream
from pluginsvc.api.app import make_app, serve
from pluginsvc.api.listeners import CannotListen, TcpListener, UnixListener
from pluginsvc.model.progress import Line
from tests.functional.conftest import FACTS
from tests.support.engine import CONFIG, GRANTED, Engine
from tests.support.memory_manager import MemoryManager

pytestmark = pytest.mark.anyio


class Broken(MemoryManager):
    """Fails in ways that no manager should."""

    def inspect_json(self, name: str) -> bytes:
        raise ExceptionGroup("several", [ExceptionGroup("inner", [KeyError("secret text")]), ValueError("more")])

    async def push(self, name: str, **_: Any) -> None:
        raise ExceptionGroup("several", [KeyError("a bug"), bodies.InvalidBody("the one that counts")])

    async def disable(self, name: str, *, force: bool) -> None:
        raise ConnectionResetError("of somebody else")


@asynccontextmanager
async def _serving(memory: MemoryManager, path: Path) -> AsyncIterator[Engine]:
    app = make_app(manager=memory, directory=memory.directory, system=FACTS, events=memory.events)
    async with serve(app, [UnixListener(path)], grace=1):
        yield Engine(path, memory.publish)


async def test_unknown_exceptions(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A bug is a 500 with a short text that leads to the log; its own text stays inside."""
    log.configure()
    async with _serving(Broken(), tmp_path / "s") as engine:
        status, body = await engine.call("GET", "/plugins/x/json")
        assert status == 500
        assert "secret text" not in body["message"]
        shown = "".join(capfd.readouterr())
        assert body["message"].rpartition("request_id=")[2] in shown
        assert "KeyError" in shown
        assert (await engine.call("POST", "/plugins/x/disable"))[0] == 500


async def test_exception_groups(tmp_path: Path) -> None:
    """Of several errors the first of our own decides."""
    async with _serving(Broken(), tmp_path / "s") as engine:
        assert await engine.call("POST", "/plugins/x/push") == (400, {"message": "the one that counts"})


async def test_a_client_that_goes_away_cancels(engine: Engine, memory: MemoryManager) -> None:
    """A pull whose client disconnects is cancelled, even while no line is due."""
    memory.held = anyio.Event()
    remote = await engine.publish("gone", CONFIG)
    async with engine.session() as session:
        response = await session.post("/plugins/pull", params={"remote": remote}, json=GRANTED)
        await memory.holding.wait()
        response.close()
        with anyio.fail_after(5):
            await memory.cancelled.wait()
    assert await engine.call("GET", "/plugins") == (200, [])


async def test_lines_are_flushed_one_by_one(engine: Engine, memory: MemoryManager) -> None:
    """A line arrives although the next is not there yet."""
    memory.held = anyio.Event()
    remote = await engine.publish("flushed", CONFIG)
    async with (
        engine.session() as session,
        session.post("/plugins/pull", params={"remote": remote}, json=GRANTED) as response,
    ):
        line = await asyncio.wait_for(response.content.readline(), 5)
        assert json.loads(line)["status"].startswith("Pulling from")
        assert not memory.held.is_set()
        memory.held.set()
        assert (await response.read()).endswith(b"}\r\n")


async def test_a_client_that_reads_nothing_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that leaves its lines unread for too long counts as gone."""
    monkeypatch.setattr(stream, "WRITE_TIMEOUT", 0.2)
    ended = anyio.Event()

    class Talkative(MemoryManager):
        async def push(self, name: str, *, sink: stream.Sink, **_: Any) -> None:
            try:
                while True:
                    await sink(Line(status="x" * 10_000))
                    await anyio.lowlevel.checkpoint()
            finally:
                ended.set()

    async with _serving(Talkative(), tmp_path / "s") as engine:
        _, writer = await asyncio.open_unix_connection(str(engine.socket), limit=1)
        writer.write(b"POST /plugins/x/push HTTP/1.1\r\nHost: x\r\n\r\n")
        with anyio.fail_after(10):
            await ended.wait()
        writer.close()


async def test_lines_for_a_client_that_is_gone_are_dropped(tmp_path: Path) -> None:
    """A job that has committed goes on without its client: its lines fail nowhere."""
    said, gone = anyio.Event(), anyio.Event()

    class Committed(MemoryManager):
        async def push(self, name: str, *, sink: stream.Sink, **_: Any) -> None:
            self.job = asyncio.create_task(self.work(sink))
            try:
                await asyncio.shield(self.job)
            except asyncio.CancelledError:
                gone.set()
                raise

        async def work(self, sink: stream.Sink) -> int:
            await sink(Line(status="before"))
            said.set()
            await gone.wait()
            for _ in range(3):
                await sink(Line(status="after"))
            return 3

    memory = Committed()
    async with _serving(memory, tmp_path / "s") as engine, engine.session() as session:
        response = await session.post("/plugins/x/push")
        await said.wait()
        response.close()
        with anyio.fail_after(5):
            await gone.wait()
            assert await memory.job == 3


class Reader(MemoryManager):
    """Notes how the body of `create` ended."""

    outcome: BaseException | int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.began, self.ended = anyio.Event(), anyio.Event()

    async def create(self, name: str, body: AsyncIterator[bytes]) -> None:
        size = 0
        try:
            async for chunk in body:
                size += len(chunk)
                self.began.set()
            self.outcome = size
        except BaseException as exc:
            self.outcome = exc
            raise
        finally:
            self.ended.set()


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 1000\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"]
)
async def test_a_cut_body_is_not_the_end(tmp_path: Path, framing: bytes) -> None:
    """A body whose client vanishes in the middle raises in the reader; it never looks complete."""
    memory = Reader()
    async with _serving(memory, tmp_path / "s") as engine:
        _, writer = await asyncio.open_unix_connection(str(engine.socket))
        writer.write(b"POST /plugins/create?name=x HTTP/1.1\r\nHost: x\r\n" + framing)
        with anyio.fail_after(5):
            await memory.began.wait()
            writer.close()
            await memory.ended.wait()
    assert isinstance(memory.outcome, BaseException)


async def test_a_cut_body_is_told_to_another_task(tmp_path: Path) -> None:
    """Also a job in a task of its own, which nobody cancels, learns that the body was cut."""

    class InAJob(Reader):
        async def create(self, name: str, body: AsyncIterator[bytes]) -> None:
            self.job = asyncio.create_task(super().create(name, body))
            await asyncio.shield(self.job)

    memory = InAJob()
    async with _serving(memory, tmp_path / "s") as engine:
        _, writer = await asyncio.open_unix_connection(str(engine.socket))
        writer.write(b"POST /plugins/create?name=x HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        with anyio.fail_after(5):
            await memory.began.wait()
            writer.close()
            await memory.ended.wait()
        assert isinstance(memory.job.exception(), bodies.ClientGone)


async def test_broken_chunks(tmp_path: Path) -> None:
    """Framing that makes no sense is the client's fault."""
    memory = Reader()
    async with _serving(memory, tmp_path / "s") as engine:
        raw = b"POST /plugins/create?name=x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n"
        answer = await engine.exchange(raw)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    assert not isinstance(memory.outcome, int)


async def test_a_large_body_is_streamed(tmp_path: Path) -> None:
    """An archive far larger than any buffer arrives whole, whatever its content type and encoding say."""
    memory = Reader()

    async def body() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield bytes(1024 * 1024)

    async with _serving(memory, tmp_path / "s") as engine:
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Content-Encoding": "gzip"}
        status, _ = await engine.call("POST", "/plugins/create?name=x", data=body(), headers=headers)
    assert status == 204
    assert memory.outcome == 64 * 1024 * 1024


async def test_expect_continue(tmp_path: Path) -> None:
    """A client that asks before it sends its body is told to go on, and not when it is refused before."""
    head = b" HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    async with _serving(Reader(), tmp_path / "s") as engine:
        reader, writer = await asyncio.open_unix_connection(str(engine.socket))
        writer.write(b"POST /plugins/create?name=x" + head)
        async with asyncio.timeout(5):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"abc")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204 ")
            writer.write(b"POST /nope" + head)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
        writer.close()


async def test_json_bodies_are_bounded(engine: Engine) -> None:
    """A JSON body has a largest size, announced or not."""

    async def body() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100_000

    headers = {"Content-Type": "application/json"}
    for data in (io.BytesIO(b" " * 2_000_000), body()):
        status, found = await engine.call("POST", "/plugins/x/set", data=data, headers=headers)
        assert (status, "larger than" in found["message"]) == (400, True)


async def test_json_bodies_have_a_deadline(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A JSON body that does not arrive is given up."""
    monkeypatch.setattr(bodies, "JSON_TIMEOUT", 0.1)
    head = b"POST /plugins/x/set HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n["
    reader, writer = await asyncio.open_unix_connection(str(engine.socket))
    writer.write(head)
    assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 400 ")
    writer.close()


async def test_long_credentials(engine: Engine) -> None:
    """Identity tokens of 30 KiB are taken."""
    assert (await engine.call("GET", "/_ping", headers={"X-Registry-Auth": "A" * 30_000}))[0] == 200


async def test_garbage(engine: Engine) -> None:
    """What is no HTTP gets a 400, and the daemon lives on."""
    assert b" 400 " in await engine.exchange(b"\x16\x03\x01 hello\r\n\r\n")
    assert (await engine.call("GET", "/_ping"))[0] == 200


async def test_tcp_refuses_web_pages(memory: MemoryManager) -> None:
    """Over TCP an Origin header or a Host that is not loopback is refused; loopback is served, with a warning."""
    app = make_app(manager=memory, directory=memory.directory, system=FACTS, events=memory.events)
    async with serve(app, [TcpListener("127.0.0.1", 0)], grace=1) as (address,):
        base = address.replace("tcp:", "http:")
        async with aiohttp.ClientSession(base) as session:
            for headers, status in (
                ({}, 200),
                ({"Host": "localhost:2375"}, 200),
                ({"Host": "evil.test"}, 403),
                ({"Origin": "http://localhost"}, 403),
                ({"Origin": "null"}, 403),
            ):
                async with session.get("/_ping", headers=headers) as response:
                    assert response.status == status
                    assert ("Api-Version" in response.headers) == (status == 200)
                    assert response.headers["Content-Type"] == (
                        "application/json" if status == 403 else "text/plain; charset=utf-8"
                    )
            async with session.get("/info") as response:
                assert address in (await response.json())["Warnings"][0]


async def test_an_origin_is_nothing_to_a_unix_socket(engine: Engine) -> None:
    """No web page reaches a unix socket, so there the header means nothing."""
    assert (await engine.call("GET", "/_ping", headers={"Origin": "x", "Host": "evil.test"}))[0] == 200


async def test_end_of_serving(tmp_path: Path) -> None:
    """Event streams end in good order, a handler may finish, and the socket goes."""
    memory = MemoryManager()
    memory.held = anyio.Event()
    path = tmp_path / "s"
    app = make_app(manager=memory, directory=memory.directory, system=FACTS, events=memory.events)
    remote = await memory.publish("late", CONFIG)
    async with aiohttp.ClientSession("http://x", connector=aiohttp.UnixConnector(str(path))) as session:
        async with serve(app, [UnixListener(path)], grace=5):
            events = await session.get("/events")
            pull = await session.post("/plugins/pull", params={"remote": remote}, json=GRANTED)
            await memory.holding.wait()
            asyncio.get_running_loop().call_later(0.1, memory.held.set)
        assert await events.read() == b""
        lines = [json.loads(line) for line in (await pull.read()).splitlines()]
    assert lines[-1]["status"] == "Complete"
    assert not path.exists()


async def test_end_of_serving_has_a_deadline(tmp_path: Path) -> None:
    """A handler that does not finish is cancelled."""
    memory = MemoryManager()
    memory.held = anyio.Event()
    path = tmp_path / "s"
    app = make_app(manager=memory, directory=memory.directory, system=FACTS, events=memory.events)
    remote = await memory.publish("never", CONFIG)
    async with aiohttp.ClientSession("http://x", connector=aiohttp.UnixConnector(str(path))) as session:
        with anyio.fail_after(5):
            async with serve(app, [UnixListener(path)], grace=0.2):
                pull = await session.post("/plugins/pull", params={"remote": remote}, json=GRANTED)
                await memory.holding.wait()
        assert memory.cancelled.is_set()
        with pytest.raises(aiohttp.ClientPayloadError):
            await pull.read()


async def test_nothing_is_left_when_one_address_is_taken(tmp_path: Path, memory: MemoryManager) -> None:
    """If one of several addresses cannot be had, none is served and no socket stays."""
    app = make_app(manager=memory, directory=memory.directory, system=FACTS, events=memory.events)
    (tmp_path / "b").write_text("")
    with pytest.raises(CannotListen):
        async with serve(app, [UnixListener(tmp_path / "a"), UnixListener(tmp_path / "b")]):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
