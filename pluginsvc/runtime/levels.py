"""How much a line of a plugin's output matters, as far as the line itself says.

Moby logs all of stderr as errors (REF 3.6). Most programs print whatever they have to say there, so the stream alone
says nothing: what counts is, in this order,

- logfmt: ``level=warn`` or ``lvl=``, ``severity=``, within the first 512 characters;
- JSON: ``level`` or ``severity``, a word, or a number of pino and bunyan (10 to 60) or of syslog (0 to 7);
- klog: ``W1122 14:50:20``;
- syslog and the journal: ``<4>``, also with a facility in it (RFC 5424 section 6.2.1);
- on stderr, where no data is printed, the plain words that begin a complaint: ``ERROR``, ``[warn]``, ``error:``,
  ``panic:``, ``Traceback``, after a date if there is one.

Any other line is information.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from pluginsvc.model.output import Stream

Level = Literal["debug", "info", "warning", "error"]

_LEVELS: dict[str, Level] = {
    **dict.fromkeys(("trace", "debug", "dbg"), "debug"),
    **dict.fromkeys(("info", "information", "informational", "notice"), "info"),
    **dict.fromkeys(("warn", "warning"), "warning"),
    **dict.fromkeys(("err", "eror", "error", "crit", "critical", "alert", "emerg", "emergency"), "error"),
    **dict.fromkeys(("fatal", "panic", "dpanic"), "error"),
}
_BY_SEVERITY: tuple[Level, ...] = ("error", "error", "error", "error", "warning", "info", "info", "debug")
_KLOG: dict[str, Level] = {"I": "info", "W": "warning", "E": "error", "F": "error"}
_HEAD = 512
_HIGHEST_PRIORITY = 191

_LOGFMT = re.compile(r'(?:^|\s)(?:level|lvl|severity)="?([A-Za-z]{3,13})\b')
_KLOG_PREFIX = re.compile(r"([IWEF])[01]\d[0-3]\d \d\d:\d\d:\d\d", re.ASCII)
_SYSLOG_PREFIX = re.compile(r"<(\d{1,3})>", re.ASCII)
_DATE = r"(?:\[?\d[-\d/:.,T +]{4,40}Z?\]?\s{0,3})?"
_SHOUTED = re.compile(_DATE + r"[\[(]?([A-Z]{3,13})\b[\])]?(?::|\s|$)")
_QUALIFIED = re.compile(_DATE + r"(?:\[([A-Za-z]{3,13})\]|([A-Za-z]{3,13})(?: error)?:)")
_TRACEBACK = "Traceback (most recent call last)"


class _Document(msgspec.Struct):
    level: str | float | None = None
    severity: str | float | None = None


_DECODER = msgspec.json.Decoder(_Document)


def level_of(stream: Stream, line: str) -> Level:
    """Return the level of a line; see the module for how it is found."""
    found = _from_json(line) if line.startswith("{") else None
    return found or _from_prefix(line) or _from_logfmt(line) or (_from_words(line) if stream == "stderr" else "info")


def _from_json(line: str) -> Level | None:
    try:
        document = _DECODER.decode(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    value = document.severity if document.level is None else document.level
    if isinstance(value, str):
        return _LEVELS.get(value.lower())
    if value is None or value < 0:
        return None
    if value < len(_BY_SEVERITY):
        return _BY_SEVERITY[int(value)]
    return "debug" if value < 30 else "info" if value < 40 else "warning" if value < 50 else "error"


def _from_prefix(line: str) -> Level | None:
    if found := _KLOG_PREFIX.match(line):
        return _KLOG[found[1]]
    if (found := _SYSLOG_PREFIX.match(line)) and int(found[1]) <= _HIGHEST_PRIORITY:
        return _BY_SEVERITY[int(found[1]) % 8]
    return None


def _from_logfmt(line: str) -> Level | None:
    found = _LOGFMT.search(line, 0, _HEAD)
    return _LEVELS.get(found[1].lower()) if found else None


def _from_words(line: str) -> Level:
    if line.startswith(_TRACEBACK):
        return "error"
    for pattern in (_SHOUTED, _QUALIFIED):
        if found := pattern.match(line):
            word = next(group for group in found.groups() if group)
            if level := _LEVELS.get(word.lower()):
                return level
    return "info"
