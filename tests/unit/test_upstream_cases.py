"""docs/upstream-cases.md: every case has a test that exists, or a reason."""

from __future__ import annotations

import ast
import re
from functools import cache

from tests.support.parts import PROJECT

PAGE = PROJECT / "docs" / "upstream-cases.md"
CASES = {
    "2.1": 11, "2.2": 12, "2.3": 5, "2.4": 6, "2.5": 19, "3.1": 17, "3.2": 11, "3.3": 5, "3.4": 11,
    "3.5": 18, "4": 91, "5": 89, "6.1": 33, "6.2": 4, "7": 26, "8": 8, "9": 68,
}  # fmt: skip
"""Part → how many cases upstream's suites, or our own list in part 9, have there."""

_PART = re.compile(r"## (\d+(?:\.\d+)?) .+")
_NAMED = re.compile(r"`(tests/[^`]+)`")
_REASON = re.compile(r"Not here: \S.{10,}")


def _read() -> dict[str, list[tuple[str, str]]]:
    """Return part → its rows, each a case, or several of one kind, and what is said of it."""
    parts: dict[str, list[tuple[str, str]]] = {}
    rows: list[tuple[str, str]] = []
    for line in PAGE.read_text().splitlines():
        if found := _PART.fullmatch(line):
            rows = parts.setdefault(found[1], [])
        elif line.startswith("| ") and line != "| Case | Covered by |":
            case, covered = line.strip("| ").split(" | ")
            rows.append((case, covered))
    return parts


PARTS = _read()


@cache
def _tests(file: str) -> frozenset[str]:
    """Return the names of the tests that a file defines, without running it; none of a file that is not there."""
    path = PROJECT / file
    tree = ast.parse(path.read_text() if path.is_file() and path.suffix == ".py" else "")
    return frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    )


def _cases(part: str, cell: str) -> list[str]:
    return [cell] if part == "9" else re.split(r"[,;] ", cell)


def test_no_case_is_lost() -> None:
    """Each part has the cases that the list has, none twice."""
    found = {part: [case for cell, _ in rows for case in _cases(part, cell)] for part, rows in PARTS.items()}
    assert {part: len(cases) for part, cases in found.items()} == CASES
    # in part 4 two packages have a test of one name each
    assert [part for part, cases in found.items() if len(set(cases)) != len(cases)] == ["4"]


def test_each_case_has_a_test_or_a_reason() -> None:
    """What is named exists; where no test is named there is a reason instead."""
    wrong = []
    for part, rows in PARTS.items():
        for case, covered in rows:
            named = [name.partition("::") for name in _NAMED.findall(covered)]
            wrong += [f"{part} {case}: there is no {file}" for file, _, _ in named if not (PROJECT / file).is_file()]
            wrong += [
                f"{part} {case}: {file} has no {test}" for file, _, test in named if test not in {"", *_tests(file)}
            ]
            if not any(test for _, _, test in named) and not _REASON.fullmatch(covered):
                wrong.append(f"{part} {case}: neither test nor reason")
    assert wrong == []
