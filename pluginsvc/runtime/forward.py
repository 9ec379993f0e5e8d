"""Passes plugins' output on to the daemon's log, and rotates their log files.

Watches fire once and are set again before each look, and there is at most one look per plugin and interval: a plugin
that floods costs a bounded share of the loop, and what comes too fast for that is skipped here (it is in the file).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import anyio
import msgspec
import structlog
from anyio import to_thread
from asyncinotify import Mask

from pluginsvc.runtime.bundle import LOG_NAME, Mark, Place, replace
from pluginsvc.runtime.levels import level_of
from pluginsvc.runtime.logs import Batch, Reader
from pluginsvc.runtime.monitor import reopen_log
from pluginsvc.watches import Watches

_log = structlog.get_logger()
_INTERVAL = 0.1
_LOOK = 16 * 1024
_LAST_LOOKS = 16


class Followed:
    """One plugin whose log is passed on. ``step`` blocks, and is called by one task at a time, which holds ``lock``.

    Args:
        place: of the plugin's files.
        since: where its log begins, unless part of it was passed on before the daemon was restarted.
        size: bytes above which the log file is renamed.
        count: most files to keep.
    """

    def __init__(self, place: Place, since: Mark, *, size: int, count: int) -> None:
        self.place = place
        self.lock = anyio.Lock()
        self._since = since
        self._size, self._count = size, count
        self._reader: Reader | None = None
        self._reopening = False

    def step(self) -> Batch:
        """Read on a bounded amount, note how far that was, and rotate when it is time."""
        if self._reader is None:
            self._reader = Reader(self.place.logs, self._noted() or self._since)
        before = self._reader.position
        batch = self._reader.read(_LOOK)
        if self._reader.position != before:
            # noted before it is passed on: a crash in between costs lines of the daemon's log, and doubles none
            replace(self.place.position, msgspec.json.encode(self._reader.position))
        self._rotate()
        return batch

    def _noted(self) -> Mark | None:
        try:
            return msgspec.json.decode(self.place.position.read_bytes(), type=Mark)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def _rotate(self) -> None:
        log = self.place.logs / LOG_NAME
        try:
            size = log.stat().st_size
        except FileNotFoundError:
            # asked once: a second new file would replace the first with all that is in it. We get here without
            # having asked when the daemon died after the renaming.
            if not self._reopening:
                self._reopen(log)
            return
        self._reopening = False
        if size <= self._size:
            return
        for number in range(self._count - 1, 0, -1):
            newer = log.with_name(f"{LOG_NAME}.{number - 1}") if number > 1 else log
            with contextlib.suppress(FileNotFoundError):
                newer.replace(log.with_name(f"{LOG_NAME}.{number}"))
        self._reopen(log)

    def _reopen(self, log: Path) -> None:
        # the monitor ends when it cannot make this file, so it is made for it
        os.close(os.open(f"{log}.tmp", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._reopening = reopen_log(self.place)


class Forwarder:
    """Follows the logs of all running plugins.

    Args:
        watches: tell when a plugin has printed something.
        size: bytes above which a log file is renamed.
        count: most files to keep of each plugin, 2 at least.
    """

    def __init__(self, watches: Watches, *, size: int, count: int) -> None:
        self._watches = watches
        self._size, self._count = size, count
        self._followed: dict[str, Followed] = {}
        self._pending: set[str] = set()
        self._printed: dict[str, anyio.Event] = {}
        self._wake = anyio.Event()

    def follow(self, place: Place, since: Mark) -> None:
        """Pass on what a plugin prints from ``since`` on, until ``release``; followed already is fine."""
        plugin_id = place.plugin_id
        if plugin_id in self._followed:
            return
        self._followed[plugin_id] = Followed(place, since, size=self._size, count=self._count)
        self._watches.add(place.logs, Mask.MODIFY | Mask.ONESHOT, lambda _: self._look_soon(plugin_id))
        self._look_soon(plugin_id)

    def printed(self, plugin_id: str) -> anyio.Event:
        """Return an event that is set once the plugin, running or started later, has printed something from now on."""
        return self._printed.setdefault(plugin_id, anyio.Event())

    async def release(self, plugin_id: str) -> None:
        """Pass on what is left, within reason, and forget the plugin."""
        followed = self._followed.pop(plugin_id, None)
        if event := self._printed.pop(plugin_id, None):
            event.set()
        if followed is None:
            return
        self._watches.remove(followed.place.logs)
        for _ in range(_LAST_LOOKS):
            if not await self._look(followed):
                return

    async def serve(self) -> None:
        """Pass on until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = anyio.Event()
            pending, self._pending = self._pending, set()
            for plugin_id in pending:
                followed = self._followed.get(plugin_id)
                if followed is None:
                    continue
                # before the look, so that nothing falls in between
                self._watches.rearm(followed.place.logs)
                if await self._look(followed):
                    self._look_soon(plugin_id)
            # the least time between two looks at one plugin
            await anyio.sleep(_INTERVAL)

    def _look_soon(self, plugin_id: str) -> None:
        self._pending.add(plugin_id)
        self._wake.set()

    async def _look(self, followed: Followed) -> bool:
        """Pass on one batch; true when there is more."""
        plugin_id = followed.place.plugin_id
        if event := self._printed.pop(plugin_id, None):
            event.set()
        async with followed.lock:
            try:
                batch = await to_thread.run_sync(followed.step)
            except OSError as exc:
                _log.warning("plugin.log_unreadable", plugin=plugin_id, error=str(exc))
                return False
        if batch.skipped:
            _log.warning("plugin.output_skipped", plugin=plugin_id, bytes=batch.skipped)
        for stream, line in batch.lines:
            getattr(_log, level_of(stream, line))("plugin.output", plugin=plugin_id, stream=stream, line=line)
        return batch.more
