"""Tells when something happens in the directories of legacy plugins, those that are still to come included."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import anyio
import anyio.abc
import structlog
from asyncinotify import Mask

from pluginsvc.directory.aside import Aside
from pluginsvc.directory.discovery import MAX_FOLDERS, Found, places
from pluginsvc.watches import Watches

_INTERVAL = 60.0
"""Seconds after which the directories are looked at though nothing has happened."""
_PAUSE = 0.1
"""Seconds between two looks, however much happens."""
_LOOK = 10.0
"""Seconds for a look at what is to be watched: where a mount hangs the others are not to wait for ever."""
_ROUNDS = 3
"""Looks in a row, while there is something else to be watched each time."""
_COMING = Mask.CREATE | Mask.CLOSE_WRITE | Mask.MOVED_TO
_GOING = Mask.MOVED_FROM | Mask.DELETE | Mask.DELETE_SELF | Mask.MOVE_SELF
_log = structlog.get_logger()


class Lookout:
    """Watches directories.

    Args:
        directories: of legacy plugins.
        sockets: RUN/plugins, in which nothing is looked at.
        active: gives the plugins that are in use, whose sockets are watched as well.
        clock: tells seconds.

    Attributes:
        next: is set at the next change, and then another.
    """

    def __init__(
        self,
        directories: Sequence[Path],
        sockets: Path,
        active: Callable[[], Iterable[Found]],
        clock: Callable[[], float],
    ) -> None:
        self._directories, self._sockets, self._active, self._clock = directories, sockets, active, clock
        self._aside = Aside(1)
        self._left_out = 0
        self._watches = Watches()
        self._places: dict[Path, frozenset[str] | None] = {}
        self._due = anyio.Event()
        self._looks: set[float] = set()
        self.next = anyio.Event()

    def look_at(self, when: float) -> None:
        """Have it taken for a change when the clock tells that time."""
        self._looks.add(when)
        self._due.set()

    async def serve(
        self, changed: Callable[[], None], *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Call ``changed`` and set ``next`` at each change, until cancelled."""
        async with anyio.create_task_group() as group:
            try:
                await group.start(self._watches.serve)
            except OSError as exc:
                _log.warning("legacy.unwatched", error=f"changes are seen every {_INTERVAL:.0f} s: {exc.strerror}")
            # the first look may take long, and counts as a change: what happened before it was not seen
            task_status.started()
            while True:
                self._due = anyio.Event()
                self._looks = {when for when in self._looks if when > self._clock()}
                await self._arm()
                self.next.set()
                self.next = anyio.Event()
                changed()
                await anyio.sleep(_PAUSE)
                with anyio.move_on_after(max(0.0, min([_INTERVAL, *(when - self._clock() for when in self._looks)]))):
                    await self._due.wait()

    async def _arm(self) -> None:
        """Watch what is to be watched now, until a look after that shows that nothing was missed.

        Where there is no end to that the rest is left to the next event or look.
        """
        for _ in range(_ROUNDS):
            try:
                with anyio.fail_after(_LOOK):
                    wanted, left_out = await self._aside.run(
                        places, self._directories, self._sockets, list(self._active())
                    )
            except TimeoutError:
                _log.warning("legacy.late", error=f"looking for what to watch took more than {_LOOK:.0f} s")
                return
            except Exception:  # noqa: BLE001 - no daemon is to end for want of a thread
                _log.exception("legacy.failed")
                return
            if left_out and not self._left_out:
                error = f"more than {MAX_FOLDERS} sub-directories: in the rest changes are seen every {_INTERVAL:.0f} s"
                _log.warning("legacy.unwatched", error=error, count=left_out)
            self._left_out = left_out
            for place in self._places.keys() - wanted.keys():
                self._watches.remove(place)
            for place in wanted.keys() - self._places.keys():
                self._watches.add(place, _COMING | _GOING, partial(self._notice, place))
            for place in wanted.keys() & self._places.keys():
                # one that was deleted and made again is another one
                self._watches.rearm(place)
            before, self._places = self._places, wanted
            if wanted == before:
                return

    def _notice(self, place: Path, name: Path | None) -> None:
        names = self._places.get(place)
        if name is None or names is None or str(name) in names:
            self._due.set()
