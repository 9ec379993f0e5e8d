"""Following events over what a connection can do."""

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pluginsvc.client.answers import NativeEvent, Subject
from pluginsvc.client.connection import AnswerLost, Connection, DaemonUnreachable
from pluginsvc.client.events import Block, EventsMissing, blocks, follow

Start = Callable[[list[bytes]], tuple[Connection, list[bytes]]]
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Start]:
    """Give a function that starts a daemon with one answer for each connection; with it come the requests it gets."""
    path = tmp_path / "scripted.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.settimeout(10)
    listener.bind(str(path))
    listener.listen()
    threads: list[threading.Thread] = []

    def start(answers: list[bytes]) -> tuple[Connection, list[bytes]]:
        requests: list[bytes] = []

        def serve() -> None:
            for answer in answers:
                with listener.accept()[0] as connection:
                    connection.settimeout(10)
                    requests.append(connection.recv(65536))
                    connection.sendall(answer)

        threads.append(threading.Thread(target=serve))
        threads[0].start()
        return Connection(f"unix://{path}"), requests

    yield start
    for thread in threads:
        thread.join(10)
    listener.close()


def test_blocks() -> None:
    """Blocks are found by their empty lines; comments are none of their own, and one that is cut is none."""
    lines = b": pluginsvc\nid: 4\n\n\nid: 5\ndata: {}\n\nevent: gap\nid: 9\ndata: []\n\nid: 10\ndata: {}".split(b"\n")
    assert list(blocks(lines)) == [Block("4", "", b""), Block("5", "", b"{}"), Block("9", "gap", b"[]")]


def test_goes_on_where_it_was_cut(daemon: Start, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut in the middle of an event, refused, and cut before the first event: each event comes once, in order."""
    first = HEAD + chunk(b": pluginsvc\nid: 4\n\nid: 5\ndata: 5\n\nid: 6\nda")
    busy = b'HTTP/1.1 503 Busy\r\nContent-Length: 19\r\n\r\n{"message":"later"}'
    second = HEAD + chunk(b": pluginsvc\nid: 5\n\n")
    third = HEAD + chunk(b": pluginsvc\nid: 5\n\nid: 6\ndata: 6\n\n") + chunk(b"")
    connection, requests = daemon([first, busy, second, third])
    following = follow(connection, {"after": "4"})
    data: list[bytes] = []
    while len(data) < 2:
        data += [block.data for block in [next(following)] if block.data]
    assert data == [b"5", b"6"]
    assert [b"Last-Event-ID: 5\r\n" in request for request in requests] == [False, True, True, True]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2  # the refusal is part of the first wait
    assert "no whole answer" in said[0]


def test_first_connection_fails(daemon: Start, tmp_path: Path) -> None:
    """What was never there, or is no daemon, is not waited for."""
    with pytest.raises(DaemonUnreachable):
        next(follow(Connection(f"unix://{tmp_path}/none.sock"), {}))
    connection, _ = daemon([b"SSH-2.0-OpenSSH\r\n"])
    with pytest.raises(AnswerLost):
        next(follow(connection, {}))


def test_with_an_end_it_does_not_wait(daemon: Start) -> None:
    """Who has named an end is told when the connection is lost."""
    connection, _ = daemon([HEAD + chunk(b": pluginsvc\nid: 4\n\n")])
    following = follow(connection, {"until": "4000000000"})
    assert next(following) == Block("4", "", b"")
    with pytest.raises(AnswerLost):
        next(following)


@pytest.mark.parametrize(
    ("value", "shown"),
    [("disabled", "disabled"), ("a b", '"a b"'), ("", '""'), ("a\nb=c", '"a\\nb=c"'), ("é", "é"), ('"', '"\\""')],
)
def test_line(value: str, shown: str) -> None:
    """An event is one line, whose values cannot pass for more lines or more values."""
    found = NativeEvent(
        time="2026-11-22T23:47:54.123456789Z",
        action="exit",
        plugin=Subject(id="abc" * 10, name="sample:latest"),
        attributes={"b": value, "a": "1"},
    )
    assert found.text == f"2026-11-22T23:47:54.123Z exit sample:latest (abcabcabcabc…) a=1 b={shown}"


def test_gaps_are_told_apart() -> None:
    """Pruned events and another journal are two things."""
    assert "after number 3 are no longer kept" in str(EventsMissing(3, 100))
    assert "numbers began anew" in str(EventsMissing(100, 1))


@pytest.mark.parametrize(
    "block",
    [b"id: 1\rX\ndata: {}\n\n", "id: ٣\ndata: {}\n\n".encode(), b"id: 1\ndata: \xff\n\n", b"id: -1\ndata: {}\n\n"],
)
def test_what_is_no_stream_of_ours(daemon: Start, block: bytes) -> None:
    """A number that is none, or a text that is none, is an error that says so."""
    connection, _ = daemon([HEAD + chunk(block) + b"0\r\n\r\n"])
    with pytest.raises(AnswerLost):
        list(follow(connection, {"until": "1"}))


def test_a_block_without_a_number_moves_nothing(daemon: Start) -> None:
    """After a block that has no number the stream is resumed from the last that had one."""
    first = b"id: 7\ndata: {}\n\ndata: {}\n\n"
    connection, requests = daemon([HEAD + chunk(first) + b"0\r\n\r\n", HEAD + chunk(b"id: 8\ndata: {}\n\n")])
    found = follow(connection, {})
    assert [next(found).id for _ in range(3)] == ["7", "", "8"]
    assert b"Last-Event-ID: 7" in requests[1]
