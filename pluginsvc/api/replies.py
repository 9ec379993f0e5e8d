"""Answers: their shapes, and what an exception looks like from outside (REF 1.1)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import structlog
from aiohttp import HttpVersion11, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from multidict import CIMultiDict

from pluginsvc.api.params import version_key
from pluginsvc.errors import PluginsvcError, first_leaf

JSON = "application/json"
"""Exactly this: with a charset the CLI shows raw JSON to its user (REF §0.1)."""


@dataclass(slots=True)
class Context:
    """What is known of a request while it is answered.

    Attributes:
        request_id: names it in the log.
        headers: go on whatever answer it gets, errors and streams included; filled on the way in.
        version: the API version in its path, empty for none.
        failure: text of an error that went out inside a stream, for the log.
    """

    request_id: str
    headers: dict[str, str] = field(default_factory=dict)
    version: str = ""
    failure: str = ""


CONTEXT = web.RequestKey("context", Context)

_log = structlog.get_logger()
_ENCODER = msgspec.json.Encoder()
_JSON_HEADERS = CIMultiDict({"Content-Type": JSON})
_JSON_ERRORS_SINCE = version_key("1.24")
_JOINED = 16 * 1024
"""Longest body that is copied behind its header, to be sent with it in one piece, in bytes."""


class ErrorBody(msgspec.Struct):
    """The body of every error."""

    message: str


class Answer(web.Response):
    """An answer whose whole body is there, sent in as few steps as there can be when all went well.

    aiohttp's way looks for cookies, compression and chunks that we never have, and takes as long as all else that is
    done for a read, parsing included.
    """

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Send header and body; all but a 200 with a body, over HTTP/1.1, goes aiohttp's way."""
        body = self._body
        plain = self._status == 200 and request.method != "HEAD" and request.version == HttpVersion11
        if not plain or not isinstance(body, bytes):
            return await super().prepare(request)
        headers = self._headers
        headers["Content-Length"] = str(len(body))
        headers["Date"] = rfc822_formatted_time()
        self._keep_alive = request.keep_alive
        if not self._keep_alive:
            headers["Connection"] = "close"
        headers.update(request[CONTEXT].headers)
        writer = request.writer
        await writer.write_headers("HTTP/1.1 200 OK", headers)
        if len(body) > _JOINED:
            writer.send_headers()
        await writer.write_eof(body)
        self._eof_sent = True
        return None


def json_bytes(body: bytes, *, status: int = 200) -> web.Response:
    """Answer with JSON that is encoded already."""
    return Answer(body=body, status=status, headers=_JSON_HEADERS)


def json_reply(document: Any, *, status: int = 200) -> web.Response:
    """Answer with one JSON value and a line end."""
    return json_bytes(_ENCODER.encode(document) + b"\n", status=status)


def empty(status: int = 200) -> web.Response:
    """Answer without a body and without a content type."""
    return web.Response(status=status)


def error_reply(status: int, message: str, *, version: str = "") -> web.Response:
    """Answer with an error: JSON, or plain text to clients below 1.24.

    Args:
        status: the HTTP status.
        message: what happened.
        version: the prefix of the request's path, empty for none.
    """
    if version and version_key(version) < _JSON_ERRORS_SINCE:
        return web.Response(text=message + "\n", status=status)
    return json_reply(ErrorBody(message), status=status)


def describe(error: Exception, request: web.BaseRequest) -> tuple[int, str, bool]:
    """Return status and text of an error, and whether it is one of ours.

    What is not ours is a bug: its text could hold anything, so clients get only where to look.
    """
    leaf = first_leaf(error)
    if isinstance(leaf, PluginsvcError):
        return leaf.status, str(leaf) or type(leaf).__name__, True
    return (
        500,
        f"internal error: the daemon's log has the details under request_id={request[CONTEXT].request_id}",
        False,
    )


async def log_crash(event: str, crash: BaseException, **facts: Any) -> None:
    """Log an error with its traceback, in a thread: formatting one reads source files."""
    await asyncio.to_thread(partial(_log.error, event, exc_info=crash, **facts))
