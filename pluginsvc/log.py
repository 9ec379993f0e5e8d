"""structlog set-up: console for people, JSON for programs, secrets masked (design invariant 6)."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any, Literal

import structlog

LEVELS = ("debug", "info", "warning", "error")
request_id: ContextVar[str] = ContextVar("request_id")
"""Names the request that a task works for, in each of its lines; one variable costs a tenth of structlog's binding."""

_SECRET = re.compile(r"pass(word|wd)?$|secret|token|authorization|credential", re.IGNORECASE)
_URL_LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_debugging = False


def debugging() -> bool:
    """Tell whether debug lines are kept: to ask structlog costs an assembled logger."""
    return _debugging


def name_request(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Say which request a line belongs to."""
    if name := request_id.get(""):
        event["request_id"] = name
    return event


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Mask values whose key sounds secret, and logins inside URLs."""
    for key, value in event.items():
        if _SECRET.search(key):
            event[key] = "***"
        elif isinstance(value, str) and "://" in value:
            event[key] = _URL_LOGIN.sub("***", value)
    return event


def configure(*, level: str = "info", style: Literal["console", "json"] = "console") -> None:
    """Set up logging for the process, or change it; lines go to standard error.

    Args:
        level: one of ``LEVELS``; what is less severe is dropped.
        style: ``console`` or ``json``.
    """
    global _debugging  # noqa: PLW0603 - what is set here is of the whole process, as structlog's own settings are
    _debugging = level == "debug"
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    )
    structlog.configure(
        processors=[
            name_request,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            redact,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        # cached loggers would keep the level they began with, and a reload may change it
        cache_logger_on_first_use=False,
    )
