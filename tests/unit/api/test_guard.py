"""What is told of a request, and what of its body is left for its handler."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web

from pluginsvc.api import bodies, guard
from pluginsvc.api.app import make_app, serve
from pluginsvc.api.bodies import chunks, read_json
from pluginsvc.api.guard import LARGE, MAX_BODY, TURNS
from pluginsvc.api.listeners import Listener, TcpListener, TlsFiles, UnixListener
from pluginsvc.api.middleware import make_edge
from pluginsvc.api.replies import empty, json_reply
from pluginsvc.api.routing import Route, Router
from pluginsvc.directory.authz import Chain, Denied, Inquiry, Rules
from tests.functional.conftest import FACTS
from tests.support.memory_manager import MemoryManager
from tests.support.pki import Authority

pytestmark = pytest.mark.anyio

JSON = "Content-Type: application/json"


class Noting(Chain):
    """Keeps what it is asked; allows all, or nothing; takes its time over large bodies where ``held`` is an event."""

    def __init__(self) -> None:
        super().__init__(MemoryManager().directory)
        self.names: tuple[str, ...] = ("someone",)
        self.asked: list[Inquiry] = []
        self.denies = False
        self.held: anyio.Event | None = None

    @property
    def rules(self) -> Rules:
        return Rules(self.names)

    async def ask(self, inquiry: Inquiry) -> None:
        self.asked.append(inquiry)
        if self.held is not None and len(inquiry.request_body) > LARGE:
            await self.held.wait()
        if self.denies:
            raise Denied("someone", "no")


async def _echo(request: web.BaseRequest, _name: str) -> web.Response:
    """Tell the JSON that came, or how many bytes."""
    if "raw" in request.raw_path:
        return json_reply(sum([len(chunk) async for chunk in chunks(request)]))
    return json_reply(await read_json(request))


async def _nothing(_request: web.BaseRequest, _name: str) -> web.Response:
    return empty()


class House:
    """A guarded API whose endpoints tell what they got."""

    def __init__(self, folder: Path) -> None:
        self.chain = Noting()
        self.socket = folder / "s"
        memory = MemoryManager()
        routes = [Route(method, path, _echo) for method in ("GET", "POST") for path in ("/echo", "/auth", "/x/auth")]
        router = Router(routes, options=_nothing, unsupported=(re.compile("(?!)"), _nothing))
        whole = make_app(manager=memory, directory=memory.directory, system=FACTS, events=memory.events)
        self.app = replace(whole, edge=make_edge(router, "server", self.chain))

    @asynccontextmanager
    async def serving(self, *more: Listener) -> AsyncIterator[list[str]]:
        async with serve(self.app, [UnixListener(self.socket), *more], grace=1) as addresses:
            yield addresses

    async def send(self, raw: bytes) -> tuple[int, Any]:
        """Send a request over the unix socket; return status and what the answer says."""
        return await exchange(*await asyncio.open_unix_connection(str(self.socket)), raw)

    async def post(self, path: str, body: bytes, *headers: str) -> tuple[int, Any]:
        lines = [f"POST {path} HTTP/1.1", "Host: h", "Connection: close", f"Content-Length: {len(body)}", *headers]
        return await self.send("\r\n".join([*lines, "", ""]).encode() + body)


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, raw: bytes) -> tuple[int, Any]:
    try:
        writer.write(raw)
        with anyio.fail_after(10):
            head = await reader.readuntil(b"\r\n\r\n")
            # not to the end of the connection: what was not read of the request is waited for a while
            body = await reader.readexactly(int(head.partition(b"Content-Length: ")[2].partition(b"\r")[0]))
        return int(head.split()[1]), json.loads(body) if b"Content-Type: application/json" in head else body.decode()
    finally:
        writer.close()


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path)
    async with made.serving():
        yield made


async def test_as_dockerd_tells_it(house: House) -> None:
    """Target, headers and what is left out are those that dockerd 20.10 was seen to send for the same bytes."""
    await house.send(
        b"GET /v1.40/echo?a=b%20c HTTP/1.1\r\nHost: h\r\nx-lower: 1\r\nX-TWICE: 1\r\nx-twice: 2\r\n"
        b"authorization: s\r\nX-REGISTRY-AUTH: s\r\nX-Registry-Config: s\r\nCookie: c\r\nX_under: q\r\n"
        b"x-bin: \xff\xfe\xc3\xa4\r\nEmpty:\r\nConnection: close\r\n\r\n"
    )
    assert house.chain.asked == [
        Inquiry(
            request_method="GET",
            request_uri="/v1.40/echo?a=b%20c",
            request_headers={
                "Connection": "close",
                "Cookie": "c",
                "Empty": "",
                "X-Bin": "\ufffd\ufffdä",
                "X-Lower": "1",
                "X-Twice": "2",
                "X_under": "q",
            },
        )
    ]
    assert list(house.chain.asked[0].request_headers) == sorted(house.chain.asked[0].request_headers)


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"GET /echo HTTP/1.0", "/echo"),
        (b"OPTIONS /whatever HTTP/1.1", "/whatever"),
        (b"GET http://foo/echo?x=%41 HTTP/1.1", "http://foo/echo?x=%41"),
        (b"GET /v1.99/echo HTTP/1.1", "/v1.99/echo"),
        (b"GET /v1.40/ech%6f HTTP/1.1", "/v1.40/ech%6f"),
    ],
)
async def test_the_target_is_told_as_it_came(house: House, head: bytes, told: str) -> None:
    """The plugin gets the request's target untouched, before the version in it is looked at."""
    await house.send(head + b"\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert [asked.request_uri for asked in house.chain.asked] == [told]


@pytest.mark.parametrize("head", [b"GET /none HTTP/1.1", b"PUT /echo HTTP/1.1", b"GET //echo HTTP/1.1"])
async def test_what_has_no_route_is_not_asked_about(house: House, head: bytes) -> None:
    """Unknown paths and those that are only redirected reach nobody who could be guarded."""
    status, _ = await house.send(head + b"\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert status in {404, 301}
    assert house.chain.asked == []


@pytest.mark.parametrize("path", ["/echo#", "/echo#y", "/v1.40/echo?x#y", "http://h/echo#y"])
async def test_what_would_be_cut_off(house: House, path: str) -> None:
    """A target with a fragment is not found: plugins would see another path than the one that is served."""
    assert (await house.post(path, b""))[0] == 404
    assert house.chain.asked == []


@pytest.mark.parametrize(
    ("query", "text"),
    [("a=1;b=2", "invalid semicolon separator in query"), ("a=1&b=%zz", 'invalid URL escape "%zz"')],
)
async def test_queries_that_can_be_read_in_two_ways(house: House, query: str, text: str) -> None:
    """What Go does not accept as a query is refused, and nobody is asked about it."""
    assert await house.post(f"/echo?{query}", b"") == (400, {"message": text})
    assert house.chain.asked == []


async def test_the_refused_learn_nothing(house: House) -> None:
    """A refusal comes before all else, without the headers of other answers, and as text to clients below 1.24."""
    house.chain.denies = True
    for path in (b"/echo", b"/v1.99/echo"):
        raw = b"GET " + path + b" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        assert await house.send(raw) == (403, {"message": "authorization denied by plugin someone: no"})
        reader, writer = await asyncio.open_unix_connection(str(house.socket))
        writer.write(raw)
        assert b"Api-Version" not in await reader.read()
        writer.close()
    raw = b"GET /v1.23/echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    assert await house.send(raw) == (403, "authorization denied by plugin someone: no\n")


@pytest.mark.parametrize(
    ("path", "kind", "shown"),
    [
        ("/echo", "application/json", True),
        ("/v1.40/echo", "Application/JSON ; charset=x", True),
        ("/echo?a=/auth", "application/json", True),
        ("/x/auth", "application/json", True),
        ("/echo", "text/plain", False),
        ("/echo", "application/json; =", False),
        ("/echo", "application/jsonp", False),
        ("/echo", "", False),
        ("/auth", "application/json", False),
        ("/v1.40/auth", "application/json", False),
    ],
)
async def test_which_bodies_are_shown(house: House, path: str, kind: str, *, shown: bool) -> None:
    """A body is shown if its handler would take it for JSON, but for the password in that of a login."""
    headers = [f"Content-Type: {kind}"] if kind else []
    status, answer = await house.post(path, b'{"a":"<&>"}', *headers)
    assert house.chain.asked[0].request_body == (b'{"a":"<&>"}' if shown else b"")
    accepted = shown or path.endswith("/auth")
    assert (status, answer) == (200, {"a": "<&>"}) if accepted else status == 400


async def test_chunks(house: House) -> None:
    """A body in chunks is shown whole, and read by its handler afterwards."""
    head = f"POST /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{JSON}\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert await house.send(head.encode() + b"2\r\n[1\r\n3\r\n,2]\r\n0\r\n\r\n") == (200, [1, 2])
    assert house.chain.asked[0].request_body == b"[1,2]"
    large = "x" * LARGE * 2
    body = b"%x\r\n%b\r\n" * 2 % (LARGE, b'"' + large[1:LARGE].encode(), LARGE + 2, large[LARGE:].encode() + b'x"')
    assert await house.send(head.encode() + body + b"0\r\n\r\n") == (200, large)
    assert house.chain.asked[1].request_body == f'"{large}"'.encode()
    assert "Transfer-Encoding" not in house.chain.asked[0].request_headers


async def test_a_client_that_waits_to_be_asked_for_its_body(house: House) -> None:
    """A client that expects ``100 Continue`` gets it once, before the plugins are asked."""
    reader, writer = await asyncio.open_unix_connection(str(house.socket))
    head = f"POST /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{JSON}\r\nContent-Length: 3\r\n"
    writer.write(f"{head}Expect: 100-continue\r\n\r\n".encode())
    with anyio.fail_after(5):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"[1]")
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert house.chain.asked[0].request_body == b"[1]"


async def test_refused_before_the_body_is_asked_for(house: House) -> None:
    """A client that waits before it sends an archive is refused without having to send it."""
    house.chain.denies = True
    head = "POST /echo?raw HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 999999999\r\n"
    status, _ = await house.send(f"{head}Expect: 100-continue\r\n\r\n".encode())
    assert status == 403


async def test_the_largest_body(house: House) -> None:
    """Exactly 4 MiB are shown, and are then judged by the handler: one that takes all does, one for JSON refuses."""
    body = b'"' + b"x" * (MAX_BODY - 2) + b'"'
    assert await house.post("/echo?raw", body, JSON) == (200, MAX_BODY)
    status, answer = await house.post("/echo", body, JSON)
    assert (status, answer["message"][:27]) == (400, "the JSON body is larger tha")
    assert [asked.request_body == body for asked in house.chain.asked] == [True, True]


async def test_too_large_a_body(house: House) -> None:
    """One byte more cannot be shown: nobody is asked, and the request is not served."""
    text = "request body too large for authorization plugin: size exceeds 4194304 bytes"
    assert await house.post("/echo?raw", b"x" * (MAX_BODY + 1), JSON) == (500, {"message": text})
    # nor is the rest waited for
    head = f"POST /echo?raw HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{JSON}\r\nContent-Length: 999999999\r\n\r\n"
    assert await house.send(head.encode() + b"x" * (MAX_BODY + 1)) == (500, {"message": text})
    assert house.chain.asked == []


async def test_archives_are_not_held_back(house: House) -> None:
    """A body that is no JSON may be of any size, and nothing of it is read before the plugins have been asked."""
    reader, writer = await asyncio.open_unix_connection(str(house.socket))
    size = MAX_BODY * 2
    writer.write(f"POST /echo?raw HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n".encode())
    with anyio.fail_after(10):
        while not house.chain.asked:  # noqa: ASYNC110 - nothing tells
            await anyio.sleep(0.01)
        for _ in range(8):
            writer.write(b"x" * (MAX_BODY // 4))
            await writer.drain()
        answer = await reader.read()
    writer.close()
    assert answer.endswith(f"\r\n\r\n{size}\n".encode())
    assert house.chain.asked[0].request_body == b""


async def large_ones(house: House, group: anyio.abc.TaskGroup, answers: list[int]) -> None:
    """Send as many requests with large bodies as are held at a time, and wait until they are."""
    house.chain.held = anyio.Event()

    async def post() -> None:
        answers.append((await house.post("/echo?raw", b"1" * (LARGE + 1), JSON))[0])

    for _ in range(TURNS):
        group.start_soon(post)
    with anyio.fail_after(10):
        while len(house.chain.asked) < TURNS:  # noqa: ASYNC110 - nothing tells
            await anyio.sleep(0.01)


async def test_large_bodies_take_turns(house: House) -> None:
    """A few large bodies are held at a time, the others stay with their clients; what is small or has none goes on."""
    answers: list[int] = []
    async with anyio.create_task_group() as group:
        await large_ones(house, group, answers)
        assert house.chain.held
        reader, writer = await asyncio.open_unix_connection(str(house.socket))
        head = (
            f"POST /echo?raw HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{JSON}\r\nContent-Length: {MAX_BODY}\r\n\r\n"
        )
        writer.write(head.encode() + b"1" * MAX_BODY)
        assert await house.post("/echo?raw", b"1" * LARGE, JSON) == (200, LARGE)
        assert (await house.post("/echo", b""))[0] == 200
        assert (await house.post("/echo?raw", b"1" * (LARGE + 1)))[0] == 200
        # most of it has not even been read
        assert writer.transport.get_write_buffer_size() > MAX_BODY // 2
        assert len(house.chain.asked) == TURNS + 3
        house.chain.held.set()
        with anyio.fail_after(5):
            assert (await reader.read()).endswith(f"\r\n\r\n{MAX_BODY}\n".encode())
        writer.close()
    assert answers == [200] * TURNS


async def test_a_turn_is_not_waited_for_long(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no large body gets its turn for too long, the client is told why; who went away is not in the way."""
    monkeypatch.setattr(guard, "TURN_WITHIN", 0.1)
    answers: list[int] = []
    async with anyio.create_task_group() as group:
        await large_ones(house, group, answers)
        assert house.chain.held
        status, answer = await house.post("/echo?raw", b"1" * (LARGE + 1), JSON)
        assert status == 503
        assert "8 requests with JSON bodies of more than 65536 bytes" in answer["message"]
        house.chain.held.set()
    assert answers == [200] * TURNS
    assert (await house.post("/echo?raw", b"1" * (LARGE + 1), JSON))[0] == 200


async def test_a_body_is_not_kept_for_a_stream(house: House) -> None:
    """The body of a GET is shown, and then dropped: a stream would hold it for hours."""
    head = f"GET /echo?raw HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{JSON}\r\nContent-Length: 3\r\n\r\n[1]"
    assert await house.send(head.encode()) == (200, 0)
    assert house.chain.asked[0].request_body == b"[1]"


async def test_a_slow_sender(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that does not come in time is waited for no longer, and nobody is asked."""
    monkeypatch.setattr(bodies, "JSON_TIMEOUT", 0.1)
    head = f"POST /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{JSON}\r\nContent-Length: 3\r\n\r\n["
    status, answer = await house.send(head.encode())
    assert status == 400
    assert "did not arrive within" in answer["message"]
    assert house.chain.asked == []


async def test_nobody_to_ask(house: House) -> None:
    """Where no plugin is configured, nobody is asked and no body is read ahead."""
    house.chain.names = ()
    assert await house.post("/echo?raw", b"x" * (MAX_BODY + 1), JSON) == (200, MAX_BODY + 1)
    assert house.chain.asked == []


async def test_clients_with_certificates(tmp_path: Path) -> None:
    """Over TLS the plugin is told the last common name of the client's certificate, and the certificate, in PEM."""
    authority = Authority(tmp_path / "pki")
    server, client = authority.server(), authority.client("first", "clïent")
    house = House(tmp_path)
    files = TlsFiles(authority.file, server.cert, server.key)
    context = await asyncio.to_thread(ssl.create_default_context, cafile=str(authority.file))
    await asyncio.to_thread(context.load_cert_chain, client.cert, client.key)
    async with house.serving(TcpListener("127.0.0.1", 0, files)) as addresses:
        port = int(addresses[1].rpartition(":")[2])
        pair = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        raw = b"GET /echo HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        assert await exchange(*pair, raw) == (200, None)
        pair = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        assert (await exchange(*pair, raw.replace(b"127.0.0.1", b"evil.test")))[0] == 403
        assert house.app.listening == [f"unix://{house.socket}"]
    (asked,) = house.chain.asked
    assert (asked.user, asked.user_auth_n_method) == ("clïent", "TLS")
    assert asked.request_peer_certificates == (client.cert.read_bytes(),)
    assert base64.b64encode(client.cert.read_bytes()).startswith(b"LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tC")
