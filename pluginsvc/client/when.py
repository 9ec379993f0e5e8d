"""Points in time as ``docker events`` takes them: seconds, a span back from now, or a date."""

from __future__ import annotations

import datetime as dt
import re

from pluginsvc.errors import InvalidParameter

_SECONDS = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_PART = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)")
_SPAN = re.compile(rf"(?:{_PART.pattern})+")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class InvalidTime(InvalidParameter):
    """A point in time is in none of the forms."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(
            f"{text!r} is no time: give seconds since 1970, a span such as 10m or 1h30m, or an RFC 3339 date"
        )


def timestamp(text: str, now: dt.datetime) -> str:
    """Return ``seconds.fraction`` since 1970, as ``/events`` wants it.

    Args:
        text: as typed; a date without an offset is local time.
        now: from which spans go back.

    Raises:
        InvalidTime: in none of the forms, or before 1970.
    """
    if _SECONDS.fullmatch(text):
        return text
    try:
        if _SPAN.fullmatch(text):
            at = now - dt.timedelta(seconds=sum(float(n) * _UNITS[unit] for n, unit in _PART.findall(text)))
        else:
            at = dt.datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as exc:
        raise InvalidTime(text) from exc
    if at.timestamp() < 0:
        raise InvalidTime(text)
    return f"{at.timestamp():.6f}"
