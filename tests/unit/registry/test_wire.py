"""One exchange: redirects, what is private, time-outs, caps, proxies."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from aiohttp import web

from pluginsvc.errors import Internal
from pluginsvc.registry import wire
from pluginsvc.registry.errors import CONNECT, CUT, TIMEOUT, TLS, RegistryBusy, RegistryProtocolError
from pluginsvc.registry.hosts import Hosts
from pluginsvc.registry.wire import Body, Wire, join, read, read_some, read_start
from tests.unit.registry.scripted import AGENT, Seen, certificates, cut, serve

pytestmark = pytest.mark.anyio

PRIVATE = (("Authorization", "Basic x"), ("X-Meta-A", "b"))


def open_wire(proxies: dict[str, str] | None = None, hosts: Hosts | None = None) -> Wire:
    return Wire(hosts or Hosts(certs_dirs=()), user_agent=AGENT, proxies=proxies or {})


async def ok(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
    return web.Response(text="here")


async def test_private_headers_stay_with_the_origin() -> None:
    """A redirect to another host gets no credentials and no meta headers, nor does the way back from there."""

    async def target_script(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.target == "/a?sig=1%2B":
            return web.Response(status=302, headers={"Location": f"{home.url}/last"})
        return web.Response()

    async def home_script(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.target == "/start":
            return web.Response(status=307, headers={"Location": "/second"})
        if seen.target == "/second":
            return web.Response(status=301, headers={"Location": f"{target.url}/a?sig=1%2B"})
        return web.Response(text="end")

    async with (
        serve(target_script) as target,
        serve(home_script) as home,
        open_wire() as sender,
        sender.exchange(
            "GET", f"{home.url}/start", headers=[("Range", "bytes=3-")], private=PRIVATE, secure=False
        ) as response,
    ):
        assert await read(response, 10) == b"end"
    auth = {seen.target: (seen.auth, seen.headers.get("X-Meta-A")) for seen in [*home.seen, *target.seen]}
    assert auth == {
        "/start": ("Basic x", "b"),
        "/second": ("Basic x", "b"),
        "/a?sig=1%2B": (None, None),
        "/last": (None, None),
    }
    for seen in [*home.seen, *target.seen]:
        assert seen.headers["Range"] == "bytes=3-"
        assert set(seen.headers) <= {
            "Host", "Accept", "Accept-Encoding", "User-Agent", "Range", "Authorization", "X-Meta-A",
        }  # fmt: skip


async def test_endless_redirects_end() -> None:
    """A host that redirects for ever is a protocol error."""

    async def script(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "/again"})

    async with serve(script) as server, open_wire() as sender:
        with pytest.raises(RegistryProtocolError, match="redirects"):
            async with sender.exchange("GET", server.url, secure=False):
                pass
    assert len(server.seen) == 10


async def test_a_secure_registry_is_verified_whatever_its_name_means_now(tmp_path: Path) -> None:
    """A registry that was found secure stays so, even if its name has come to mean loopback in the meantime."""
    tls, _, _, _ = certificates(tmp_path)
    async with serve(ok, tls=tls) as server, open_wire() as sender:
        async with sender.exchange("GET", server.url, secure=False) as response:
            assert response.status == 200
        with pytest.raises(RegistryBusy) as failed:
            async with sender.exchange("GET", server.url, private=PRIVATE, secure=True):
                pass
        assert failed.value.code == TLS
        assert len(server.seen) == 1


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://x/", "http://", "http://u:p@h/", "http://[", "//:0/"]
)
async def test_redirects_to_odd_places_are_refused(location: str) -> None:
    """A redirect leads to HTTP or HTTPS without user, or nowhere."""

    async def script(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": location})

    async with serve(script) as server, open_wire() as sender:
        with pytest.raises(RegistryProtocolError):
            async with sender.exchange("GET", server.url, secure=False):
                pass


async def test_a_secure_exchange_never_goes_plain() -> None:
    """Plain HTTP is refused before anything is sent when the registry is a secure one."""
    async with serve(ok) as server, open_wire() as sender:
        with pytest.raises(RegistryProtocolError, match="plain HTTP"):
            async with sender.exchange("GET", server.url, private=PRIVATE, secure=True):
                pass
    assert server.seen == []


async def test_only_safe_redirects_of_a_body() -> None:
    """A PUT is sent again after 307; a 302, which would make it a GET, is handed to the caller."""
    status = 307

    async def script(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.target == "/":
            return web.Response(status=status, headers={"Location": "/there"})
        return web.Response(status=201)

    async def chunks() -> AsyncIterator[bytes]:
        yield b"da"
        yield b"ta"

    async with serve(script) as server, open_wire() as sender:
        async with sender.exchange("PUT", server.url, body=Body(4, chunks), secure=False) as response:
            assert response.status == 201
        assert [seen.body for seen in server.seen] == [b"data", b"data"]
        assert {seen.headers["Content-Length"] for seen in server.seen} == {"4"}
        assert not any("Transfer-Encoding" in seen.headers for seen in server.seen)
        status = 302
        async with sender.exchange("PUT", server.url, body=b"x", secure=False) as response:
            assert response.status == 302


async def test_silence_is_bounded() -> None:
    """A host that takes the request and says nothing is given up; one that stops within its answer as well."""
    stop = anyio.Event()

    async def script(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "10"})
        if seen.target == "/half":
            await response.prepare(request)
            await response.write(b"half")
        await stop.wait()
        return response

    async with serve(script) as server, open_wire() as sender:
        with pytest.raises(RegistryBusy) as failed:
            async with sender.exchange("GET", f"{server.url}/none?secret", secure=False, wait=0.1):
                pass
        assert failed.value.code == TIMEOUT
        assert failed.value.temporary
        assert "secret" not in str(failed.value)
        async with sender.exchange("GET", f"{server.url}/half", secure=False, wait=0.1) as response:
            assert await read_some(response) == b"half"
            with pytest.raises(RegistryBusy) as failed:
                await read_some(response)
        assert failed.value.code == TIMEOUT
        stop.set()


async def test_a_body_nobody_reads_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload to a host that stops reading is given up."""
    monkeypatch.setattr(wire, "IDLE_TIMEOUT", 0.2)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(2**20)

    # nobody accepts: the kernel takes what fits into its buffers, and then no more
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        async with open_wire() as sender:
            url = f"http://127.0.0.1:{deaf.getsockname()[1]}/"
            with pytest.raises(RegistryBusy) as failed:
                async with sender.exchange("PUT", url, body=Body(2**40, endless), secure=False, wait=0.1):
                    pass
    assert failed.value.code == TIMEOUT


async def test_a_slow_body_is_not_silence() -> None:
    """An upload may take longer than any single wait, as long as it moves."""

    async def slow() -> AsyncIterator[bytes]:
        for _ in range(8):
            await anyio.sleep(0.05)
            yield b"x"

    async with serve(ok) as server, open_wire() as sender:
        body = Body(8, slow)
        async with sender.exchange("PUT", server.url, body=body, secure=False, wait=0.1, connect=0.1) as response:
            assert response.status == 200
        assert server.seen[0].body == b"x" * 8


async def test_a_body_that_fails_says_so_itself() -> None:
    """What goes wrong while our own bytes are read is reported as that, and not as a fault of the registry."""

    class Broken(Internal):
        pass

    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise Broken("disk")

    async with serve(ok) as server, open_wire() as sender:
        with pytest.raises(Broken):
            async with sender.exchange("PUT", server.url, body=Body(10, broken), secure=False):
                pass


async def test_no_connection_and_cut_connections() -> None:
    """A closed port and a connection that is cut are told apart."""
    async with serve(cut) as server, open_wire() as sender:
        with pytest.raises(RegistryBusy) as failed:
            async with sender.exchange("POST", f"{server.url}/?secret", secure=False):
                pass
        assert (failed.value.code, failed.value.temporary) == (CUT, True)
        assert "secret" not in str(failed.value)
        await anyio.aclose_forcefully(await anyio.connect_tcp("127.0.0.1", int(server.host.partition(":")[2])))
    async with open_wire() as sender:
        with pytest.raises(RegistryBusy) as failed:
            async with sender.exchange("GET", server.url, secure=False):
                pass
        assert failed.value.code == CONNECT


@pytest.mark.parametrize(
    "junk",
    [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70000],
)
async def test_what_is_no_http_is_no_crash(junk: bytes) -> None:
    """A host that does not speak HTTP is a fault of this room."""

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(junk)
        writer.close()

    async with await asyncio.start_server(babble, "127.0.0.1", 0) as listener, open_wire() as sender:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises((RegistryBusy, RegistryProtocolError)):
            async with sender.exchange("GET", f"http://127.0.0.1:{port}/", secure=False):
                pass


async def test_answers_are_capped() -> None:
    """An answer beyond the limit is refused, announced or not; the start of an error's text is enough."""

    async def script(request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if seen.target == "/announced":
            return web.Response(body=b"x" * 2000)
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(20):
            await response.write(b"x" * 100)
        return response

    async with serve(script) as server, open_wire() as sender:
        for path in ("announced", "chunked"):
            async with sender.exchange("GET", f"{server.url}/{path}", secure=False) as response:
                with pytest.raises(RegistryProtocolError, match="larger than 1999 bytes"):
                    await read(response, 1999)
            async with sender.exchange("GET", f"{server.url}/{path}", secure=False) as response:
                assert len(await read_start(response, 1999)) == 1999
            async with sender.exchange("GET", f"{server.url}/{path}", secure=False) as response:
                assert len(await read(response, 2000)) == 2000


async def test_proxies_are_for_other_hosts_than_loopback() -> None:
    """A proxy is used as its settings say, and never for loopback."""
    async with serve(ok) as proxy, serve(ok) as server:
        settings = {"http": proxy.url, "no": "direct.invalid"}
        async with open_wire(settings, Hosts(certs_dirs=())) as sender:
            async with sender.exchange("GET", "http://reg.invalid/v2/", private=PRIVATE, secure=False) as response:
                assert response.status == 200
            assert [seen.line for seen in proxy.seen] == ["GET http://reg.invalid/v2/"]
            async with sender.exchange("GET", server.url, secure=False) as response:
                assert response.status == 200
            with pytest.raises(RegistryBusy):
                async with sender.exchange("GET", "http://direct.invalid/", secure=False):
                    pass
            assert len(proxy.seen) == 1
            assert len(server.seen) == 1


async def test_a_proxy_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that is spoken to over TLS is verified with the machine's authorities, also for a plain registry."""
    tls, ca, _, _ = certificates(tmp_path)
    async with serve(ok, tls=tls) as proxy:
        settings = {"http": proxy.url}
        async with open_wire(settings, Hosts(certs_dirs=())) as sender:
            with pytest.raises(RegistryBusy, match="certificate"):
                async with sender.exchange("GET", "http://reg.invalid/v2/", secure=False):
                    pass
        monkeypatch.setenv("SSL_CERT_FILE", str(ca))
        async with (
            open_wire(settings, Hosts(certs_dirs=())) as sender,
            sender.exchange("GET", "http://reg.invalid/v2/", secure=False) as response,
        ):
            assert response.status == 200
        assert [seen.line for seen in proxy.seen] == ["GET http://reg.invalid/v2/"]


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https://other/x?a=%2B+b%3D", "https://other/x?a=%2B+b%3D"),
        ("/rooted?s=1", "http://reg/rooted?s=1"),
        ("relative", "http://reg/v2/a/relative"),
        ("?only=query", "http://reg/v2/a/b?only=query"),
        ("/sp ace\u00e9", "http://reg/sp%20ace%C3%A9"),
        ("/a\tb", "http://reg/a%09b"),
    ],
)
def test_locations_are_joined_as_they_are(location: str, expected: str) -> None:
    """A location is resolved in every form, and what it has quoted stays quoted as it is."""
    assert join("http://reg/v2/a/b", location) == expected
