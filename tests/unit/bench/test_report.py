"""What the bench prints, writes and draws of what it measured."""

import json
from pathlib import Path

import pytest

from tests.bench import chart
from tests.bench.probes import Figure
from tests.bench.report import Result, document, number, ratio, text
from tests.bench.rows import FLOOR, OURS, PEER, Curve, Goal, Row

MB = 1_000_000


@pytest.fixture
def result() -> Result:
    row = Row("create", "s", Goal(peer=10, floor=1.5, memory_only=True), note="small")
    for seconds in (3.0, 1.0, 2.0):
        row.add(FLOOR, Figure(seconds))
        row.add(PEER, Figure(12 * seconds, cpu=20.0))
        row.add(OURS, Figure(2 * seconds, cpu=2.5, peak=80 * MB, produced=5 * MB))
    curve = Curve("GET /plugins", "req/CPU s", "plugins known")
    for known, value in ((100, 900.0), (1, 1000.0)):
        curve.point(known).add(OURS, Figure(value))
    curve.point(100).failed[PEER] = "OSError: gone"
    return Result("/dev/shm", True, "20.10", [row], [curve], ["ping: no luck"])


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_says_what_was_measured_and_whether_it_is_enough(result: Result) -> None:
    """Median, least, most, cost, ratios and verdicts stand in our line; a curve's points in their order."""
    lines = {tuple(cells[:2]): cells[2:] for cells in map(_cells, text(result).splitlines()) if len(cells) > 1}
    verdict = "≥ 10× dockerd: NOT met; ≤ 1.5× floor: NOT met"
    compared = "6× dockerd, 2× floor"
    assert lines["", OURS] == ["4.000 s", "2.000", "6.000", "2.500", "80.0", "5.000", compared, verdict]
    assert lines["Median by plugins known", "Side"] == ["1", "100"]
    assert lines["GET /plugins, req/CPU s", OURS] == ["1 000", "900"]


def test_what_was_not_measured_is_said(result: Result) -> None:
    """Both what could not begin and each side that failed, with its reason."""
    assert result.lacking() == ["ping: no luck", "GET /plugins, 100 plugins known, dockerd: OSError: gone"]
    assert all(f"- **not measured**: {why}" in text(result) for why in result.lacking())


def test_the_document_holds_every_figure_and_can_be_drawn(result: Result, tmp_path: Path) -> None:
    """The chart is made of the document alone; a goal that holds in memory only is none on disk."""
    on_disk = Result("/var/tmp", False, "20.10", result.rows, [], [])
    found = json.loads(document([result, on_disk], about={"size": "quick"}))
    memory, disk = (place["rows"][0] for place in found["places"])
    assert [figure["value"] for figure in memory["figures"][OURS]] == [6.0, 2.0, 4.0]
    assert (memory["wanted"]["of_dockerd"], disk["wanted"]["of_dockerd"]) == (10, None)
    assert list(found["places"][0]["curves"][0]["points"]) == ["1", "100"]
    assert chart._bars(memory) == {"dockerd": (6, 10), "floor": (0.5, 1 / 1.5)}
    chart.draw(found, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("value", "words"), [(0.123, "0.12"), (1, "1"), (9.94, "9.9"), (9.96, "10"), (212.4, "212")])
def test_a_ratio_has_two_digits_or_all_before_the_point(value: float, words: str) -> None:
    """More would promise what no measurement here holds."""
    assert ratio(value) == words


@pytest.mark.parametrize(("value", "words"), [(0.0586, "0.059"), (10.04, "10.0"), (123.4, "123"), (54566, "54 566")])
def test_a_figure_has_three_digits_or_all_before_the_point(value: float, words: str) -> None:
    """A column of figures can be read down."""
    assert number(value) == words
