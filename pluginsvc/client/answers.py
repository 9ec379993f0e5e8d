"""Answers of the API that only its clients read, and how they read as a line."""

from __future__ import annotations

import re

import msgspec

from pluginsvc.model.event import Gap
from pluginsvc.model.progress import Line

_PLAIN = re.compile(r'[^\s"=\\]+')


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
    name: str
    desired: str
    state: str


class Offer(msgspec.Struct, frozen=True, rename="pascal"):
    """A line of ``GET /pluginsvc/v1/capabilities``: what is provided, and the names of the plugins that do."""

    capability: str
    plugins: list[str]


class Provider(msgspec.Struct, frozen=True, rename="pascal", omit_defaults=True):
    """A plugin, as those find it who want what it provides.

    Attributes:
        name: familiar local name with tag; of a legacy plugin its only name.
        id: 64 hex digits; empty for a legacy plugin.
        kind: ``managed`` or ``legacy``.
        state: what it does.
        address: where it is called.
        capabilities: what it provides, each ``prefix.name/version``.
        run: tells its starts apart, also over those of the daemon; empty where the daemon does not say.
    """

    name: str
    id: str = msgspec.field(name="ID")
    kind: str
    state: str
    address: str
    capabilities: list[str]
    run: str = ""


class Version(msgspec.Struct, rename="pascal"):
    """``GET /version``."""

    version: str
    api_version: str


class Snapshot(msgspec.Struct):
    """The plugins as of one event of ``GET /pluginsvc/v1/events``, as far as they are shown."""

    plugins: list[Summary]


class GapFound(msgspec.Struct):
    """Events that the daemon does not keep any more."""

    gap: Gap


class Subject(msgspec.Struct):
    """The plugin that an event is about."""

    id: str
    name: str


class NativeEvent(msgspec.Struct):
    """An event of ``GET /pluginsvc/v1/events``."""

    time: str
    action: str
    plugin: Subject
    attributes: dict[str, str]

    @property
    def text(self) -> str:
        """A line, in UTC; a value that could be taken for something else is quoted as in JSON."""
        facts = [f"{key}={_quoted(value)}" for key, value in sorted(self.attributes.items())]
        return " ".join([f"{self.time[:23]}Z {self.action} {self.plugin.name} ({self.plugin.id[:12]}…)", *facts])


def _quoted(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else msgspec.json.encode(value).decode()


def progress_text(line: Line) -> str:
    """Return a line of progress for people; empty for counts, of which there are many (REF 1.5)."""
    if line.aux is not None:
        return f"{line.aux.tag}: digest: {line.aux.digest} size: {line.aux.size}"
    if line.progress_detail is not None and (line.progress_detail.current or line.progress_detail.total):
        return ""
    return f"{line.id}: {line.status}" if line.id and line.status else line.status
