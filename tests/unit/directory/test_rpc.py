"""Calls to plugins, friendly and hostile."""

import asyncio
import os
import socket
import ssl
import time
from pathlib import Path

import anyio
import msgspec
import pytest

from pluginsvc.directory import rpc
from pluginsvc.directory.address import InvalidAddress, TLSConfig
from pluginsvc.directory.exchange import MAX_ANSWER
from pluginsvc.directory.rpc import BadAnswer, Client, PluginFault, PluginRefused, PluginUnreachable, PluginUntrusted
from tests.unit.directory.peers import Clock, Script, answer, bound, endless, plugin, raw
from tests.unit.registry.scripted import certificates

pytestmark = pytest.mark.anyio

CALL = "VolumeDriver.Create"
OK = b"HTTP/1.1 200 OK\r\n"


def client(address: str, *, tls: TLSConfig | None = None) -> Client:
    """Return a client that never waits between tries."""
    clock = Clock()
    return Client(address, name="vol:latest", tls=tls, clock=clock, sleep=clock.sleep)


async def test_what_is_sent(tmp_path: Path) -> None:
    """A call is a POST with the plugins' media type, the host that Docker sends, and no Content-Type."""
    async with plugin(answer(body=b'{"Mountpoint": "/x"}'), tmp_path / "s") as peer:
        assert await client(peer.address).call(CALL, {"Name": "a"}) == {"Mountpoint": "/x"}
    (head, body), = peer.seen  # fmt: skip
    line, *headers = head.strip().split("\r\n")
    assert line == "POST /VolumeDriver.Create HTTP/1.1"
    assert set(headers) == {
        "Host: plugin.moby.localhost",
        "Accept: application/vnd.docker.plugins.v1.2+json",
        "Accept-Encoding: identity",
        "Connection: close",
        "Content-Length: 12",
    }
    assert body == b'{"Name":"a"}'


async def test_no_argument_is_no_body() -> None:
    """A call without argument has an empty body, and the host of an address is sent as it is."""
    async with plugin(answer()) as peer:
        assert await client(peer.address).call("Plugin.Activate") == {}
    (head, body), = peer.seen  # fmt: skip
    assert "Content-Length: 0\r\n" in head
    assert f"Host: {peer.address.removeprefix('tcp://')}\r\n" in head
    assert body == b""


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        ("500 Internal Server Error", b'{"Err": "no space"}', "no space"),
        ("404 Not Found", b"404 page not found\n", "404 page not found"),
        ("500 Oops", b'{"Err": ""}', '{"Err": ""}'),
        ("500 Oops", b'{"Err": 7}', '{"Err": 7}'),
        ("500 Oops", b"\x1b[2J\xff\nx", "[2J\ufffd x"),
        ("500 Oops", b"a" * 10_000, "a" * 4096),
        ("503 Later", b"", "HTTP status 503 without a word"),
        ("204 Nothing", b"", "HTTP status 204 without a word"),
        ("101 Switching Protocols", b"", "HTTP status 101 without a word"),
        ("307 Elsewhere", b"there", "there"),
    ],
)
async def test_refusal_is_told_in_the_plugins_words(status: str, body: bytes, text: str) -> None:
    """Any status but 200 is an error with the plugin's own text, made printable and capped, and is not tried again."""
    async with plugin(answer(status, body, "Location: /other")) as peer:
        with pytest.raises(PluginRefused) as failed:
            await client(peer.address).call(CALL, {}, timeout=5)
    assert str(failed.value) == f"{CALL}: {text}"
    assert failed.value.http_status == int(status[:3])
    assert len(peer.seen) == 1


async def test_tries_again_as_docker_does(tmp_path: Path) -> None:
    """Where nobody listens there are five tries, the last after 15 seconds, and the error says what to look at."""
    clock = Clock()
    with pytest.raises(PluginUnreachable) as failed:
        await Client(f"unix://{tmp_path}/s", name="vol:latest", clock=clock, sleep=clock.sleep).call(CALL)
    assert clock.waits == [1, 2, 4, 8]
    assert str(failed.value) == (
        f"{CALL}: no answer from plugin vol:latest at unix://{tmp_path}/s: No such file or directory: see that it runs"
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_reason_of_no_connection(host: str) -> None:
    """Where no connection comes about the error has the system's reason, also of a name with several addresses."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    with pytest.raises(PluginUnreachable) as failed:
        await client(f"tcp://{host}:{port}").call(CALL)
    assert failed.value.reason == "Connection refused"


async def test_time_spent_on_tries_counts() -> None:
    """No try begins 30 seconds after the first or later, however long each of them took."""
    clock = Clock()

    async def slow(writer: asyncio.StreamWriter) -> None:
        clock.now += 9

    async with plugin(slow) as peer:
        with pytest.raises(PluginUnreachable, match="it closed the connection"):
            await Client(peer.address, clock=clock, sleep=clock.sleep).call(CALL)
    assert clock.waits == [1, 2]
    assert len(peer.seen) == 3


async def test_each_try_sends_the_whole_body() -> None:
    """A try after a cut connection sends the same body again, and its answer counts."""
    tries = 0

    async def third(writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        if tries == 3:
            await answer(body=b'{"Err": ""}')(writer)

    async with plugin(third) as peer:
        assert await client(peer.address).call(CALL, {"Name": "a"}) == {"Err": ""}
    assert [body for _, body in peer.seen] == [b'{"Name":"a"}'] * 3


async def test_time_out_ends_one_try() -> None:
    """A plugin that takes a call and says nothing is asked again, each time for as long as the call may take."""
    async with plugin(endless(b"", b"", every=0.01)) as peer:
        with pytest.raises(PluginUnreachable, match="it took too long"):
            await client(peer.address).call(CALL, timeout=0.05)
    assert len(peer.seen) == 5


GOOD: dict[str, bytes] = {
    "until it closes": OK + b'\r\n{"a": "bc"}',
    "chunks": OK + b'Transfer-Encoding: Chunked\r\n\r\n4\r\n{"a"\r\n6;x=y\r\n: "bc"\r\n001\r\n}\r\n0\r\nX: y\r\n\r\n',
    "after interim answers": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nX: y\r\n\r\n"
    + OK
    + b'\r\n{"a": "bc"}',
    "more than announced": OK + b'content-length:  11 \r\n\r\n{"a": "bc"}HTTP/1.1 500 Oops',
    "old and terse": b'HTTP/1.0 200\r\n\r\n{"a": "bc"}',
}


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("kind", GOOD)
async def test_answers_in_every_form(kind: str, size: int) -> None:
    """An answer is read in every form that HTTP has for it, in pieces of any size."""

    async def pieces(writer: asyncio.StreamWriter) -> None:
        for at in range(0, len(GOOD[kind]), size):
            writer.write(GOOD[kind][at : at + size])
            await asyncio.sleep(0)

    async with plugin(pieces) as peer:
        assert await client(peer.address).call(CALL, timeout=5) == {"a": "bc"}


@pytest.mark.parametrize("chunked", [False, True])
async def test_answer_as_large_as_may_be(chunked: bool) -> None:  # noqa: FBT001 - a parameter
    """An answer of nearly the limit is read whole."""
    text = "a" * (MAX_ANSWER - 100)
    body = b'{"a":"%s"}' % text.encode()
    chunks = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    async with plugin(raw(OK + chunks) if chunked else answer(body=body)) as peer:
        assert await client(peer.address).call(CALL, timeout=5) == {"a": text}


async def test_answer_before_the_end_of_the_request(tmp_path: Path) -> None:
    """A plugin that answers and closes before it has read the whole request is heard."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await answer("413 Too Large", b"too much")(writer)
        writer.close()

    async with await asyncio.start_unix_server(refuse, sock=bound(tmp_path / "s")):
        with pytest.raises(PluginRefused, match="too much"):
            await client(f"unix://{tmp_path}/s").call(CALL, {"a": "b" * 5_000_000}, timeout=5)


HOSTILE: dict[str, Script] = {
    "garbage": raw(b"\x16\x03nonsense\r\n\r\n"),
    "another protocol": raw(b"SSH-2.0-OpenSSH_9\r\n"),
    "negative length": raw(OK + b"Content-Length: -5\r\n\r\n"),
    "two lengths": raw(OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
    "endless field": endless(OK + b"X: ", b"a" * 65536),
    "endless status line": endless(b"HTTP/1.1 200 ", b"a" * 65536),
    "endless header": endless(OK, b"X: a\r\n" * 1000),
    "interim answers": endless(b"", b"HTTP/1.1 103 Early\r\n\r\n" * 1000),
    "spaces": raw(OK + b"X: a" + b" " * 60_000 + b"b\r\n\r\n"),
    "no start": endless(b"", b"\r\n", every=0.01),
    "folded field": raw(OK + b"X: a\r\n b\r\n\r\n{}"),
    "another coding": raw(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "huge chunk": raw(OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffff\r\n"),
    "chunk without end": raw(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}0\r\n\r\n"),
    "endless body": endless(OK + b"\r\n", b"a" * 65536),
    "endless chunks": endless(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n" * 10000),
    "endless chunk extension": endless(OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a" * 65536),
    "endless trailer": endless(OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: a\r\n" * 1000),
    "bad chunk": raw(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "too large": answer(body=b"1" * (MAX_ANSWER + 1)),
    "announced and never sent": endless(OK + b"Content-Length: 1000000000000\r\n\r\n", b"", every=0.01),
    "drip in the body": endless(OK + b"Content-Length: 10000\r\n\r\n", b"a", every=0.01),
    "cut in the body": raw(OK + b"Content-Length: 10\r\n\r\n{}"),
    "cut in a chunk": raw(OK + b"Transfer-Encoding: chunked\r\n\r\n10\r\n{}"),
    "empty": answer(body=b""),
    "no JSON": answer(body=b"<html>"),
    "list": answer(body=b"[]"),
    "bad UTF-8": answer(body=b'{"\xff": 1}'),
    "deep": answer(body=b'{"a":' + b"[" * 100_000),
    "two documents": answer(body=b"{}{}"),
    "compressed": answer("200 OK", b"\x1f\x8b\x08\x00", "Content-Encoding: gzip"),
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_hostile_answers_end(kind: str) -> None:
    """Whatever a plugin answers ends in time in an error that names it, and the call is not made twice."""
    started = time.monotonic()
    async with plugin(HOSTILE[kind]) as peer:
        with pytest.raises(BadAnswer, match=r"the answer of plugin vol:latest is of no use: .*: tell the author"):
            await client(peer.address).call(CALL, timeout=1)
    assert len(peer.seen) == 1
    assert time.monotonic() - started < 5


SILENT: dict[str, Script] = {
    "closed": raw(b""),
    "cut in the header": raw(OK + b"X: "),
    "drip in the header": endless(OK + b"X: ", b"a", every=0.01),
    "never the real answer": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", every=0.01),
}


@pytest.mark.parametrize("kind", SILENT)
async def test_no_answer_is_tried_again(kind: str) -> None:
    """A plugin that never gets as far as the end of a header is unreachable, and asked again."""
    started = time.monotonic()
    async with plugin(SILENT[kind]) as peer:
        with pytest.raises(PluginUnreachable):
            await client(peer.address).call(CALL, timeout=0.2)
    assert len(peer.seen) == 5
    assert time.monotonic() - started < 5


async def test_connecting_is_bounded_without_a_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that may take as long as it takes still gives up where no connection comes about."""
    monkeypatch.setattr(rpc, "CONNECT_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"https://127.0.0.1:{deaf.getsockname()[1]}"
        with anyio.fail_after(5), pytest.raises(PluginUnreachable, match="it took too long"):
            await client(address).call(CALL)


async def test_nothing_leads_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a redirect, nor a cookie, nor a proxy of the environment has any effect on a call."""
    async with plugin(answer()) as other:
        monkeypatch.setenv("http_proxy", other.address.replace("tcp", "http"))
        place = f"Location: {other.address.replace('tcp', 'http')}/x"
        async with plugin(answer("307 There", b"", place, "Set-Cookie: a=b")) as peer:
            asked = client(peer.address)
            for _ in range(2):
                with pytest.raises(PluginRefused):
                    await asked.call(CALL)
    assert other.seen == []
    assert ["Cookie" in head for head, _ in peer.seen] == [False, False]


async def test_path_longer_than_an_address(tmp_path: Path) -> None:
    """A socket whose path does not fit into an address is called."""
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    async with plugin(answer(), deep / "s") as peer:
        assert await client(peer.address).call(CALL) == {}


@pytest.mark.parametrize("kind", ["link", "file", "directory", "fifo"])
async def test_what_is_no_socket_is_not_opened(tmp_path: Path, kind: str) -> None:
    """A link to a socket of the host, or anything else under the name, is refused unopened."""
    async with plugin(answer(), tmp_path / "host") as host:
        place = tmp_path / "s"
        if kind == "link":
            place.symlink_to(tmp_path / "host")
        elif kind == "file":
            place.touch()
        elif kind == "directory":
            place.mkdir()
        else:
            os.mkfifo(place)
        with pytest.raises(PluginUnreachable, match="Socket operation on non-socket"):
            await client(f"unix://{place}").call(CALL)
    assert host.seen == []


async def test_tls(tmp_path: Path) -> None:
    """An authority given is trusted; with none, or when told to skip it, nothing is verified, as in Docker."""
    context, ca, _, _ = certificates(tmp_path)
    async with plugin(answer(), tls=context) as peer:
        for tls in (
            TLSConfig(ca_file=str(ca)),
            TLSConfig(),
            TLSConfig(insecure_skip_verify=True, ca_file=str(ca)),
        ):
            assert await client(peer.address, tls=tls).call(CALL) == {}


async def test_tls_shows_our_certificate(tmp_path: Path) -> None:
    """A plugin that wants a certificate of ours gets it."""
    context, ca, certificate, key = certificates(tmp_path)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_REQUIRED
    async with plugin(answer(), tls=context) as peer:
        tls = TLSConfig(ca_file=str(ca), cert_file=str(certificate), key_file=str(key))
        assert await client(peer.address, tls=tls).call(CALL) == {}
        with pytest.raises(PluginFault):
            await client(peer.address, tls=TLSConfig(ca_file=str(ca))).call(CALL)
    assert len(peer.seen) == 1


async def test_no_trust_no_call(tmp_path: Path) -> None:
    """A certificate that is not trusted, or files that cannot be used, end the call at once and before it is sent."""
    context, ca, _, key = certificates(tmp_path)
    (tmp_path / "other").mkdir()
    other = certificates(tmp_path / "other")[1]
    async with plugin(answer(), tls=context) as peer:
        for tls, reason in (
            (None, "certificate verify failed"),
            (TLSConfig(ca_file=str(other)), "certificate verify failed"),
            (TLSConfig(ca_file=str(tmp_path / "none")), "No such file"),
            (TLSConfig(ca_file=str(ca), cert_file=str(ca), key_file=str(key)), "KEY_VALUES_MISMATCH|mismatch"),
        ):
            clock = Clock()
            with pytest.raises(PluginUntrusted, match=reason):
                await Client(peer.address, tls=tls, clock=clock, sleep=clock.sleep).call(CALL)
            assert clock.waits == []
    assert peer.seen == []


@pytest.mark.parametrize("key", ["CAFile", "CertFile", "KeyFile"])
@pytest.mark.parametrize("kind", ["fifo", "device", "huge", "nul"])
async def test_tls_files_that_would_hang(tmp_path: Path, key: str, kind: str) -> None:
    """A pipe, a device, an endless file or no possible name in the place of a file of TLS ends the call at once."""
    place = tmp_path / "pem"
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "device":
        place.symlink_to("/dev/zero")
    elif kind == "huge":
        place.touch()
        os.truncate(place, 1024 * 1024 + 1)
    _, ca, certificate, secret = certificates(tmp_path)
    files = {"CAFile": str(ca), "CertFile": str(certificate), "KeyFile": str(secret)}
    files[key] = "/a\0b" if kind == "nul" else str(place)
    reasons = {"fifo": "no regular file", "device": "no regular file", "huge": "larger than", "nul": "NUL"}
    with anyio.fail_after(5), pytest.raises(PluginUntrusted, match=reasons[kind]):
        await client("https://127.0.0.1:1", tls=msgspec.convert(files, TLSConfig)).call(CALL)


async def test_tls_file_without_a_certificate(tmp_path: Path) -> None:
    """An empty file for the authority is an error of the call, as one that is missing."""
    (tmp_path / "ca").touch()
    with pytest.raises(PluginUntrusted, match="check CAFile"):
        await client("https://127.0.0.1:1", tls=TLSConfig(ca_file=str(tmp_path / "ca"))).call(CALL)


@pytest.mark.parametrize(
    "address",
    [
        "", "/run/s", "s.sock", "unix://", "unix:///", "unix://s", "unix:///a/\0", "ftp://h:1", "tcp://", "tcp://:1",
        "tcp://h:x", "tcp://h:99999", "tcp://u:p@h:1", "http://[", "npipe:////./pipe/x",
    ],
)  # fmt: skip
def test_what_is_no_address(address: str) -> None:
    """Only unix, tcp, http and https lead to a plugin, and only where they name a place."""
    with pytest.raises(InvalidAddress):
        Client(address)


async def test_path_of_an_address_is_not_used() -> None:
    """A plugin on http is called at the root of its host, as Docker does."""
    async with plugin(answer()) as peer:
        await client(f"{peer.address.replace('tcp', 'http')}/some/path?x=y").call(CALL)
    assert peer.seen[0][0].startswith(f"POST /{CALL} HTTP/1.1")


async def test_nothing_leaks(tmp_path: Path) -> None:
    """Calls that succeed, fail, time out or are cancelled leave no descriptor behind."""

    async def calls(times: int) -> int:
        async with (
            plugin(answer(), tmp_path / f"good{times}") as good,
            plugin(endless(OK + b"\r\n", b"a", every=0.01), tmp_path / f"slow{times}") as slow,
        ):
            for _ in range(times):
                await client(good.address).call(CALL)
                with pytest.raises(BadAnswer):
                    await client(slow.address).call(CALL, timeout=0.02)
                with anyio.move_on_after(0.005):
                    await client(slow.address).call(CALL)
                for name in ("deaf", "none", "."):
                    with pytest.raises(PluginUnreachable):
                        await client(f"unix://{tmp_path}/{name}").call(CALL)
        await anyio.wait_all_tasks_blocked()
        return len(os.listdir("/proc/self/fd"))

    with bound(tmp_path / "deaf"):
        # the first time the loop and the threads make descriptors for themselves
        assert await calls(1) == await calls(20)
