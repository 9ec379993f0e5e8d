"""Answers: their shapes, and what an exception looks like from outside (REF 1.1)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import structlog
from aiohttp import web

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
_JSON_ERRORS_SINCE = version_key("1.24")


class ErrorBody(msgspec.Struct):
    """The body of every error."""

    message: str


def json_bytes(body: bytes, *, status: int = 200) -> web.Response:
    """Answer with JSON that is encoded already."""
    return web.Response(body=body, status=status, headers={"Content-Type": JSON})


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
