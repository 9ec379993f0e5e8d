"""Following output: frames, what was shown already, and what a terminal gets."""

import io
import struct

import pytest

from pluginsvc.client.logs import Frame, Progress, _Outlet, frames

AT = [b"2026-09-21T14:13:20.%09dZ" % number for number in range(5)]


def line(number: int, data: bytes) -> Frame:
    return Frame(1, AT[number], data + b"\n")


@pytest.mark.parametrize("size", [1, 3, 7, 8, 9, 1000])
def test_frames_cut_anywhere(size: int) -> None:
    """Frames come out whole, however the connection cuts them."""
    sent = [Frame(1, AT[0], b"a b\n"), Frame(2, AT[1], b"\n"), Frame(1, AT[2], b"x" * 50)]
    bodies = [(frame.stream, frame.at + b" " + frame.data) for frame in sent]
    raw = b"".join(struct.pack(">BxxxL", stream, len(body)) + body for stream, body in bodies)
    chunks = [raw[begin : begin + size] for begin in range(0, len(raw), size)]
    assert [frame for batch in frames(chunks) for frame in batch] == sent


def test_second_request_goes_on_after_what_was_shown() -> None:
    """Of lines that share their time those that were shown are left out, once, and no other."""
    progress = Progress("5", "7")
    assert progress.query() == {"since": "5", "tail": "7"}
    first = [line(0, b"a"), line(1, b"same"), line(1, b"same")]
    assert progress.new(first) == first
    for _ in range(2):
        assert progress.query() == {"since": "1790000000.000000001"}
    assert progress.new([line(1, b"same")]) == []
    assert progress.new([line(1, b"same"), line(1, b"same"), line(2, b"b")]) == [line(1, b"same"), line(2, b"b")]
    assert not progress.dropped
    progress.query()
    assert progress.new([line(2, b"b"), line(2, b"c"), line(3, b"d")]) == [line(2, b"c"), line(3, b"d")]
    assert not progress.dropped


def test_dropped_lines_are_noticed() -> None:
    """When the line that was shown last is gone, what followed it may be gone too."""
    progress = Progress(None, "all")
    assert progress.query() == {"tail": "all"}
    progress.new([line(0, b"a"), line(1, b"b")])
    progress.query()
    fresh = [line(3, b"d"), line(4, b"e")]
    assert progress.new(fresh) == fresh
    assert progress.dropped


@pytest.mark.parametrize(("tail", "later"), [("3", {"tail": "all"}), ("all", {"tail": "all"})])
def test_nothing_shown_yet(tail: str, later: dict[str, str]) -> None:
    """Before the first line there is no past, so a second request wants all there is."""
    progress = Progress(None, tail)
    progress.query()
    assert progress.query() == later


def test_tail_of_none_begins_with_the_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any past wanted, a second request begins when the first was made."""
    monkeypatch.setattr("time.time_ns", lambda: 1_790_000_000_000_000_042)
    progress = Progress(None, "0")
    assert progress.query() == {"tail": "0"}
    assert progress.query() == {"since": "1790000000.000000042"}


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("file", "shown"),
    [
        (io.BytesIO, b"\x1b[2J\xe2\x82\xac\xff\n"),
        (Terminal, b"\\u001b[2J\xe2\x82\xac\\xff\n"),
    ],
)
def test_a_terminal_is_not_harmed(file: type[io.BytesIO], shown: bytes) -> None:
    """Control characters are written out on a terminal only, and a character in two pieces is one."""
    target = file()
    outlet = _Outlet(target, stamped=True)
    for data in (b"\x1b[2J\xe2", b"\x82\xac\xff", b"\n"):
        outlet.write(Frame(1, AT[0], data))
    assert target.getvalue() == AT[0] + b" " + shown
