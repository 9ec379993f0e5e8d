"""``GET /events``: the Engine's event stream (REF 1.7)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import anyio
from aiohttp import web

from pluginsvc.api.params import event_time
from pluginsvc.api.replies import JSON
from pluginsvc.api.stream import open_stream
from pluginsvc.errors import InvalidParameter
from pluginsvc.events.filters import engine_filter, engine_message
from pluginsvc.model.event import Event
from pluginsvc.model.filters import parse_filters
from pluginsvc.tasks import ShuttingDown

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
        self, *, since_ns: int | None, until_ns: int | None, wanted: Callable[[Event], bool]
    ) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Enter once subscribed; the iterator replays when a bound is given, and ends at ``until``."""
        ...


class EventStreams:
    """Serves event streams, and ends them all when the daemon stops listening."""

    def __init__(self, follow: Follow) -> None:
        self._follow = follow
        self._open: set[anyio.CancelScope] = set()
        self._closing = False

    def __len__(self) -> int:
        return len(self._open)

    def close(self) -> None:
        """End every stream in good order, and begin no more."""
        self._closing = True
        for scope in list(self._open):
            scope.cancel()

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
        if self._closing:
            raise ShuttingDown
        with anyio.CancelScope() as scope:
            self._open.add(scope)
            try:
                # the client may act as soon as it has the headers, so we subscribe first
                async with self._follow(since_ns=since, until_ns=until, wanted=wanted) as events:
                    await response.prepare(request)
                    async for event in events:
                        await response.write(mark + engine_message(event) + b"\n")
            finally:
                self._open.discard(scope)
        return response


def content_type(accept: str) -> str:
    """Return the content type: what ``Accept`` names exactly, else that of API versions below 1.52."""
    for item in accept.split(","):
        kind = item.partition(";")[0].strip().lower()
        if kind in _BY_NAME:
            return kind
    return JSON
