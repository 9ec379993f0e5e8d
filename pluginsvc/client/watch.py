"""Who is ready with a capability and who goes, over all losses of the connection."""

from __future__ import annotations

from collections import deque
from typing import Final, Literal, NamedTuple, Self

import aiohttp
import msgspec
from anyio import sleep

from pluginsvc.client.answers import Provider
from pluginsvc.client.wire import Wire
from pluginsvc.errors import Unavailable

SILENCE: Final = 60.0
"""Seconds without a byte, heartbeats included, after which the connection is lost: four heartbeats."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0


class Change(NamedTuple):
    """A plugin can be called from now on, or cannot any more.

    Attributes:
        kind: which of the two.
        plugin: as it is, or was.
    """

    kind: Literal["ready", "gone"]
    plugin: Provider


class Watch:
    """Iterates over changes, for one task at a time; a wait that is cancelled loses nothing.

    Args:
        wire: to the daemon.
        path: of the stream.
    """

    def __init__(self, wire: Wire, path: str) -> None:
        self._wire, self._path = wire, path
        self._response: aiohttp.ClientResponse | None = None
        self._held = b""
        self._known = _Known()
        self._changes: deque[Change] = deque()
        self._pause = _FIRST_PAUSE

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> Change:
        """Return the next change, however long that takes, and however often the daemon goes away meanwhile."""
        while not self._changes:
            try:
                if self._response is None:
                    await self.connect()
                elif data := await self._read(self._response):
                    self._take(data)
                else:
                    self.close()
            except Unavailable:
                self.close()
            if self._response is None:
                await sleep(self._pause)
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return self._changes.popleft()

    async def connect(self) -> None:
        """Begin, or go on."""
        self._response = await self._wire.send("GET", self._path, silence=SILENCE)
        self._known.begin()
        self._held = b""

    def close(self) -> None:
        """End the connection; the next change is waited for on another."""
        if self._response is not None:
            self._response.close()
            self._response = None

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        with self._wire.converted():
            return await response.content.readany()

    def _take(self, data: bytes) -> None:
        """Take the blocks that are whole."""
        *blocks, self._held = (self._held + data).split(b"\n\n")
        for block in blocks:
            fields = {key: value for key, _, value in (line.partition(b": ") for line in block.split(b"\n"))}
            with self._wire.converted():
                self._changes += self._known.changes(fields.get(b"event", b""), fields.get(b"data", b""))
            self._pause = _FIRST_PAUSE


class _Known:
    """The plugins that are ready, as far as we were told."""

    def __init__(self) -> None:
        self._ready: dict[tuple[str, str], Provider] = {}
        self._doubtful: set[tuple[str, str]] = set()

    def begin(self) -> None:
        """Take it that we are told again of all that are ready."""
        self._doubtful = set(self._ready)

    def changes(self, kind: bytes, data: bytes) -> list[Change]:
        """Return what is new about what the daemon says."""
        if kind == b"current":
            gone = [Change("gone", self._ready.pop(key)) for key in sorted(self._doubtful)]
            self._doubtful.clear()
            return gone
        if kind not in {b"ready", b"gone"}:
            return []
        plugin = msgspec.json.decode(data, type=Provider)
        key = (plugin.id, "" if plugin.id else plugin.name)
        before = self._ready.pop(key, None)
        self._doubtful.discard(key)
        if kind == b"ready":
            self._ready[key] = plugin
            if before is not None and _start(before) == _start(plugin):
                return []
        found = [Change("gone", before)] if before is not None else []
        return [*found, Change("ready", plugin)] if kind == b"ready" else found


def _start(plugin: Provider) -> tuple[object, ...]:
    """Return what is the same as long as a plugin lives on."""
    return plugin.run, plugin.name, plugin.address, plugin.capabilities
