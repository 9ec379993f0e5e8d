"""Answers that grow line by line: pull, upgrade and push (REF 1.5)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
from aiohttp import HttpVersion11, web

from pluginsvc.api.replies import CONTEXT, JSON, describe, log_crash
from pluginsvc.model.progress import Line, encode_line

Sink = Callable[[Line], Awaitable[None]]

WRITE_TIMEOUT = 300.0
"""Seconds a client may leave a line unread, with all buffers between us full, before it counts as gone."""


def open_stream(request: web.BaseRequest, content_type: str) -> web.StreamResponse:
    """Return an answer of unknown length, not yet sent: chunked, or ended by closing for HTTP/1.0."""
    response = web.StreamResponse(headers={"Content-Type": content_type})
    if request.version < HttpVersion11:
        response.force_close()
    return response


async def stream(request: web.BaseRequest, work: Callable[[Sink], Awaitable[None]]) -> web.StreamResponse:
    """Run ``work`` and send its lines, each on its own, as they come.

    Until the first line an error is an ordinary HTTP error; afterwards it is the last line.

    Args:
        request: the request to answer.
        work: is given the sink for its lines; the sink never fails, lines for a client that is gone are dropped
            (its going cancels this handler, and nothing else need notice).

    Raises:
        Exception: whatever ``work`` raised before its first line.
    """
    lines = _Lines(request)
    try:
        await work(lines.write)
    except Exception as exc:
        if not lines.response.prepared or lines.gone:
            raise
        _, text, ours = describe(exc, request)
        if not ours:
            await log_crash("stream.crashed", exc)
        request[CONTEXT].failure = text
        await lines.write(Line.failure(text))
    await lines.begin()
    return lines.response


class _Lines:
    def __init__(self, request: web.BaseRequest) -> None:
        self._request = request
        self.response = open_stream(request, JSON)
        self.gone = False

    async def begin(self) -> None:
        if not self.response.prepared and not self.gone:
            await self.response.prepare(self._request)

    async def write(self, line: Line) -> None:
        if self.gone:
            return
        with anyio.move_on_after(WRITE_TIMEOUT) as limit:
            try:
                await self.begin()
                await self.response.write(encode_line(line))
            except ConnectionError:
                self.gone = True
        if limit.cancelled_caught and self._request.transport is not None:
            self.gone = True
            # the handler is cancelled by the loss of the connection, as with any client that goes away
            self._request.transport.abort()
