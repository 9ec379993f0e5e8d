"""What plugins print and run: ``logs`` and ``top`` with the parameters and answers of Docker's containers."""

from __future__ import annotations

import datetime as dt
import struct
from collections.abc import Mapping
from contextlib import aclosing
from functools import lru_cache

import anyio
from aiohttp import web

from pluginsvc.api.handlers import Manager
from pluginsvc.api.params import boolean, event_time, integer
from pluginsvc.api.replies import json_reply
from pluginsvc.api.routing import Route
from pluginsvc.api.stream import WRITE_TIMEOUT, OpenStreams, open_stream
from pluginsvc.errors import InvalidParameter
from pluginsvc.model.output import Stream, Wanted

MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
"""Frames: stream (1: stdout, 2: stderr), three zeros, length of what follows as 4 bytes, the highest first."""

_SECOND = 1_000_000_000
_HEADER = struct.Struct(">BxxxL")


class NoStreamChosen(InvalidParameter):
    """Neither stdout nor stderr is wanted; the text is Docker's."""

    def __init__(self) -> None:
        super().__init__("Bad parameters: you must choose at least one stream")


class OutputHandlers(OpenStreams):
    """The endpoints for what plugins print and run."""

    def __init__(self, manager: Manager) -> None:
        super().__init__()
        self._manager = manager

    def routes(self) -> list[Route]:
        """Return the endpoints."""
        return [
            Route("GET", "/pluginsvc/v1/plugins/{name}/logs", self.logs, versioned=False),
            Route("GET", "/pluginsvc/v1/plugins/{name}/top", self.top, versioned=False),
        ]

    async def logs(self, request: web.BaseRequest, name: str) -> web.StreamResponse:
        """Send what a plugin has printed and, with ``follow``, goes on to print."""
        wanted = parse_wanted(request.query)
        form = stamped_frame if boolean(request.query, "timestamps") else frame
        pieces = self._manager.logs(name, wanted, form)
        response = open_stream(request, MULTIPLEXED)
        with self.opened():
            async with aclosing(pieces):
                await response.prepare(request)
                async for piece in pieces:
                    with anyio.move_on_after(WRITE_TIMEOUT) as limit:
                        await response.write(piece)
                    if limit.cancelled_caught and request.transport is not None:
                        # this handler is cancelled by the loss of the connection, as with any client that goes away
                        request.transport.abort()
        return response

    async def top(self, _request: web.BaseRequest, name: str) -> web.Response:
        """List the processes of a plugin."""
        return json_reply(await self._manager.top(name))


def parse_wanted(query: Mapping[str, str]) -> Wanted:
    """Read the parameters of container logs.

    Raises:
        NoStreamChosen: neither of the two is chosen.
        InvalidNumber: ``tail`` is neither a number nor ``all``; below zero it means ``all``.
        InvalidTime: ``since`` or ``until`` is not ``seconds[.nanoseconds]``; 0 is no bound.
    """
    wanted = Wanted(
        stdout=boolean(query, "stdout"),
        stderr=boolean(query, "stderr"),
        since_ns=event_time(query, "since") or None,
        until_ns=event_time(query, "until") or None,
        tail=_lines(query.get("tail", "")),
        follow=boolean(query, "follow"),
    )
    if not (wanted.stdout or wanted.stderr):
        raise NoStreamChosen
    return wanted


def _lines(text: str) -> int | None:
    count = -1 if text in {"", "all"} else integer(text)
    return None if count < 0 else count


def frame(_at_ns: int, stream: Stream, data: bytes) -> bytes:
    """Return a frame."""
    return _HEADER.pack(2 if stream == "stderr" else 1, len(data)) + data


def stamped_frame(at_ns: int, stream: Stream, data: bytes) -> bytes:
    """Return a frame that begins with the time in UTC."""
    seconds, nanoseconds = divmod(at_ns, _SECOND)
    return frame(at_ns, stream, b"%b.%09dZ %b" % (_clock(seconds), nanoseconds, data))


@lru_cache(maxsize=64)
def _clock(seconds: int) -> bytes:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat()[:19].encode()
