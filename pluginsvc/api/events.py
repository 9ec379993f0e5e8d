"""``GET /events``: the Engine's event stream (REF 1.7)."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from pluginsvc.api.feed import EventLog, Form, Outlet
from pluginsvc.api.params import event_time
from pluginsvc.api.replies import JSON
from pluginsvc.api.stream import OpenStreams, open_stream
from pluginsvc.errors import InvalidParameter
from pluginsvc.events.filters import engine_filter
from pluginsvc.events.forms import engine_message

_SEQUENCE = "application/json-seq"
_BY_NAME = frozenset({"application/jsonl", "application/x-ndjson", _SEQUENCE})


class InvalidSpan(InvalidParameter):
    """``since`` lies after ``until``."""

    def __init__(self, since: str, until: str) -> None:
        self.since, self.until = since, until
        super().__init__(f"`since` time ({since}) cannot be after `until` time ({until})")


class EventStreams(OpenStreams):
    """Serves event streams.

    Args:
        events: the journal and what comes after it.
        timeout: seconds after which a reader that reads nothing is cut off.
    """

    def __init__(self, events: EventLog, *, timeout: float) -> None:
        super().__init__()
        self._events, self._timeout = events, timeout
        self._lines = Form(lambda event: engine_message(event) + b"\n")
        self._sequence = Form(lambda event: b"\x1e" + engine_message(event) + b"\n")

    async def serve(self, request: web.BaseRequest, _name: str) -> web.StreamResponse:
        """Send what happens until ``until``, for ever without it."""
        query = request.query
        since, until = time_span(query)
        wanted = engine_filter(query.get("filters", ""))
        kind = content_type(request.headers.get("Accept", ""))
        response = open_stream(request, kind)
        outlet = Outlet(request, self._sequence if kind == _SEQUENCE else self._lines, timeout=self._timeout)
        with self.opened():
            # the client may act as soon as it has the headers, so we subscribe first
            async with self._events.follow(
                since_ns=since, until_ns=until, wanted=wanted, direct=outlet.direct
            ) as events:
                await response.prepare(request)
                async for event in events:
                    await outlet.write(event)
        return response


def time_span(query: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Read ``since`` and ``until`` as nanoseconds since the epoch; ``None`` for none.

    Raises:
        InvalidTime: one is no time.
        InvalidSpan: nothing lies between them.
    """
    since, until = event_time(query, "since"), event_time(query, "until")
    if since is not None and until is not None and until < since:
        raise InvalidSpan(query["since"], query["until"])
    return since, until


def content_type(accept: str) -> str:
    """Return the content type: what ``Accept`` names exactly, else that of API versions below 1.52."""
    for item in accept.split(","):
        kind = item.partition(";")[0].strip().lower()
        if kind in _BY_NAME:
            return kind
    return JSON
