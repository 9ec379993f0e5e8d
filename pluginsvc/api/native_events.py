"""``GET /pluginsvc/v1/events``: every event, as Server-Sent Events that can be resumed (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import anyio
import msgspec
from aiohttp import web

from pluginsvc.api.events import time_span
from pluginsvc.api.feed import EventLog, Form, Outlet, chunk
from pluginsvc.api.handlers import Manager
from pluginsvc.api.params import boolean, go_quote
from pluginsvc.api.stream import OpenStreams, open_stream
from pluginsvc.errors import InvalidParameter
from pluginsvc.events.filters import native_filter
from pluginsvc.events.forms import cloud_event, native_message
from pluginsvc.events.journal import EventReader, EventsPruned
from pluginsvc.model.event import Event, Gap

HEARTBEAT = 15.0

_ENCODER = msgspec.json.Encoder()
_NUMBER = re.compile("[0-9]{1,19}", re.ASCII)
_HIGHEST = 2**63 - 1


class InvalidPosition(InvalidParameter):
    """Where a reader wants to go on is not the number of an event."""

    def __init__(self, where: str, text: str) -> None:
        self.where, self.text = where, text
        super().__init__(
            f"invalid {where} {go_quote(text)}: give the number (id) of the last event that you have, "
            "or 0 to begin with the first"
        )


class UnknownFormat(InvalidParameter):
    """A reader wants events in a format that they do not come in."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(
            f"invalid format {go_quote(text)}: events come as native, which is the default, or cloudevents"
        )


class _Format:
    """How events and gaps are put into blocks.

    Args:
        encode: one of them as JSON without a line end.

    Attributes:
        form: of the events, for all readers.
    """

    def __init__(self, encode: Callable[[Event | Gap], bytes]) -> None:
        self._encode = encode
        self.form = Form(lambda event: b"id: %d\ndata: %b\n\n" % (event.seq, encode(event)))

    def gap(self, gap: Gap, position: int) -> bytes:
        """Return the block that tells of a gap, after which a reader is at ``position``."""
        return b"event: gap\nid: %d\ndata: %b\n\n" % (position, self._encode(gap))


class _Snapshot(NamedTuple):
    """The list of plugins as it goes out.

    Attributes:
        seq: number of the last event that is in it.
        block: the bytes.
        framed: the same as a chunk.
    """

    seq: int
    block: bytes
    framed: bytes


class NativeEvents(OpenStreams):
    """Serves our own event stream.

    Args:
        events: the journal and what comes after it.
        manager: knows the plugins.
        timeout: seconds after which a reader that reads nothing is cut off.
        heartbeat: seconds without an event after which a reader is told how far it is.
    """

    def __init__(
        self,
        events: EventLog,
        manager: Manager,
        *,
        timeout: float,
        heartbeat: float = HEARTBEAT,
    ) -> None:
        super().__init__()
        self._events, self._manager = events, manager
        self._timeout, self._heartbeat = timeout, heartbeat
        native = _Format(native_message)
        self._formats = {
            "": native,
            "native": native,
            "cloudevents": _Format(lambda item: cloud_event(item, events.origin)),
        }
        self._snapshot: _Snapshot | None = None
        self._taking = anyio.Lock()

    async def serve(self, request: web.BaseRequest, _name: str) -> web.StreamResponse:
        """Send what happens after a number, until ``until`` or for ever; docs/events.md has the protocol."""
        query = request.query
        since, until = time_span(query)
        after = position("after", query.get("after", ""))
        at = position("Last-Event-ID", request.headers.get("Last-Event-ID", ""))
        wanted = native_filter(query.get("filters", ""))
        style = self._formats.get(query.get("format", ""))
        if style is None:
            raise UnknownFormat(query["format"])
        lists = boolean(query, "snapshot")
        response = open_stream(request, "text/event-stream")
        response.headers["Cache-Control"] = "no-cache"
        # another than before: numbers began anew, and a number of before means nothing
        response.headers["Pluginsvc-Journal"] = self._events.origin.id
        outlet = Outlet(request, style.form, timeout=self._timeout)
        with self.opened():
            # known before the client has the headers, and may act: what that does comes after it
            if at is None and not lists:
                at = after or 0
                if after is None or since is not None:
                    at = max(at, await self._events.number_at(since))
            await response.prepare(request)
            if at is not None:
                await outlet.write_raw(b": pluginsvc\nid: %d\n\n" % at)
            while True:
                if at is None:
                    at = await self._list(outlet)
                try:
                    async with self._events.follow(
                        until_ns=until, after_seq=at, wanted=wanted, direct=outlet.direct
                    ) as reader:
                        await self._send(reader, outlet)
                    break
                except EventsPruned as exc:
                    gap = Gap(exc.after_seq, exc.oldest_seq)
                # cut off before it has the list, the client is to come back for both
                await outlet.write_raw(style.gap(gap, gap.after if lists else gap.oldest - 1))
                at = None if lists else gap.oldest - 1
        return response

    async def _send(self, reader: EventReader, outlet: Outlet) -> None:
        """Send events until there are no more, and between them how far the reader is."""
        while True:
            event = None
            # around the wait for events only: a client that reads nothing would never be cut off
            with anyio.move_on_after(self._heartbeat) as quiet:
                event = await anext(reader, None)
            if event is not None:
                await outlet.write(event)
            elif quiet.cancelled_caught:
                await outlet.write_raw(b": heartbeat\nid: %d\n\n" % reader.position)
            else:
                return

    async def _list(self, outlet: Outlet) -> int:
        """Send the list of plugins, and return the number of the last event that is in it."""
        before = self._snapshot
        async with self._taking:
            # who waited while another took one shares it: after a restart all come at once
            if self._snapshot is before:
                found = await self._manager.snapshot()
                body = _ENCODER.encode({"seq": found.seq, "plugins": found.plugins})
                block = b"event: snapshot\nid: %d\ndata: %b\n\n" % (found.seq, body)
                self._snapshot = _Snapshot(found.seq, block, chunk(block))
            snapshot = self._snapshot
        assert snapshot is not None
        await outlet.write_raw(snapshot.block, framed=snapshot.framed)
        return snapshot.seq


def position(where: str, text: str) -> int | None:
    """Read the number of an event, with the name of what holds it; ``None`` when there is none.

    Raises:
        InvalidPosition: it is no number, or one that no event can have.
    """
    if not text:
        return None
    if not _NUMBER.fullmatch(text) or int(text) > _HIGHEST:
        raise InvalidPosition(where, text)
    return int(text)
