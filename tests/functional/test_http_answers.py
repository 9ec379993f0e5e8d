"""Answers that are sent in one go: they must not be told from those that are not, but for their speed."""

import asyncio
import json
from pathlib import Path

import pytest

from pluginsvc.api import replies
from pluginsvc.api.app import make_app, serve
from pluginsvc.api.listeners import UnixListener
from tests.functional.conftest import FACTS
from tests.support.engine import Engine
from tests.support.memory_manager import MemoryManager

pytestmark = pytest.mark.anyio
LARGE = json.dumps(["x" * 100] * 20_000).encode()


class Large(MemoryManager):
    """Has a list larger than any buffer on the way."""

    def list_json(self, filters: dict[str, list[str]]) -> bytes:
        return LARGE


async def _answers(engine: Engine, request: bytes, count: int) -> list[tuple[bytes, dict[bytes, bytes], bytes]]:
    """Send ``request`` and return so many answers from that one connection: status line, headers, body."""
    reader, writer = await asyncio.open_unix_connection(str(engine.socket))
    writer.write(request)
    found = []
    async with asyncio.timeout(20):
        for _ in range(count):
            status, *lines = (await reader.readuntil(b"\r\n\r\n")).strip().split(b"\r\n")
            headers = dict(line.split(b": ", 1) for line in lines)
            assert len(headers) == len(lines)
            length = 0 if request.startswith(b"HEAD") else int(headers[b"Content-Length"])
            found.append((status, headers, await reader.readexactly(length)))
    writer.close()
    return found


@pytest.mark.parametrize("size", [0, replies._JOINED, replies._JOINED + 1, 1_000_000])
@pytest.mark.parametrize("line", ["GET {} HTTP/1.1", "GET {} HTTP/1.0", "HEAD {} HTTP/1.1"])
@pytest.mark.parametrize("connection", ["", "Connection: close\r\n", "Connection: keep-alive\r\n"])
async def test_the_same_as_aiohttp(
    engine: Engine, memory: MemoryManager, monkeypatch: pytest.MonkeyPatch, size: int, line: str, connection: str
) -> None:
    """Status, headers and body are those of aiohttp's own answer, whatever the client asks for."""
    monkeypatch.setattr(memory, "list_json", lambda _filters: b"x" * size)
    request = f"{line.format('/_ping' if line.startswith('HEAD') else '/plugins')}\r\nHost: x\r\n{connection}\r\n"
    ((status, headers, body),) = await _answers(engine, request.encode(), 1)
    monkeypatch.delattr(replies.Answer, "prepare")
    ((status_of_theirs, headers_of_theirs, body_of_theirs),) = await _answers(engine, request.encode(), 1)
    for found in (headers, headers_of_theirs):
        assert found.pop(b"Date").endswith(b" GMT")
    assert (status, list(headers.items()), body) == (
        status_of_theirs,
        list(headers_of_theirs.items()),
        body_of_theirs,
    )


async def test_one_after_another(engine: Engine) -> None:
    """A connection is used again, also by a client that does not wait for the answers."""
    request = b"GET /plugins HTTP/1.1\r\nHost: x\r\n\r\nGET /v1.40/_ping HTTP/1.1\r\nHost: x\r\n\r\n" * 50
    found = await _answers(engine, request, 100)
    assert [body for _, _, body in found] == [b"[]\n", b"OK"] * 50
    assert all(b"Connection" not in headers for _, headers, _ in found)


async def test_a_large_answer_to_a_slow_client(tmp_path: Path) -> None:
    """What does not fit into the buffers arrives whole, and in order with what follows."""
    memory = Large()
    app = make_app(manager=memory, directory=memory.directory, system=FACTS, events=memory.events)
    async with serve(app, [UnixListener(tmp_path / "s")], grace=1):
        request = b"GET /plugins HTTP/1.1\r\nHost: x\r\n\r\n" * 5
        found = await _answers(Engine(tmp_path / "s", memory.publish), request, 5)
    assert [body for _, _, body in found] == [LARGE] * 5
