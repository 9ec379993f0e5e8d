"""The crowd of consumers against a small server that speaks the wire, well or badly."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream

from tests.load.consumers import Consumers, Crowd

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST = 40
PLAN = Consumers(fast=3, slow=2, stalled=1, reconnecting=3, folding=0, seconds=1)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(seq: int) -> bytes:
    return _chunk(
        b'id: %d\ndata: {"seq":%d,"time":"2026-11-22T23:47:54.000000001Z","action":"set",'
        b'"plugin":{"id":"a","name":"a:latest"},"attributes":{}}\n\n' % (seq, seq)
    )


async def _press(path: Path, change: Callable[[int], bytes]) -> tuple[list[str], Crowd]:
    """Have consumers read events of a server that sends `change(seq)`; return problems, and who is behind."""
    left = anyio.Event()

    async def serve(stream: SocketStream) -> None:
        async with stream:
            with contextlib.suppress(anyio.BrokenResourceError, anyio.EndOfStream):
                request = (await stream.receive()).decode()
                found = re.search("Last-Event-ID: ([0-9]+)", request) or re.search("after=([0-9]+)", request)
                assert found
                await stream.send(HEAD + _chunk(b": pluginsvc\nid: %d\n\n" % int(found[1])))
                for seq in range(int(found[1]) + 1, LAST + 1):
                    await stream.send(change(seq))
                    await anyio.sleep(0.01)
                await left.wait()

    async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        crowd = Crowd(str(path), PLAN)
        await crowd.arrive()
        report = await crowd.finish(LAST, 10 if change is _event else 1.5)
        left.set()
        group.cancel_scope.cancel()
    return crowd.problems + report["behind"], crowd


async def test_a_good_stream_satisfies_every_kind(tmp_path: Path) -> None:
    """Fast, slow, stalled and reconnecting consumers all come to the last event, and find nothing wrong."""
    found, crowd = await _press(tmp_path / "s", _event)
    assert found == []
    assert crowd.events == (PLAN.total + 1) * LAST


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda seq: b"" if seq == 20 else _event(seq), "after event 19 came event 21"),
        (lambda seq: _event(seq) * 2 if seq == 20 else _event(seq), "after event 20 came event 20"),
        (lambda seq: b"" if seq == LAST else _event(seq), "has event 39 of 40"),
        (lambda seq: _event(seq) + (b"0\r\n\r\n" if seq == 20 else b""), "the stream ended"),
    ],
)
async def test_a_bad_stream_satisfies_none(tmp_path: Path, change: Callable[[int], bytes], why: str) -> None:
    """A lost event, a doubled one, one that never comes, and an end are told of."""
    found, _ = await _press(tmp_path / "s", change)
    assert any(why in problem for problem in found), found
