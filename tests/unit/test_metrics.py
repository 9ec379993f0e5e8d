"""What is counted, how operations are judged, and that docs/metrics.md lists all of it."""

import re
import time

import anyio
import pytest
from anyio.lowlevel import checkpoint

from pluginsvc import metrics
from pluginsvc.errors import KINDS, Cancelled, Conflict, Internal, NotFound, PluginsvcError
from pluginsvc.metrics import REGISTRY, operation, unless_done, watch_loop
from tests.support.parts import PROJECT

DOCUMENT = (PROJECT / "docs" / "metrics.md").read_text()


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def ends(name: str) -> dict[str, float]:
    found = ("ok", "refused", "failed", "cancelled")
    return {outcome: value("pluginsvc_operations_total", operation=name, outcome=outcome) for outcome in found}


def names() -> set[str]:
    """Return the name of each metric as it is scraped."""
    suffixes = {"counter": "_total", "info": "_info"}
    return {family.name + suffixes.get(family.type, "") for family in REGISTRY.collect()}


def test_documented() -> None:
    """The document has a row for each metric, and for nothing else."""
    rows = re.findall(r"^\| `([a-z_]+)` \| (counter|gauge|histogram) \|", DOCUMENT, re.MULTILINE)
    assert {name for name, _ in rows} == names()
    assert len(rows) == len(names())
    kinds = {family.name: family.type for family in REGISTRY.collect()}
    for name, kind in rows:
        found = kinds.get(name) or kinds.get(name.removesuffix("_total")) or kinds[name.removesuffix("_info")]
        assert kind == {"info": "gauge"}.get(found, found), name


def test_each_has_an_alert() -> None:
    """The document's alerts name every metric but one that means little, and no other."""
    alerts = "\n".join(re.findall(r"^ {4}.*", DOCUMENT, re.MULTILINE))
    used = {re.sub("_bucket$", "", name) for name in re.findall(r"\b(?:pluginsvc|process)_[a-z_]+", alerts)}
    assert used == names() - {"process_virtual_memory_bytes"}


def test_labels_are_bounded() -> None:
    """No metric has a label whose values users choose."""
    known = {"state", "operation", "outcome", "direction", "action", "kind", "subscriber", "sink", "version", "le"}
    used = {label for family in REGISTRY.collect() for sample in family.samples for label in sample.labels}
    assert used <= known


def test_operations_are_there_before_the_first() -> None:
    """Each operation that the document names has all outcomes as series from the start, and there are no others."""
    (line,) = re.findall(r"^- `operation`: (.*?)\n  A `gc`", DOCUMENT, re.MULTILINE | re.DOTALL)
    operations = set(re.findall("`([a-z]+)`", line))
    (family,) = (found for found in REGISTRY.collect() if found.name == "pluginsvc_operations")
    pairs = {(sample.labels["operation"], sample.labels["outcome"]) for sample in family.samples}
    assert pairs == {(name, end) for name in operations for end in ("ok", "refused", "failed", "cancelled")}


def test_operation_that_ends_well() -> None:
    """It is counted as ok, with its duration."""
    before, timed = ends("set"), value("pluginsvc_operation_duration_seconds_count", operation="set")
    with operation("set"):
        pass
    assert ends("set") == before | {"ok": before["ok"] + 1}
    assert value("pluginsvc_operation_duration_seconds_count", operation="set") == timed + 1


@pytest.mark.parametrize("kind", KINDS)
def test_outcome_of_a_kind(kind: type[PluginsvcError]) -> None:
    """What the caller can mend is refused, who goes away cancels, all else has failed; durations tell of none."""
    outcome = "cancelled" if kind is Cancelled else "refused" if kind.status < 500 else "failed"
    before, timed = ends("set"), value("pluginsvc_operation_duration_seconds_count", operation="set")
    with pytest.raises(kind), operation("set"):
        raise kind("x")
    assert ends("set") == before | {outcome: before[outcome] + 1}
    assert value("pluginsvc_operation_duration_seconds_count", operation="set") == timed


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError("a bug"), "failed"),
        (ExceptionGroup("g", [OSError("x"), NotFound("y")]), "refused"),
        (ExceptionGroup("g", [OSError("x"), Internal("y")]), "failed"),
        (BaseExceptionGroup("g", [KeyboardInterrupt()]), "cancelled"),
    ],
)
def test_outcome_of_others(error: BaseException, outcome: str) -> None:
    """A bug counts as failed, and a group as what is shown of it."""
    before = ends("set")
    with pytest.raises(type(error)), operation("set"):
        raise error
    assert ends("set") == before | {outcome: before[outcome] + 1}


@pytest.mark.anyio
async def test_cancelled() -> None:
    """An operation that is cancelled is counted as that, and the cancellation goes on."""
    before = ends("pull")
    with anyio.CancelScope() as scope, operation("pull"):
        scope.cancel()
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert ends("pull") == before | {"cancelled": before["cancelled"] + 1}


def test_unless_done() -> None:
    """What comes before an operation counts only where it refuses."""
    before = ends("push")
    with unless_done("push"):
        pass
    assert ends("push") == before
    with pytest.raises(Conflict), unless_done("push"):
        raise Conflict("x")
    assert ends("push") == before | {"refused": before["refused"] + 1}


@pytest.mark.anyio
async def test_loop_lag() -> None:
    """A loop that is held up is seen to come late by as much."""
    count, total = "pluginsvc_loop_lag_seconds_count", "pluginsvc_loop_lag_seconds_sum"
    before, late = value(count), value(total)
    async with anyio.create_task_group() as group:
        group.start_soon(watch_loop, 0.01)
        await checkpoint()
        await checkpoint()
        time.sleep(0.2)  # it is to hold the loop up
        with anyio.fail_after(10):
            while value(count) == before:
                await checkpoint()
        group.cancel_scope.cancel()
    assert value(total) - late > 0.1


def test_without_created() -> None:
    """No series comes twice, as a time of its creation."""
    samples = [sample.name for family in REGISTRY.collect() for sample in family.samples]
    assert samples
    assert not [name for name in samples if name.endswith("_created")]


def test_hot_counters_are_made_once() -> None:
    """Bytes are counted on objects that need no look-up."""
    before = value("pluginsvc_transfer_bytes_total", direction="download")
    metrics.DOWNLOADED.inc(7)
    assert value("pluginsvc_transfer_bytes_total", direction="download") == before + 7
