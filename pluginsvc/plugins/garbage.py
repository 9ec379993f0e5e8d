"""Which blobs are needed: what the collection of garbage is told by plugins and by jobs under way (design D9)."""

from __future__ import annotations

import sqlite3
import time

from pluginsvc.content.store import ContentStore
from pluginsvc.model.digest import Digest
from pluginsvc.model.event import Event
from pluginsvc.plugins.parts import end_leases
from pluginsvc.state import leases, plugins
from pluginsvc.state.database import Database


def leaves_garbage(event: Event) -> bool:
    """Tell whether blobs may have lost their last user."""
    return event.action in {"remove", "upgrade"}


async def lease(database: Database, lease_id: str, digest: Digest) -> None:
    """Keep a blob for a job, before it is looked up or written."""
    await database.write(lambda db: leases.add(db, lease_id, digest))


async def roots(database: Database, ended: set[str]) -> set[Digest]:
    """Return what plugins name, and what jobs under way have leased."""
    await end_leases(database, ended)
    await database.write(lambda db: leases.expire(db, time.time_ns()))
    return await database.read(lambda db: plugins.digests(db) | leases.digests(db))


async def remove_unneeded(database: Database, store: ContentStore, digest: Digest) -> int | None:
    """Delete a blob in the transaction that sees that nothing needs it, so that no lease can come in between."""

    def work(db: sqlite3.Connection) -> int | None:
        if plugins.holds(db, digest) or leases.holds(db, digest):
            return None
        return store.remove(digest)

    return await database.write(work)
