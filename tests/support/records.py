"""Plugin records and events made of a number, for tests that only need them to differ."""

import sqlite3
from typing import Any

from pluginsvc.model.digest import Digest
from pluginsvc.model.event import EngineView, Event
from pluginsvc.model.plugin import PluginRecord
from pluginsvc.state import journal


def plugin_id(number: int) -> str:
    return f"{number:064x}"


def digest(number: int) -> Digest:
    return Digest.sha256(f"{number:064x}")


def record(number: int, **changes: Any) -> PluginRecord:
    values: dict[str, Any] = {
        "id": plugin_id(number),
        "name": f"p{number}:latest",
        "config": digest(number),
        "manifest": digest(number + 1),
        "blobs": [digest(number), digest(number + 1), digest(number + 2)],
    }
    return PluginRecord(**values | changes)


def event(number: int, **changes: Any) -> Event:
    values: dict[str, Any] = {
        "action": "enable",
        "plugin_id": plugin_id(number),
        "plugin_name": f"p{number}:latest",
        "attributes": {"n": str(number)},
        "engine": EngineView(actor=plugin_id(number), name=f"p{number}:latest"),
    }
    return Event(**values | changes)


def keep(db: sqlite3.Connection, events: int) -> int:
    """Delete all but so many events from the journal; return how many went."""
    return journal.prune(db, events=events, bytes_=2**62, before_ns=0, limit=10**6)
