"""The way to one reader of events, past aiohttp's response, which would frame and account for each event anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import structlog
from aiohttp import HttpVersion11, web

from pluginsvc import metrics
from pluginsvc.events.forms import Origin
from pluginsvc.events.journal import EventReader
from pluginsvc.model.event import Event

_log = structlog.get_logger()
_KEPT = 256
"""Encoded events that are kept for readers who come to them a moment later."""


class Follow(Protocol):
    """``events.journal.follow``, bound to its database and bus."""

    def __call__(
        self,
        *,
        since_ns: int | None = None,
        until_ns: int | None = None,
        after_seq: int | None = None,
        wanted: Callable[[Event], bool],
        direct: Callable[[Sequence[Event]], bool],
    ) -> AbstractAsyncContextManager[EventReader]:
        """Enter once subscribed; the iterator replays when a bound is given, and ends at ``until_ns``.

        What happens while it waits may go to ``direct`` instead, which tells whether it took the events.
        """
        ...


class EventLog(Protocol):
    """What the streams are fed from; see ``events.journal.EventLog``."""

    @property
    def origin(self) -> Origin:
        """Return who tells of the events."""
        ...

    @property
    def follow(self) -> Follow:
        """Give events from there on."""
        ...

    async def number_at(self, since_ns: int | None) -> int:
        """Return the number after which events from this time on begin; of the last event for ``None``."""
        ...

    async def measure(self) -> None:
        """Set the gauges of the journal and the bus."""
        ...


class Form:
    """One way to put events on the wire; each is encoded once, because every reader gets the same bytes.

    Args:
        encode: one event, as a line or as lines.
    """

    def __init__(self, encode: Callable[[Event], bytes]) -> None:
        self._encode = encode
        self._one: dict[tuple[int, bool], bytes] = {}
        self._events: Sequence[Event] = ()
        self._joined: dict[bool, bytes] = {}

    def of(self, events: Sequence[Event], *, chunked: bool) -> bytes:
        """Return events as they go out, each a chunk of its own where the answer has chunks (RFC 9112 section 7.1)."""
        if events is not self._events:
            self._events, self._joined = events, {}
        found = self._joined.get(chunked)
        if found is None:
            found = self._joined[chunked] = b"".join([self._line(event, chunked=chunked) for event in events])
        return found

    def _line(self, event: Event, *, chunked: bool) -> bytes:
        key = event.seq, chunked
        line = self._one.get(key)
        if line is None:
            if len(self._one) >= _KEPT:
                self._one.clear()
            line = self._encode(event)
            line = self._one[key] = chunk(line) if chunked else line
        return line


class Pipe:
    """The way to one reader.

    Args:
        request: the reader's; its answer is prepared before the first write.
        timeout: seconds for which the reader may leave what it was sent unread.

    Raises:
        ConnectionResetError: it is gone already.
    """

    __slots__ = ("_chunked", "_request", "_timeout", "_transport")

    def __init__(self, request: web.BaseRequest, *, timeout: float) -> None:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client went away")
        self._request, self._transport, self._timeout = request, transport, timeout
        self._chunked = request.version >= HttpVersion11

    async def write_raw(self, data: bytes, *, framed: bytes | None = None) -> None:
        """Write, then wait until the client has read enough of what it was sent.

        Args:
            data: not empty.
            framed: ``data`` as a chunk, where many readers are to share what they have not read yet.

        Raises:
            ConnectionResetError: it is gone, or has read nothing for so long that it is cut off.
        """
        await self._send((framed or chunk(data)) if self._chunked else data)

    async def _send(self, data: bytes) -> None:
        if self._transport.is_closing():
            raise ConnectionResetError("the client went away")
        self._transport.write(data)
        if not self._request.protocol.writing_paused:
            return
        # in a task of its own: aiohttp's wait can be cancelled only once
        drained = asyncio.ensure_future(self._request.writer.drain())
        try:
            unread = self._transport.get_write_buffer_size() + 1
            # slow is not dead: as long as it reads at all, it has all the time it wants
            while (left := self._transport.get_write_buffer_size()) < unread:
                unread = left
                done, _ = await asyncio.wait([drained], timeout=self._timeout)
                if done:
                    drained.result()
                    return
        finally:
            drained.cancel()
        metrics.READERS_DROPPED.inc()
        _log.warning("events.reader_dropped", path=self._request.path, seconds=self._timeout)
        self._transport.abort()
        raise ConnectionResetError("the client read nothing")


class Outlet(Pipe):
    """What one reader of events is sent; see ``Pipe``.

    Args:
        request, timeout: as there.
        form: of the events.
    """

    __slots__ = ("_form",)

    def __init__(self, request: web.BaseRequest, form: Form, *, timeout: float) -> None:
        super().__init__(request, timeout=timeout)
        self._form = form

    def direct(self, events: Sequence[Event]) -> bool:
        """Write events unless the client has too much unread (asyncio's high-water mark); tell whether it did."""
        if self._request.protocol.writing_paused or self._transport.is_closing():
            return False
        self._transport.write(self._form.of(events, chunked=self._chunked))
        return True

    async def write(self, event: Event) -> None:
        """Write an event as ``write_raw`` writes bytes."""
        await self._send(self._form.of((event,), chunked=self._chunked))


def chunk(data: bytes) -> bytes:
    """Return data as one chunk of an HTTP/1.1 body."""
    return b"%x\r\n%b\r\n" % (len(data), data)
