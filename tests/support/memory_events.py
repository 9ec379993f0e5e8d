"""A journal and a bus in one list, for the manager that keeps all in memory."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

import anyio

from pluginsvc.model.event import EngineView, Event


class MemoryEvents:
    """A journal and a bus in one list."""

    def __init__(self) -> None:
        self.journal: list[Event] = []
        self._more = anyio.Event()

    def publish(self, action: str, actor: str, name: str) -> None:
        now = time.time_ns()
        view = EngineView(actor=actor, name=name)
        seq = len(self.journal) + 1
        event = Event(action=action, plugin_id=actor, plugin_name=name, engine=view, seq=seq, time_ns=now)
        self.journal.append(event)
        self._more.set()
        self._more = anyio.Event()

    @asynccontextmanager
    async def follow(
        self,
        *,
        since_ns: int | None = None,
        until_ns: int | None = None,
        wanted: Callable[[Event], bool],
        direct: Callable[[Event], bool],
    ) -> AsyncIterator[AsyncIterator[Event]]:
        replay = since_ns is not None or until_ns is not None
        async with aclosing(self._events(0 if replay else len(self.journal), since_ns, until_ns, wanted)) as events:
            yield events

    async def _events(
        self, at: int, since_ns: int | None, until_ns: int | None, wanted: Callable[[Event], bool]
    ) -> AsyncGenerator[Event, None]:
        while True:
            more = self._more
            for event in self.journal[at:]:
                inside = (since_ns or 0) <= event.time_ns and (until_ns is None or event.time_ns <= until_ns)
                if inside and wanted(event):
                    yield event
            at = len(self.journal)
            left = 1e9 if until_ns is None else (until_ns - time.time_ns()) / 1e9
            with anyio.move_on_after(max(0.0, left)) as limit:
                await more.wait()
            if limit.cancelled_caught:
                return
