"""The event stream over HTTP."""

import asyncio
import json
import time
from typing import Any

import aiohttp
import pytest

from tests.support import openapi
from tests.support.engine import Engine

pytestmark = pytest.mark.anyio


async def _next(response: aiohttp.ClientResponse) -> Any:
    line = await asyncio.wait_for(response.content.readline(), 5)
    return json.loads(line)


async def test_live(engine: Engine) -> None:
    """Headers come at once; then each event as it happens, as Docker words it."""
    async with engine.session() as session, asyncio.timeout(5), session.get("/v1.44/events") as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "application/json"
        name = await engine.install("seen")
        await engine.call("POST", "/plugins/seen/enable", params={"timeout": "0"})
        pulled, enabled = await _next(response), await _next(response)
    openapi.check("Event", pulled)
    openapi.check("Event", enabled)
    assert (pulled["Action"], pulled["Actor"]["Attributes"]["name"]) == ("pull", name)
    assert (enabled["Action"], enabled["Actor"]["Attributes"]["name"]) == ("enable", "seen")
    assert enabled["time"] == enabled["timeNano"] // 10**9


async def test_history(engine: Engine) -> None:
    """With `since` and `until` the past is told and the stream ends by itself."""
    start = time.time_ns()
    await engine.install("first")
    middle = time.time_ns()
    await engine.install("second")
    end = time.time_ns()

    async def names(since: int, until: int, **more: str) -> list[str]:
        query = {key: f"{at // 10**9}.{at % 10**9:09}" for key, at in (("since", since), ("until", until))}
        lines = await engine.lines("GET", "/events", params=query | more)
        return [line["Actor"]["Attributes"]["name"] for line in lines]

    assert await names(start, end) == ["first:latest", "second:latest"]
    assert await names(middle, end) == ["second:latest"]
    assert await names(start, middle) == ["first:latest"]
    assert await names(start, end, filters='{"plugin":["sec"],"event":["pull","enable"]}') == ["second:latest"]
    assert await names(start, end, filters='{"type":{"container":true}}') == []


async def test_until_in_the_future(engine: Engine) -> None:
    """The stream ends at that moment, and shows what happens before."""
    until = time.time() + 0.5
    async with engine.session() as session, session.get(f"/events?until={until:.6f}") as response:
        await engine.install("soon")
        body = await asyncio.wait_for(response.read(), 5)
    assert time.time() >= until
    assert json.loads(body)["Action"] == "pull"


async def test_json_sequence(engine: Engine) -> None:
    """A client that accepts a JSON sequence gets one."""
    await engine.install("sequence")
    headers = {"Accept": "application/json-seq"}
    path = f"/events?since=0&until={time.time() + 0.1:.3f}"
    async with engine.session() as session, session.get(path, headers=headers) as response:
        assert response.headers["Content-Type"] == "application/json-seq"
        body = await response.read()
    assert body.startswith(b"\x1e{")
    assert body.endswith(b"}\n")


async def test_http_1_0(engine: Engine) -> None:
    """A client that cannot read chunks gets the lines as they are, ended by the end of the connection."""
    await engine.install("old-client")
    found = await engine.exchange(f"GET /events?since=0&until={time.time():.3f} HTTP/1.0\r\n\r\n".encode())
    head, _, body = found.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert json.loads(body)["Action"] == "pull"
