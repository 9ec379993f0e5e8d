"""A plugin as our own API shows it: what is wished, what it does, since when, why, and what it said last."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from pluginsvc.model.lifecycle import Ended, State, Status
from pluginsvc.model.options import Options
from pluginsvc.model.plugin import PluginRecord
from pluginsvc.state.mounts import MountRow


class Exit(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """How the process last ended."""

    code: int
    signal: int | None
    oom: bool = msgspec.field(name="OOM")
    at: str

    @classmethod
    def of(cls, ended: Ended) -> Exit:
        """Return what is shown of an end."""
        return cls(code=ended.code, signal=ended.signal, oom=ended.oom, at=when(ended.time_ns))


class Summary(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """One line of the native list.

    Attributes:
        desired: the wish.
        reference: where its content came from.
        digest: of its manifest.
        state: see ``model.lifecycle``.
        since, next_try: RFC 3339, UTC; empty: unknown, or none.
        restarts: since it was enabled.
        failures: in a row.
    """

    id: str
    name: str
    reference: str
    digest: str
    desired: str
    state: State
    since: str
    reason: str
    exit: Exit | None
    restarts: int
    failures: int
    next_try: str

    @classmethod
    def of(cls, record: PluginRecord, status: Status, **more: Any) -> Any:
        """Return the view of a plugin."""
        return cls(
            id=record.id,
            name=record.name,
            reference=record.reference,
            digest=str(record.manifest),
            desired="enabled" if record.enabled else "disabled",
            state=status.state,
            since=when(status.since_ns),
            reason=status.reason,
            exit=Exit.of(status.exit) if status.exit else None,
            restarts=status.restarts,
            failures=status.failures,
            next_try=when(status.next_ns or 0),
            **more,
        )


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The native list as of one event.

    Attributes:
        seq: number of the last event that is in it; 0 when there was none.
        plugins: sorted by name.
    """

    seq: int
    plugins: list[Summary]


class Description(Summary, frozen=True, kw_only=True, rename="pascal"):
    """All of one plugin that Docker has no word for.

    Attributes:
        pid: of its first process, 0 when none runs.
        options: those that count; ``own_options`` are the plugin's own among them.
        log: its last lines, control characters escaped.
    """

    pid: int
    options: Options
    own_options: dict[str, Any]
    log: list[str]


class MountView(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """A mount that the daemon has made on the host.

    Attributes:
        plugin: name of the plugin it is for, empty once that is removed.
        state: ``mounted``, or ``leaving`` when it should be gone and is not.
        trouble: why it is not.
    """

    path: str
    plugin: str
    plugin_id: str = msgspec.field(name="PluginID")
    mount_id: int = msgspec.field(name="MountID")
    since: str
    state: str
    trouble: str

    @classmethod
    def of(cls, row: MountRow, plugin: str) -> MountView:
        """Return the view of a row of the ledger."""
        return cls(
            path=row.path,
            plugin=plugin,
            plugin_id=row.plugin_id,
            mount_id=row.mount_id,
            since=when(row.since_ns),
            state="leaving" if row.trouble else "mounted",
            trouble=row.trouble,
        )


def when(time_ns: int) -> str:
    """Return nanoseconds since the epoch as RFC 3339 with microseconds; nothing for 0."""
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat().replace("+00:00", "Z") if time_ns else ""
