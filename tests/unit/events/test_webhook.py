"""The webhook, against a real HTTP server that answers as a test scripts it."""

import json
import os
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import aiohttp
import anyio
import pytest
from aiohttp import web
from anyio import to_thread
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from multidict import CIMultiDictProxy

from pluginsvc.events import webhook
from pluginsvc.events.delivery import SinkFailed
from pluginsvc.events.forms import Origin
from pluginsvc.events.webhook import Webhook
from pluginsvc.model.event import Gap
from tests.support.records import event
from tests.unit.registry.scripted import Script, Seen, certificates, cut, serve

pytestmark = pytest.mark.anyio
ORIGIN = Origin("0b1c", "host1")
EVENTS = [event(n, seq=n, time_ns=n) for n in range(1, 4)]


@dataclass
class Receiver:
    """What was posted, and how that is answered.

    Attributes:
        script: an answer each, the last for all that follow.
    """

    script: list[Script] = field(default_factory=lambda: [status(204)])
    headers: list[CIMultiDictProxy[str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    connections: set[object] = field(default_factory=set)


def status(number: int, text: str = "", **headers: str) -> Script:
    async def answer(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=number, text=text, headers=named)

    return answer


@asynccontextmanager
async def sink_to(
    receiver: Receiver, *, path: str = "/events", login: str = "", token: Path | None = None
) -> AsyncIterator[Webhook]:
    async def script(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        receiver.headers.append(seen.headers)
        receiver.bodies.append(seen.body)
        receiver.connections.add(request.transport)
        answer = receiver.script.pop(0) if len(receiver.script) > 1 else receiver.script[0]
        return await answer(request, seen)

    async with serve(script) as server:
        sink = Webhook(f"http://{login}{server.host}{path}", ORIGIN, token_file=token)
        try:
            yield sink
        finally:
            await sink.close()


async def test_a_batch_is_one_request_of_cloud_events() -> None:
    """Items go out as one JSON array of CloudEvents, which their own package reads; the connection stays."""
    receiver = Receiver()
    async with sink_to(receiver) as sink:
        await sink.send([Gap(0, 1), *EVENTS])
        await sink.send(EVENTS[:1])
    assert receiver.headers[0]["Content-Type"] == "application/cloudevents-batch+json; charset=utf-8"
    found = [JSONFormat().read(CloudEvent, json.dumps(one)) for one in json.loads(receiver.bodies[0])]
    assert [one.get_id() for one in found] == ["gap-0-1", "1", "2", "3"]
    assert {one.get_source() for one in found} == {"urn:uuid:0b1c"}
    assert len(json.loads(receiver.bodies[1])) == 1
    assert len(receiver.connections) == 1


@pytest.mark.parametrize("number", [200, 201, 202, 204])
async def test_any_success_will_do(number: int) -> None:
    """Every 2xx means that the batch was taken, whatever comes with it."""
    receiver = Receiver(script=[status(number, "x" * 100_000 if number == 200 else "")])
    async with sink_to(receiver) as sink:
        await sink.send(EVENTS)
        await sink.send(EVENTS)
    assert len(receiver.bodies) == 2


@pytest.mark.parametrize("number", [304, 400, 401, 404, 413, 500, 503])
async def test_any_other_answer_is_a_failure(number: int) -> None:
    """The error has the status, and of the text a short part without control characters."""
    receiver = Receiver(script=[status(number, "" if number == 304 else "no\x1b[31m\n" + "y" * 100_000)])
    async with sink_to(receiver) as sink:
        with pytest.raises(SinkFailed, match=f"the answer was {number}") as caught:
            await sink.send(EVENTS)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()
    assert caught.value.retry_after == 0


async def test_a_redirect_is_not_followed() -> None:
    """A redirect is a failure that says so; neither events nor token go to where it leads."""
    receiver = Receiver(script=[status(307, Location="/elsewhere")])
    async with sink_to(receiver) as sink:
        with pytest.raises(SinkFailed, match="307, and redirects are not followed"):
            await sink.send(EVENTS)
    assert len(receiver.bodies) == 1


LATER = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)


@pytest.mark.parametrize(
    ("number", "value", "least", "most"),
    [
        (429, "7", 7, 7),
        (503, "7", 7, 7),
        (500, "7", 0, 0),
        (429, LATER, 3000, 3600),
        (429, "Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        (429, "soon", 0, 0),
        (429, "-5", 0, 0),
    ],
)
async def test_retry_after(number: int, value: str, least: float, most: float) -> None:
    """With 429 and 503 the receiver may ask for a pause, as seconds or as a date."""
    receiver = Receiver(script=[status(number, Retry_After=value)])
    async with sink_to(receiver) as sink:
        with pytest.raises(SinkFailed) as caught:
            await sink.send(EVENTS)
    assert least <= caught.value.retry_after <= most


async def test_the_token_is_read_for_each_request(tmp_path: Path) -> None:
    """A token that was replaced is used from the next request on."""
    file = tmp_path / "token"
    file.write_text("first\n")
    receiver = Receiver(script=[status(401), status(204)])
    async with sink_to(receiver, token=file) as sink:
        with pytest.raises(SinkFailed):
            await sink.send(EVENTS)
        file.write_text("second\n")
        await sink.send(EVENTS)
    assert [headers["Authorization"] for headers in receiver.headers] == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize("kind", ["missing", "empty", "two words", "fifo", "directory"])
async def test_a_token_file_that_is_none(tmp_path: Path, kind: str) -> None:
    """Without a usable token nothing is sent; the error names the file and shows nothing of what is in it."""
    file = tmp_path / "token"
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "directory":
        file.mkdir()
    elif kind != "missing":
        file.write_text("" if kind == "empty" else "hush hush")
    receiver = Receiver()
    async with sink_to(receiver, token=file) as sink:
        with anyio.fail_after(10), pytest.raises(SinkFailed, match=str(file)) as caught:
            await sink.send(EVENTS)
    assert "hush" not in str(caught.value)
    assert receiver.bodies == []


async def echo(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
    """Answer with all that was secret in the request."""
    return web.Response(status=500, text=f"{request.headers['Authorization']} {request.raw_path} {request.query}")


@pytest.mark.parametrize("with_token", [False, True])
async def test_no_secret_is_in_an_error(tmp_path: Path, *, with_token: bool) -> None:
    """Token, user, password and query are in no error, not even when the receiver says them."""
    file = tmp_path / "token"
    file.write_text("t0ken")
    token, login = (file, "") if with_token else (None, "me:s%2Bcret@")
    receiver = Receiver(script=[echo, cut])
    texts = []
    async with sink_to(receiver, path="/events?key=h%75sh", login=login, token=token) as sink:
        for _ in range(2):
            with pytest.raises(SinkFailed) as caught:
                await sink.send(EVENTS)
            texts.append(str(caught.value))
    with pytest.raises(SinkFailed) as caught:
        await sink.send(EVENTS)
    await sink.close()
    texts.append(str(caught.value))
    assert ["500" in texts[0], "cut" in texts[1], "no connection" in texts[2]] == [True] * 3
    for text in texts:
        assert "/events" in text
        assert not any(secret in text for secret in ("t0ken", "s+cret", "s%2Bcret", "hush", "h%75sh", "me:", "bWU6"))


async def test_a_receiver_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer within the time is a failure; with a receiver that answers again the same sink works."""
    monkeypatch.setattr(webhook, "_TIMEOUT", aiohttp.ClientTimeout(total=0.5))
    ended = anyio.Event()

    async def hang(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        await ended.wait()
        return web.Response()

    async def trickle(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        response = web.StreamResponse(status=500)
        await response.prepare(request)
        await response.write(b"x")
        await ended.wait()
        return response

    receiver = Receiver(script=[hang, trickle, status(204)])
    async with sink_to(receiver) as sink:
        for _ in range(2):
            with anyio.fail_after(20), pytest.raises(SinkFailed, match="no answer in time"):
                await sink.send(EVENTS)
        await sink.close()
        with anyio.fail_after(20):
            await sink.send(EVENTS)
        ended.set()


async def test_what_is_no_http_is_a_failure() -> None:
    """A server that speaks something else is told by what it is not."""

    async def talk(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"220 mail.test ESMTP\r\n")

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as group,
    ):
        group.start_soon(listener.serve, talk)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - no Django
        sink = Webhook(f"http://127.0.0.1:{port}/", ORIGIN)
        with pytest.raises(SinkFailed, match=r"no HTTP|cut"):
            await sink.send(EVENTS)
        await sink.close()
        group.cancel_scope.cancel()


async def test_certificates_are_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over TLS a receiver that nobody vouches for gets nothing; one that an authority of the host vouches for does."""
    tls, authority, _, _ = certificates(tmp_path)

    async def script(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        return web.Response()

    async with serve(script, tls=tls) as server:
        sink = Webhook(server.url, ORIGIN)
        with pytest.raises(SinkFailed, match="no trusted TLS connection"):
            await sink.send(EVENTS)
        await sink.close()
        assert server.seen == []
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        await sink.send(EVENTS)
        await sink.close()
        assert len(server.seen) == 1


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that the environment names sees nothing."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    receiver = Receiver()
    async with sink_to(receiver) as sink:
        await sink.send(EVENTS)
    assert len(receiver.bodies) == 1


async def test_a_flood_of_interim_answers_holds_nobody_up() -> None:
    """A receiver that never comes to its answer does not take the loop: others get their turn all the time."""
    flood = b"HTTP/1.1 103 Early\r\nX: y\r\n\r\n" * 2000
    over = threading.Event()

    def serve(listening: socket.socket) -> None:
        taken, _ = listening.accept()
        with taken, suppress(OSError):
            taken.settimeout(5)
            taken.recv(100_000)
            while not over.is_set():
                taken.sendall(flood)

    turns = 0
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        hook = Webhook(f"http://127.0.0.1:{listening.getsockname()[1]}/", ORIGIN)
        with anyio.move_on_after(1.5) as limit:
            async with anyio.create_task_group() as group:
                group.start_soon(hook.send, [event(1, seq=1, time_ns=1)])
                while True:
                    await anyio.sleep(0.01)
                    turns += 1
        await hook.close()
        over.set()
        await to_thread.run_sync(thread.join)
    assert limit.cancelled_caught
    # without a bound it is one or two
    assert turns > 15
