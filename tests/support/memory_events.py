"""A journal and a bus in one list, for the manager that keeps all in memory."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import anyio

from pluginsvc.events.forms import Origin
from pluginsvc.model.event import EngineView, Event

ORIGIN = Origin("0b1c7a52-6d0f-4a67-9d5e-2f1e6a2b3c4d", "web-1.example")


class MemoryEvents:
    """A journal and a bus in one list."""

    def __init__(self) -> None:
        self.journal: list[Event] = []
        self.origin = ORIGIN
        self.more = anyio.Event()

    def publish(self, action: str, actor: str, name: str) -> None:
        now = time.time_ns()
        view = EngineView(actor=actor, name=name)
        seq = len(self.journal) + 1
        event = Event(action=action, plugin_id=actor, plugin_name=name, engine=view, seq=seq, time_ns=now)
        self.journal.append(event)
        self.more.set()
        self.more = anyio.Event()

    @asynccontextmanager
    async def follow(
        self,
        *,
        since_ns: int | None = None,
        until_ns: int | None = None,
        after_seq: int | None = None,
        wanted: Callable[[Event], bool],
        direct: Callable[[Sequence[Event]], bool],
    ) -> AsyncIterator[Any]:
        replay = since_ns is not None or until_ns is not None
        start = after_seq if after_seq is not None else 0 if replay else len(self.journal)
        yield MemoryReader(self, start, since_ns or 0, until_ns, wanted)

    async def number_at(self, since_ns: int | None) -> int:
        return sum(since_ns is None or event.time_ns < since_ns for event in self.journal)

    async def measure(self) -> None:
        pass


class MemoryReader:
    """One reader of the list; to cancel its iteration loses nothing."""

    def __init__(
        self,
        events: MemoryEvents,
        position: int,
        since_ns: int,
        until_ns: int | None,
        wanted: Callable[[Event], bool],
    ) -> None:
        self._events, self._since_ns, self._until_ns, self._wanted = events, since_ns, until_ns, wanted
        self.position = position

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while True:
            more = self._events.more
            for event in self._events.journal[self.position :]:
                self.position = event.seq
                inside = self._since_ns <= event.time_ns and (self._until_ns is None or event.time_ns <= self._until_ns)
                if inside and self._wanted(event):
                    return event
            left = 1e9 if self._until_ns is None else (self._until_ns - time.time_ns()) / 1e9
            with anyio.move_on_after(max(0.0, left)) as limit:
                await more.wait()
            if limit.cancelled_caught:
                raise StopAsyncIteration
