"""What the terminal gets."""

import json

import pytest

from pluginsvc.client.output import harmless, table


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


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Cells are one line, are no markup, and are whole where the output is no terminal."""
    table(("ID", "TEXT"), [("1", "[red]a\nb\x1b"), ("2", "y" * 300)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [["ID", "TEXT"], ["1", "[red]a", "b\\u001b"], ["2", "y" * 300]]
