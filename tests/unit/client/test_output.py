"""What the terminal gets."""

import json
import sys

import pytest

from pluginsvc.client.output import harmless, say, table


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain é 漢 [b]x[/b]\n\t", "plain é 漢 [b]x[/b]\n\t"),
        ("\x1b]0;title\x07", "\\u001b]0;title\\u0007"),
        ("\x9b31m\x7f\r", "\\u009b31m\\u007f\\u000d"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
    ],
)
def test_harmless(text: str, expected: str) -> None:
    """Nothing that moves the cursor, or turns the text around, reaches the terminal."""
    assert harmless(text) == expected


def test_harmless_json() -> None:
    """JSON means the same after it."""
    document = {"a": "\x9b\u202e\x7f é"}
    assert json.loads(harmless(json.dumps(document, ensure_ascii=False))) == document


def test_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A text keeps its lines, and one value is one line."""
    say("a\n\tb")
    say("a\n\tb\x1b", one_line=True)
    assert capsys.readouterr().out == "a\n\tb\na\\u000a\\u0009b\\u001b\n"


def test_large_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of many rows is printed without rich, whose time would be minutes, and looks the same but for blanks."""
    rows = [("p", f"v{number}", "a\nb\x1b" if number % 2 else "") for number in range(1000)]
    table(("PLUGIN", "NAME", "TEXT"), rows)
    small = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    monkeypatch.delitem(sys.modules, "rich.table")
    table(("PLUGIN", "NAME", "TEXT"), [*rows, rows[-1]])
    assert "rich.table" not in sys.modules
    assert capsys.readouterr().out.splitlines() == [*small, small[-1]]


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Cells are one line, are no markup, and are whole where the output is no terminal."""
    table(("ID", "TEXT"), [("1", "[red]a\nb\x1b"), ("2", "y" * 300)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["ID", "TEXT"], ["1", "[red]a", "b\\u001b"], ["2", "y" * 300]]
