"""Whole exchanges as they stand in tests/data/http, byte for byte but for the order of headers and `Date`.

Each file holds a request, a line `----`, and the answer; `UPDATE_GOLDEN=1` writes the answers anew.
"""

import os
from pathlib import Path

import pytest

from tests.support.engine import Engine
from tests.support.parts import PROJECT

pytestmark = pytest.mark.anyio
CASES = sorted((PROJECT / "tests" / "data" / "http").glob("*.txt"))
SEPARATOR = "\n----\n"


def _on_the_wire(request: str) -> bytes:
    head, _, body = request.partition("\n\n")
    return head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body.encode()


def _shown(answer: bytes) -> str:
    head, _, body = answer.decode().partition("\r\n\r\n")
    status, *headers = head.split("\r\n")
    kept = sorted(header for header in headers if not header.startswith("Date: "))
    return "\n".join([status, *kept, "", body.replace("\r", "\\r")])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
async def test_exchange(engine: Engine, case: Path) -> None:
    """The answer is the recorded one, headers included."""
    request, _, expected = case.read_text().partition(SEPARATOR)
    found = _shown(await engine.exchange(_on_the_wire(request)))
    if os.environ.get("UPDATE_GOLDEN"):
        case.write_text(request + SEPARATOR + found)
    assert found == expected


def test_there_are_cases() -> None:
    """The folder is found."""
    assert len(CASES) > 20
