"""Talking to a daemon, and to what is none."""

import io
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pluginsvc.client.connection import AnswerLost, Connection, DaemonUnreachable, InvalidHost, WorkFailed
from pluginsvc.errors import Conflict, Internal, NotFound, PluginsvcError
from tests.unit.client.conftest import Scripted

Start = Callable[..., Scripted]
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "/run/x.sock",
        "unix://",
        "unix://relative/x",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:x",
        "tcp://127.0.0.1:99999",
        "tcp://user@127.0.0.1:1",
        "tcp://127.0.0.1:1/path",
        "tcp://a..b:1",
        "tcp://[::1:1",
        "http://127.0.0.1:1",
        "fd://",
    ],
)
def test_invalid_host(host: str) -> None:
    """What is no address of a daemon is refused before anything is opened, and shown."""
    with pytest.raises(InvalidHost) as caught:
        Connection(host)
    assert repr(host) in str(caught.value)


def test_no_socket(tmp_path: Path) -> None:
    """Without a daemon the error says where it was looked for and what to do."""
    with pytest.raises(DaemonUnreachable, match=r"cannot reach .*none\.sock: No such file .*--host") as caught:
        Connection(f"unix://{tmp_path}/none.sock").call("GET", "/plugins")
    assert caught.value.status == 503


def test_nobody_listens(tmp_path: Path) -> None:
    """A socket file that a dead daemon left says that nobody is behind it."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "left.sock"))
    with pytest.raises(DaemonUnreachable, match="Connection refused"):
        Connection(f"unix://{tmp_path}/left.sock").call("GET", "/plugins")


def test_path_too_long(tmp_path: Path) -> None:
    """A path that no unix socket can have is told like any other that does not work."""
    with pytest.raises(DaemonUnreachable, match="path too long"):
        Connection(f"unix://{tmp_path}/{'x' * 200}").call("GET", "/plugins")


def test_tcp_refused() -> None:
    """A port that nobody listens on is told likewise."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(DaemonUnreachable, match="Connection refused"):
        Connection(f"tcp://127.0.0.1:{port}").call("GET", "/plugins")


@pytest.mark.parametrize(
    ("head", "body", "kind", "text"),
    [
        ("404 Not Found", b'{"message":"plugin \\"x\\" not found"}\n', NotFound, 'plugin "x" not found'),
        ("409 Conflict", b'{"message":"plugin x is enabled"}', Conflict, "plugin x is enabled"),
        ("500 Oops", b"plain text\n", Internal, "plain text"),
        ("418 Teapot", b'{"message":3}', Internal, '{"message":3}'),
        ("301 Moved", b"", Internal, "the daemon answered with status 301 and no reason"),
    ],
)
def test_refusals(scripted: Start, head: str, body: bytes, kind: type[PluginsvcError], text: str) -> None:
    """An error of the API is raised as the kind that its status means, with its text as it is."""
    daemon = scripted(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (head.encode(), len(body), body))
    with pytest.raises(PluginsvcError) as caught:
        Connection(daemon.host).call("POST", "/plugins/x/enable")
    assert type(caught.value) is kind
    assert str(caught.value) == text


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[",
        STREAM + b"5\r\n[",
        STREAM + b"zz\r\n",
    ],
)
def test_no_whole_answer(scripted: Start, answer: bytes) -> None:
    """An answer that breaks off, or is none, is an error and never a short answer."""
    with pytest.raises(AnswerLost):
        Connection(scripted(answer).host).call("GET", "/plugins")


def test_foreign_document(scripted: Start) -> None:
    """JSON of another kind than expected is an error that says what is wrong."""
    connection = Connection(scripted(b"").host)
    with pytest.raises(AnswerLost, match="Expected `array`"):
        connection.decoded(b'{"a":1}', list[str])
    with pytest.raises(AnswerLost):
        connection.call("GET", "/plugins")


def test_lines(scripted: Start) -> None:
    """Lines are found whatever chunks they come in."""
    parts = b'{"a":1}\r\n{"b"', b":2}\r", b"\n"
    daemon = scripted(STREAM + b"".join(chunk(part) for part in parts) + chunk(b""))
    assert list(Connection(daemon.host).lines("GET", "/events")) == [b'{"a":1}', b'{"b":2}']


@pytest.mark.parametrize("rest", [b"", chunk(b'{"half":'), b"5\r\n{", chunk(b'{"half":') + chunk(b"")])
def test_stream_breaks_off(scripted: Start, rest: bytes) -> None:
    """A stream that the daemon did not end fails, after the lines that came."""
    lines = Connection(scripted(STREAM + chunk(b'{"a":1}\n') + rest).host).lines("GET", "/events")
    assert next(lines) == b'{"a":1}'
    with pytest.raises(AnswerLost):
        next(lines)


def test_failure_in_a_stream(scripted: Start) -> None:
    """The error in the last line of a stream is raised with its text."""
    text = b'{"status":"Preparing","id":"abc"}\r\n{"error":"no","errorDetail":{"message":"no"}}\r\n'
    progress = Connection(scripted(STREAM + chunk(text) + chunk(b"")).host).progress("/plugins/x/push")
    assert next(progress)[0].status == "Preparing"
    with pytest.raises(WorkFailed, match=r"\Ano\Z"):
        next(progress)


def test_upload(scripted: Start) -> None:
    """What is written arrives in chunks, with an end."""
    daemon = scripted(b"HTTP/1.1 204 No Content\r\n\r\n", wait_for=b"\r\n0\r\n\r\n")

    def produce(out: io.RawIOBase) -> None:
        for _ in range(10):
            out.write(b"x" * 100_000)

    Connection(daemon.host).upload("/plugins/create", {"name": "a b"}, produce)
    head, _, body = daemon.whole().partition(b"\r\n\r\n")
    assert head.startswith(b"POST /plugins/create?name=a+b HTTP/1.1\r\n")
    assert b"Transfer-Encoding: chunked" in head
    assert b"Content-Length" not in head
    assert body.count(b"x") == 1_000_000


def test_upload_stops_at_an_answer(scripted: Start) -> None:
    """A daemon that refuses early is heard, and the rest of the body is not even made."""
    daemon = scripted(b'HTTP/1.1 409 Conflict\r\nContent-Length: 19\r\n\r\n{"message":"taken"}', read_on=True)

    def produce(out: io.RawIOBase) -> None:
        while True:
            out.write(b"x" * 100_000)

    with pytest.raises(Conflict, match="taken"):
        Connection(daemon.host).upload("/plugins/create", {"name": "a"}, produce)


def test_upload_that_is_cut_off_by_an_answer(scripted: Start) -> None:
    """A daemon that refuses and hangs up in the middle of a chunk is heard all the same."""
    answer = b'HTTP/1.1 409 Conflict\r\nContent-Length: 19\r\n\r\n{"message":"taken"}'
    daemon = scripted(answer, wait_for=b"x" * 100)

    def produce(out: io.RawIOBase) -> None:
        out.write(b"x" * 50_000_000)

    with pytest.raises(Conflict, match="taken"):
        Connection(daemon.host).upload("/plugins/create", {"name": "a"}, produce)


def test_upload_to_a_daemon_that_hangs_up(scripted: Start) -> None:
    """A daemon that dies during an upload is no success."""

    def produce(out: io.RawIOBase) -> None:
        while True:
            out.write(b"x" * 100_000)

    with pytest.raises(AnswerLost):
        Connection(scripted(b"").host).upload("/plugins/create", {"name": "a"}, produce)


def test_upload_that_fails_here(scripted: Start) -> None:
    """A body that cannot be made to its end is never ended, so that half of it cannot pass for a whole."""
    daemon = scripted(b"", wait_for=b"never")

    def produce(out: io.RawIOBase) -> None:
        out.write(b"x" * 300_000)
        raise Internal("disk")

    with pytest.raises(Internal, match="disk"):
        Connection(daemon.host).upload("/plugins/create", {"name": "a"}, produce)
    body = daemon.whole().partition(b"\r\n\r\n")[2]
    assert body.count(b"x") == 300_000
    assert not body.endswith(b"0\r\n\r\n")
