"""Answers that grow: those of pull, upgrade and push, line by line (REF 1.5), and those without an end of their own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import anyio
from aiohttp import HttpVersion11, web

from pluginsvc.api.replies import CONTEXT, JSON, describe, log_crash
from pluginsvc.model.progress import Line, encode_line
from pluginsvc.tasks import ShuttingDown

Sink = Callable[[Line], Awaitable[None]]

WRITE_TIMEOUT = 300.0
"""Seconds a client may leave a line unread, with all buffers between us full, before it counts as gone."""


def open_stream(request: web.BaseRequest, content_type: str) -> web.StreamResponse:
    """Return an answer of unknown length, not yet sent: chunked, or ended by closing for HTTP/1.0."""
    response = web.StreamResponse(headers={"Content-Type": content_type})
    if request.version < HttpVersion11:
        response.force_close()
    return response


class OpenStreams:
    """Answers that would go on for ever: they end in good order when the daemon stops listening."""

    def __init__(self) -> None:
        self._open: set[anyio.CancelScope] = set()
        self._closing = False

    def __len__(self) -> int:
        return len(self._open)

    def close(self) -> None:
        """End every stream, and begin no more."""
        self._closing = True
        for scope in list(self._open):
            scope.cancel()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Leave the block, without an error, once all streams are to end.

        Raises:
            ShuttingDown: they have ended already.
        """
        if self._closing:
            raise ShuttingDown
        with anyio.CancelScope() as scope:
            self._open.add(scope)
            try:
                yield
            finally:
                self._open.discard(scope)


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
