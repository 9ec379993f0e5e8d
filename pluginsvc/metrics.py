"""What the daemon counts and measures, for ``GET /metrics``; docs/metrics.md lists all of it for operators.

Plain objects of prometheus-client in a registry of our own, used where the thing happens. What is a state and no count
(plugins by state, sizes) is set when somebody asks. No label takes a value that users choose: names of plugins, of
registries or of clients are in the log.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Final

import anyio
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)

from pluginsvc.errors import PluginsvcError, first_leaf

# a sample more for each series, which tells no more than process_start_time_seconds
disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotation

REGISTRY: Final = CollectorRegistry(auto_describe=True)
ProcessCollector(registry=REGISTRY)
BUILD: Final = Info("pluginsvc_build", "What runs.", registry=REGISTRY)

_FAST: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Upper bounds in seconds for what takes milliseconds."""
_LAG: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_WORK: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Upper bounds in seconds for what takes from a transaction to a download of gigabytes."""

# Plugins and what is done to them

PLUGINS: Final = Gauge("pluginsvc_plugins", "Plugins by what they are doing.", ["state"], registry=REGISTRY)
OPERATIONS: Final = Counter(
    "pluginsvc_operations",
    "Operations that ended, by how: ok, refused (the request is wrong, or the moment), failed, cancelled.",
    ["operation", "outcome"],
    registry=REGISTRY,
)
OPERATION_SECONDS: Final = Histogram(
    "pluginsvc_operation_duration_seconds",
    "How long operations took that ended well, waits for other operations on the same plugin included.",
    ["operation"],
    buckets=_WORK,
    registry=REGISTRY,
)
_OPERATIONS: Final = (
    "acquire",
    "create",
    "disable",
    "enable",
    "gc",
    "pull",
    "push",
    "remove",
    "set",
    "update",
    "upgrade",
)
# there from the start: of a counter that appears with its first failure, nobody sees the increase
_ENDS: Final = {
    (operation, outcome): OPERATIONS.labels(operation, outcome)
    for operation, outcome in product(_OPERATIONS, ("ok", "refused", "failed", "cancelled"))
}
_SECONDS: Final = {operation: OPERATION_SECONDS.labels(operation) for operation in _OPERATIONS}

# Bytes

TRANSFERRED: Final = Counter(
    "pluginsvc_transfer_bytes",
    "Bytes of blobs and manifests that came from registries or went to them, in tries that failed as well.",
    ["direction"],
    registry=REGISTRY,
)
DOWNLOADED: Final = TRANSFERRED.labels("download")
UPLOADED: Final = TRANSFERRED.labels("upload")
GC_BLOBS: Final = Counter("pluginsvc_gc_removed_blobs", "Blobs that collections removed.", registry=REGISTRY)
GC_BYTES: Final = Counter("pluginsvc_gc_removed_bytes", "Bytes that collections freed.", registry=REGISTRY)

# Events

EVENTS: Final = Counter("pluginsvc_events", "Lifecycle events published.", ["action"], registry=REGISTRY)
EVENT_DELIVERY: Final = Histogram(
    "pluginsvc_event_delivery_seconds",
    "From the commit of an event until every reader that keeps up had it.",
    buckets=_FAST,
    registry=REGISTRY,
)
EVENT_STREAMS: Final = Gauge(
    "pluginsvc_event_streams", "Event streams that are open, by whose form they have.", ["kind"], registry=REGISTRY
)
READERS_DROPPED: Final = Counter(
    "pluginsvc_event_readers_dropped", "Event streams cut because nobody read them.", registry=REGISTRY
)
BUS_SUBSCRIBERS: Final = Gauge(
    "pluginsvc_bus_subscribers",
    "Subscribers to the bus: event streams that keep up, and the daemon's own.",
    registry=REGISTRY,
)
BUS_DEPTH: Final = Gauge("pluginsvc_bus_depth", "Events that wait in the fullest buffer.", registry=REGISTRY)
BUS_OVERFLOWS: Final = Counter(
    "pluginsvc_bus_overflows",
    "Buffers of subscribers that overflowed; such a subscriber goes on from the journal.",
    registry=REGISTRY,
)
SUBSCRIBER_FAILURES: Final = Counter(
    "pluginsvc_subscriber_failures",
    "Failures of the daemon's own subscribers, each of which was started again.",
    ["subscriber"],
    registry=REGISTRY,
)
SINK_EVENTS: Final = Counter("pluginsvc_sink_events", "Events a sink has taken.", ["sink"], registry=REGISTRY)
SINK_FAILURES: Final = Counter(
    "pluginsvc_sink_failures", "Tries to hand events to a sink that failed.", ["sink"], registry=REGISTRY
)
SINK_SEQUENCE: Final = Gauge(
    "pluginsvc_sink_sequence", "Number of the last event that a sink has taken.", ["sink"], registry=REGISTRY
)
JOURNAL_EVENTS: Final = Gauge("pluginsvc_journal_events", "Events that the journal holds.", registry=REGISTRY)
JOURNAL_BYTES: Final = Gauge("pluginsvc_journal_bytes", "Bytes of text of those events.", registry=REGISTRY)
JOURNAL_OLDEST: Final = Gauge(
    "pluginsvc_journal_oldest_sequence",
    "Number of the oldest event that is kept; of the next one when none is.",
    registry=REGISTRY,
)
JOURNAL_NEWEST: Final = Gauge(
    "pluginsvc_journal_newest_sequence", "Number of the last event; 0 before the first.", registry=REGISTRY
)

# The daemon itself

TASKS: Final = Gauge("pluginsvc_tasks", "Tasks of the event loop.", registry=REGISTRY)
LOOP_LAG: Final = Histogram(
    "pluginsvc_loop_lag_seconds",
    "How much later than it should the event loop came back to a task that slept.",
    buckets=_LAG,
    registry=REGISTRY,
)


@contextmanager
def operation(name: str) -> Iterator[None]:
    """Count how the block ends, and how long it took if it ends well.

    Args:
        name: one of the operations of docs/metrics.md.
    """
    started = time.perf_counter()
    with unless_done(name):
        yield
    _ENDS[name, "ok"].inc()
    _SECONDS[name].observe(time.perf_counter() - started)


@contextmanager
def unless_done(name: str) -> Iterator[None]:
    """Count how the block fails, if it does: for what comes before an operation and can already refuse it."""
    try:
        yield
    except BaseException as exc:
        _ENDS[name, _outcome(exc)].inc()
        raise


async def watch_loop(interval: float = 0.5) -> None:
    """Measure how late the loop is, again and again; ends only by cancellation.

    Args:
        interval: seconds to sleep; what holds the loop up for a shorter time is met by chance.
    """
    while True:
        # not the loop's clock, which stands still while the loop is held up
        due = time.perf_counter() + interval
        await anyio.sleep(interval)
        LOOP_LAG.observe(max(0.0, time.perf_counter() - due))


def _outcome(error: BaseException) -> str:
    leaf = first_leaf(error)
    if not isinstance(leaf, Exception):
        return "cancelled"
    if isinstance(leaf, PluginsvcError) and 400 <= leaf.status < 500:
        return "cancelled" if leaf.status == 499 else "refused"
    return "failed"
