"""Answers of the API that only ``pluginctl`` reads, and how they read as a line."""

from __future__ import annotations

import datetime as dt

import msgspec

from pluginsvc.model.progress import Line


class Disk(msgspec.Struct, rename="pascal"):
    """``GET /system/df``; in bytes."""

    layers_size: int


class Collected(msgspec.Struct, rename="pascal"):
    """``POST /pluginsvc/v1/gc``: digests, and their bytes."""

    removed: list[str]
    bytes: int


class Summary(msgspec.Struct, rename="pascal"):
    """A line of ``GET /pluginsvc/v1/plugins``, as far as it is shown."""

    id: str
    state: str


class Version(msgspec.Struct, rename="pascal"):
    """``GET /version``."""

    version: str
    api_version: str


class Actor(msgspec.Struct, rename="pascal"):
    """What an event is about."""

    id: str = msgspec.field(name="ID")
    attributes: dict[str, str] = {}


class EngineEvent(msgspec.Struct, rename="pascal"):
    """A line of ``GET /events`` (REF 1.7)."""

    type: str
    action: str
    actor: Actor
    time_ns: int = msgspec.field(name="timeNano")

    @property
    def text(self) -> str:
        """As ``docker events`` shows it, in local time."""
        seconds, nanoseconds = divmod(self.time_ns, 1_000_000_000)
        at = dt.datetime.fromtimestamp(seconds, dt.UTC).astimezone().isoformat()
        facts = ", ".join(f"{key}={value}" for key, value in sorted(self.actor.attributes.items()))
        return f"{at[:19]}.{nanoseconds:09}{at[19:]} {self.type} {self.action} {self.actor.id} ({facts})"


def progress_text(line: Line) -> str:
    """Return a line of progress for people; empty for counts, of which there are many (REF 1.5)."""
    if line.aux is not None:
        return f"{line.aux.tag}: digest: {line.aux.digest} size: {line.aux.size}"
    if line.progress_detail is not None and (line.progress_detail.current or line.progress_detail.total):
        return ""
    return f"{line.id}: {line.status}" if line.id and line.status else line.status
