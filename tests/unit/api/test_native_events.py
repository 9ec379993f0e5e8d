"""Where a reader of our own stream goes on, and in what blocks it is told."""

import pytest

from pluginsvc.api.native_events import InvalidPosition, _Format, position
from pluginsvc.events.forms import native_message
from pluginsvc.model.event import Gap
from tests.support.records import event


@pytest.mark.parametrize(("text", "number"), [("", None), ("0", 0), ("007", 7), (str(2**63 - 1), 2**63 - 1)])
def test_position(text: str, number: int | None) -> None:
    """Whole numbers that an event can have are taken, and nothing means none."""
    assert position("after", text) == number


@pytest.mark.parametrize("text", ["-1", "+1", " 1", "1 ", "1.0", "1e3", "0x1", "one", "\u0663", str(2**63), "9" * 5000])
def test_no_position(text: str) -> None:
    """Everything else is refused, with where it stood and what would do."""
    with pytest.raises(InvalidPosition, match=r"^invalid Last-Event-ID .*: give the number \(id\)"):
        position("Last-Event-ID", text)


def test_blocks() -> None:
    """Each block is its number and one line of data, whatever is in it, and ends with an empty line."""
    style = _Format(native_message)
    odd = event(1, seq=7, attributes={"reason": "two\nlines\r\nid: 9\u2028"})
    block = style.form.of((odd,), chunked=False)
    assert block == b"id: 7\ndata: " + native_message(odd) + b"\n\n"
    assert block.count(b"\n") == 3
    assert b"\r" not in block
    assert style.gap(Gap(3, 100), 99) == b'event: gap\nid: 99\ndata: {"gap":{"after":3,"oldest":100}}\n\n'
