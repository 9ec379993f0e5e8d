"""What every operation on plugins works with, and the one way to save a change."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import anyio
import structlog

from pluginsvc.content.store import ContentStore
from pluginsvc.errors import PluginsvcError
from pluginsvc.fsutil import boot_id
from pluginsvc.model.digest import Digest
from pluginsvc.model.event import EngineView, Event
from pluginsvc.model.lifecycle import State, Status
from pluginsvc.model.options import Options
from pluginsvc.model.plugin import PluginConfig, PluginRecord
from pluginsvc.plugins.disk import Disk
from pluginsvc.plugins.inventory import Entry, Inventory
from pluginsvc.plugins.mounts import Ledger
from pluginsvc.registry.client import Registry
from pluginsvc.rootfs.confinement import Confinement
from pluginsvc.runtime.executor import Executor
from pluginsvc.state import journal, leases, plugins
from pluginsvc.state import status as statuses
from pluginsvc.state.database import Database
from pluginsvc.tasks import KeyedLock
from pluginsvc.transfer.pull import Puller

_log = structlog.get_logger()
_LEASE_SECONDS = 24 * 3600
CLEANUP_SECONDS = 30.0
"""Longest time that clean-up after a failure may take while it is shielded from cancellation."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The rooms below, put together by the daemon.

    Attributes:
        collect: asks for a collection of garbage soon; returns at once.
        publish: brings published sockets up to date with what is enabled and up; never fails.
        gzip_level: for layers of created plugins, 0 (least) to 3.
        uploads: most uploads at once in one push.
        stop_grace: seconds from TERM to KILL.
        hurry: set when the daemon has no time left: nobody waits for a plugin to heed TERM.
        defaults: options of plugins that have none of their own.
        ended: leases whose end is still to be written; shared with the collection of garbage.
        changing: held by plugin ID while ``change`` works.
    """

    database: Database
    store: ContentStore
    disk: Disk
    mounts: Ledger
    inventory: Inventory
    registry: Registry
    puller: Puller
    confinement: Confinement
    executor: Executor
    collect: Callable[[], None]
    publish: Callable[[], Awaitable[None]]
    gzip_level: int = 2
    uploads: int = 5
    stop_grace: float = 10.0
    hurry: anyio.Event = field(default_factory=anyio.Event)
    defaults: Options = field(default_factory=Options)
    ended: set[str] = field(default_factory=set)
    changing: KeyedLock = field(default_factory=KeyedLock)

    async def save(
        self,
        record: PluginRecord,
        config: PluginConfig,
        *events: Event,
        release: str | None = None,
        status: Status | None = None,
    ) -> Entry:
        """Write a record and its events in one transaction, then show them (design D1).

        Args:
            record: the whole new record.
            config: its config, decoded.
            events: what happened, in order.
            release: lease that the record makes needless.
            status: what the plugin does now, where that has changed as well.
        """

        def work(db: sqlite3.Connection) -> None:
            plugins.put(db, record)
            if status is not None:
                statuses.put(db, record.id, status)
            for event in events:
                journal.append(db, event)
            if release:
                leases.release(db, release)

        await self.database.write(work)
        entry = Entry.of(record, config)
        self.inventory.put(entry)
        if status is not None:
            self.inventory.put_status(record.id, status)
        return entry

    async def change(self, plugin_id: str, change: Callable[[PluginRecord], PluginRecord], *events: Event) -> Entry:
        """Save a change of a record that may meet another one: of a plugin's owner beside the operator's."""
        async with self.changing(plugin_id):
            entry = self.inventory.get(plugin_id)
            return await self.save(change(entry.record), entry.config, *events)

    async def commit(
        self, staging: Path, record: PluginRecord, config: PluginConfig, *events: Event, release: str | None = None
    ) -> Entry:
        """Move a staged rootfs to where a new record says it is, and ``save`` that; undone whole on failure."""
        try:
            await self.disk.adopt(staging, record.id, record.generation)
            return await self.save(record, config, *events, release=release)
        except Exception:
            # not on cancellation: the transaction may have been committed
            await self.disk.retract(record.id, record.generation)
            raise

    async def note(self, *events: Event, status: tuple[str, Status] | None = None) -> None:
        """Write events that change no record; ``status``: with what the plugin of this ID does now."""

        def work(db: sqlite3.Connection) -> None:
            if status is not None:
                statuses.put(db, *status)
            for event in events:
                journal.append(db, event)

        await self.database.write(work)

    async def arrive(self, plugin_id: str, state: State, reason: str, *events: Event, **change: object) -> None:
        """Write down what a plugin does now, with its events, and then show it.

        What cannot be written is only logged, and shown: a full disk must not end the supervision of anything.

        Args:
            plugin_id: 64 hex digits.
            state: where it has come to.
            reason: why, for people.
            events: what happened, in order.
            change: other fields of its status.
        """
        before = self.inventory.status(plugin_id)
        status = before.to(state, now_ns=time.time_ns(), reason=reason, boot=boot_id(), **change)
        try:
            await self.note(*events, status=(plugin_id, status))
        except Exception as exc:  # noqa: BLE001 - whatever it was, supervision goes on
            known = isinstance(exc, PluginsvcError)
            _log.error(
                "plugin.status_not_written",
                plugin=plugin_id,
                state=state,
                error=str(exc),
                exc_info=None if known else exc,
            )
        finally:
            # not before: who sees it may look for the event
            self.inventory.put_status(plugin_id, status)

    def options(self, record: PluginRecord) -> Options:
        """Return the options that count for a plugin."""
        return self.defaults.with_own(record.options) if record.options else self.defaults

    @asynccontextmanager
    async def lease(self, purpose: str) -> AsyncIterator[str]:
        """Hold a lease inside the block; afterwards it is released, and what is garbage now is collected."""
        lease_id = uuid4().hex
        expires = time.time_ns() + _LEASE_SECONDS * 1_000_000_000
        try:
            await self.database.write(lambda db: leases.create(db, lease_id, expires_ns=expires, purpose=purpose))
            yield lease_id
        finally:
            self.ended.add(lease_id)
            with anyio.CancelScope(shield=True):
                await end_leases(self.database, self.ended)
            self.collect()

    async def hold(self, lease_id: str, digest: Digest) -> None:
        """Put a digest under a lease, before it is looked up or written."""
        await self.database.write(lambda db: leases.add(db, lease_id, digest))

    @asynccontextmanager
    async def staging(self) -> AsyncIterator[Path]:
        """Make a staging directory with an empty ``rootfs``; what is left of it after the block is deleted."""
        path = await self.disk.make_staging()
        try:
            yield path
        finally:
            with anyio.move_on_after(CLEANUP_SECONDS, shield=True):
                await self.disk.discard(path)


async def end_leases(database: Database, ended: set[str]) -> None:
    """Release the leases in ``ended`` and take them out; on a full disk they stay in, and the next call tries again."""
    leaving = list(ended)

    def work(db: sqlite3.Connection) -> None:
        for lease_id in leaving:
            leases.release(db, lease_id)

    if not leaving:
        return
    try:
        await database.write(work)
    except PluginsvcError as exc:
        _log.warning("leases.not_released", leases=leaving, error=str(exc))
    else:
        ended.difference_update(leaving)


def lifecycle(
    action: str, record: PluginRecord, engine: EngineView | None = None, *, attributes: dict[str, str] | None = None
) -> Event:
    """Build the event for ``action`` on the plugin of ``record``; ``engine=None`` keeps it off Docker's stream."""
    return Event(
        action=action, plugin_id=record.id, plugin_name=record.name, attributes=attributes or {}, engine=engine
    )
