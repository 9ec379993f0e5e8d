"""``GET /events``: the Engine's event stream (REF 1.7)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from aiohttp import HttpVersion11, web

from pluginsvc.api.params import event_time
from pluginsvc.api.replies import JSON
from pluginsvc.api.stream import OpenStreams, open_stream
from pluginsvc.errors import InvalidParameter
from pluginsvc.events.filters import engine_filter, engine_message
from pluginsvc.model.event import Event
from pluginsvc.model.filters import parse_filters

_SEQUENCE = "application/json-seq"
_BY_NAME = frozenset({"application/jsonl", "application/x-ndjson", _SEQUENCE})


class InvalidSpan(InvalidParameter):
    """``since`` lies after ``until``."""

    def __init__(self, since: str, until: str) -> None:
        self.since, self.until = since, until
        super().__init__(f"`since` time ({since}) cannot be after `until` time ({until})")


class Follow(Protocol):
    """``events.journal.follow``, bound to its database and bus."""

    def __call__(
        self,
        *,
        since_ns: int | None,
        until_ns: int | None,
        wanted: Callable[[Event], bool],
        direct: Callable[[Event], bool],
    ) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Enter once subscribed; the iterator replays when a bound is given, and ends at ``until``.

        What happens while it waits may go to ``direct`` instead, which tells whether it took the event.
        """
        ...


class _Form:
    """One way to put events on the wire; the last one is kept, because each reader gets the same bytes."""

    __slots__ = ("_bytes", "_chunked", "_event", "_mark")

    def __init__(self, mark: bytes, *, chunked: bool) -> None:
        self._mark, self._chunked = mark, chunked
        self._event: Event | None = None
        self._bytes = b""

    def of(self, event: Event) -> bytes:
        """Return a line, which is a chunk of its own where the answer has chunks (RFC 9112 section 7.1)."""
        if event is not self._event:
            line = self._mark + engine_message(event) + b"\n"
            self._bytes = b"%x\r\n%b\r\n" % (len(line), line) if self._chunked else line
            self._event = event
        return self._bytes


class _Outlet:
    """The way to one reader, past aiohttp's response, which would frame and account for each event anew."""

    __slots__ = ("_form", "_request", "_transport")

    def __init__(self, request: web.BaseRequest, transport: asyncio.Transport, form: _Form) -> None:
        self._request, self._transport, self._form = request, transport, form

    def direct(self, event: Event) -> bool:
        """Write an event unless the client has too much unread (asyncio's high-water mark); tell whether it did."""
        if self._request.protocol.writing_paused or self._transport.is_closing():
            return False
        self._transport.write(self._form.of(event))
        return True

    async def write(self, event: Event) -> None:
        """Write an event, then wait until the client has read enough of what it was sent.

        Raises:
            ConnectionResetError: it is gone.
        """
        if self._transport.is_closing():
            raise ConnectionResetError("the client went away")
        self._transport.write(self._form.of(event))
        await self._request.writer.drain()


class EventStreams(OpenStreams):
    """Serves event streams."""

    def __init__(self, follow: Follow) -> None:
        super().__init__()
        self._follow = follow
        self._forms = {
            (mark, chunked): _Form(mark, chunked=chunked) for mark in (b"", b"\x1e") for chunked in (False, True)
        }

    async def serve(self, request: web.BaseRequest, _name: str) -> web.StreamResponse:
        """Send what happens until ``until``, for ever without it."""
        query = request.query
        since, until = event_time(query, "since"), event_time(query, "until")
        if since is not None and until is not None and until < since:
            raise InvalidSpan(query["since"], query["until"])
        wanted = engine_filter(parse_filters(query.get("filters", "")))
        kind = content_type(request.headers.get("Accept", ""))
        mark = b"\x1e" if kind == _SEQUENCE else b""
        response = open_stream(request, kind)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client went away")
        outlet = _Outlet(request, transport, self._forms[mark, request.version >= HttpVersion11])
        with self.opened():
            # the client may act as soon as it has the headers, so we subscribe first
            async with self._follow(since_ns=since, until_ns=until, wanted=wanted, direct=outlet.direct) as events:
                await response.prepare(request)
                async for event in events:
                    await outlet.write(event)
        return response


def content_type(accept: str) -> str:
    """Return the content type: what ``Accept`` names exactly, else that of API versions below 1.52."""
    for item in accept.split(","):
        kind = item.partition(";")[0].strip().lower()
        if kind in _BY_NAME:
            return kind
    return JSON
