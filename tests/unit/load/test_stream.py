"""The load generator's reader: it must notice whatever a stream does wrong."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.load.stream import Decoder, Follower, StreamError, Wire

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
HELLO = b": pluginsvc\nid: 0\n\n"
TIME = "2026-11-22T23:47:54.123456789Z"


def event(seq: int) -> bytes:
    return b'id: %d\ndata: {"seq":%d,"time":"%b","action":"set"}\n\n' % (seq, seq, TIME.encode())


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM = HEAD + b"".join(map(chunk, [HELLO, event(1), event(2), b": heartbeat\nid: 2\n\n", event(3)]))


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_it_does_not_matter_how_a_stream_is_cut(cuts: list[int]) -> None:
    """Whatever pieces arrive, the blocks are the same, with the decoder's memory and without."""
    ends = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[begin:end] for begin, end in itertools.pairwise(ends)]
    plain, shared, decoder = Wire(), Wire(), Decoder()
    one = [block.seq for piece in pieces for block in plain.feed(piece)]
    two = [block.seq for piece in pieces for block in decoder.feed(shared, piece)]
    assert one == two == [0, 1, 2, 2, 3]
    assert plain.whole
    assert shared.whole


def test_readers_who_get_the_same_bytes_share_what_they_hold() -> None:
    """A piece is taken apart once for all whose stream is between two blocks, and its time is the event's."""
    decoder, wires = Decoder(), [Wire(), Wire()]
    for wire in wires:
        decoder.feed(wire, HEAD)
    first, second = (decoder.feed(wire, chunk(event(1)))[0] for wire in wires)
    assert first is second
    assert first.time == pytest.approx(1795391274.123456)


def seen(*blocks: bytes) -> int:
    follower, wire = Follower(), Wire()
    for block in wire.feed(HEAD + b"".join(map(chunk, blocks))):
        follower.take(block)
    return follower.last


def test_a_good_stream_is_followed() -> None:
    """Events in order, and a position that is that of the last event."""
    assert seen(HELLO, event(1), event(2), b": heartbeat\nid: 2\n\n", event(3)) == 3


@pytest.mark.parametrize(
    ("blocks", "why"),
    [
        ([HELLO, event(1), event(3)], "after event 1 came event 3"),
        ([HELLO, event(1), event(1)], "after event 1 came event 1"),
        ([HELLO, event(2)], "after event 0 came event 2"),
        ([HELLO, event(1), b": heartbeat\nid: 2\n\n"], "gave its position as 2"),
        ([HELLO, event(1), b": heartbeat\nid: 0\n\n"], "gave its position as 0"),
        ([HELLO, b'event: gap\nid: 7\ndata: {"gap":{"after":0,"oldest":8}}\n\n'], "came a gap"),
        ([HELLO, b"data: {}\n\n"], "without a number"),
        ([HELLO, b"id: 1\nnonsense\n\n"], "no line of a stream"),
    ],
)
def test_a_bad_stream_is_noticed(blocks: list[bytes], why: str) -> None:
    """A lost event, a doubled one, a position that would lose or double one on resuming, a gap, and nonsense."""
    with pytest.raises(StreamError, match=why):
        seen(*blocks)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 500 Internal Server Error\r\n\r\n", "answered b'HTTP/1.1 500"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n", "answered"),
        (HEAD + chunk(HELLO) + b"0\r\n\r\n", "the stream ended"),
    ],
)
def test_a_bad_answer_is_noticed(answer: bytes, why: str) -> None:
    """Another status, another kind of content, and an end that nobody asked for."""
    with pytest.raises(StreamError, match=why):
        Wire().feed(answer)
