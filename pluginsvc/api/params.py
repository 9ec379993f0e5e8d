"""Reading what a request carries outside its body: query, headers, path, API version (REF 1.1, 1.2, 1.6).

Everything here is pure; the texts are those of Go's standard library, which clients show to people.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping

from multidict import CIMultiDictProxy

from pluginsvc.errors import InvalidParameter
from pluginsvc.model.auth import RegistryAccess, decode_auth_header
from pluginsvc.model.reference import Reference

MIN_API_VERSION = "1.24"
MAX_API_VERSION = "1.47"
"""Highest version served: below 1.52, which changes the content type of events (REF 1.2)."""

API_VERSIONS = frozenset(f"1.{minor}" for minor in range(24, 48))
"""Every version served, as clients write it."""

_FALSE = frozenset({"", "0", "no", "false", "none"})
_INTEGER = re.compile(r"[+-]?[0-9]+", re.ASCII)
_ESCAPES = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v", "\\": "\\\\"}
_ASCII_END, _BMP_END = 0x80, 0x10000
_META_PREFIX = "x-meta-"
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2}).{0,2}", re.DOTALL)


class InvalidNumber(InvalidParameter):
    """A parameter is not a whole number that fits 64 bits."""

    def __init__(self, function: str, text: str, reason: str) -> None:
        self.text, self.reason = text, reason
        super().__init__(f"strconv.{function}: parsing {go_quote(text)}: {reason}")


class InvalidQuery(InvalidParameter):
    """A query means different things to different readers of it."""


class InvalidTime(InvalidParameter):
    """``since`` or ``until`` is not ``seconds[.nanoseconds]``."""

    def __init__(self, parameter: str, cause: Exception) -> None:
        self.parameter = parameter
        super().__init__(f"invalid value for '{parameter}': {cause}")


def go_quote(text: str, *, mark: str = '"') -> str:
    """Quote ``text`` as Go's ``%q`` does, between ``mark`` characters."""
    parts = []
    for char in text:
        code = ord(char)
        if char == mark:
            parts.append("\\" + mark)
        elif char in _ESCAPES:
            parts.append(_ESCAPES[char])
        elif char.isprintable():
            parts.append(char)
        elif code < _ASCII_END:
            parts.append(f"\\x{code:02x}")
        else:
            parts.append(f"\\u{code:04x}" if code < _BMP_END else f"\\U{code:08x}")
    return mark + "".join(parts) + mark


def check_query(query: str) -> None:
    """Refuse a query that Go refuses: what of it counts, a plugin that judges it must not see otherwise.

    Args:
        query: as it was received, without the question mark.

    Raises:
        InvalidQuery: with Go's text.
    """
    for part in query.split("&"):
        if ";" in part:
            raise InvalidQuery("invalid semicolon separator in query")
        key, _, value = part.partition("=")
        if broken := _BROKEN_ESCAPE.search(key) or _BROKEN_ESCAPE.search(value):
            raise InvalidQuery(f"invalid URL escape {go_quote(broken[0])}")


def boolean(query: Mapping[str, str], key: str) -> bool:
    """Read a flag: ``""``, ``0``, ``no``, ``false``, ``none`` are false, anything else is true (REF 1.1)."""
    return query.get(key, "").strip().lower() not in _FALSE


def integer(text: str, *, function: str = "Atoi") -> int:
    """Read a signed 64-bit number.

    Args:
        text: as the client sent it.
        function: the Go function named in the error.

    Raises:
        InvalidNumber: with Go's text.
    """
    if not _INTEGER.fullmatch(text):
        raise InvalidNumber(function, text, "invalid syntax")
    # a short text first: Python refuses to convert thousands of digits
    digits = text.lstrip("+-0")
    if len(digits) > 19 or not -(2**63) <= int(text) < 2**63:
        raise InvalidNumber(function, text, "value out of range")
    return int(text)


def event_time(query: Mapping[str, str], key: str) -> int | None:
    """Read ``since`` or ``until``: ``seconds[.nanoseconds]`` (REF 1.7).

    Returns:
        Nanoseconds since the epoch; None when absent or ``-1``, which means the same to Docker.

    Raises:
        InvalidTime: anything else.
    """
    text = query.get(key, "")
    if not text:
        return None
    whole, dot, fraction = text.partition(".")
    try:
        seconds = integer(whole, function="ParseInt")
        nanoseconds = _fraction(fraction) if dot else 0
    except InvalidNumber as exc:
        raise InvalidTime(key, exc) from exc
    if seconds == -1:
        return None
    # what does not fit 64 bits is as good as the edge of time, and the journal's columns hold no more
    return max(-(2**63), min(2**63 - 1, seconds * 1_000_000_000 + nanoseconds))


def _fraction(digits: str) -> int:
    """Return the nanoseconds that the digits after the point stand for."""
    if not digits.isascii() or not digits.isdigit():
        raise InvalidNumber("ParseInt", digits, "invalid syntax")
    return int(digits[:9].ljust(9, "0"))


def version_key(version: str) -> tuple[int, ...]:
    """Turn ``1.24`` into something that compares part by part as numbers; an empty part counts as 0."""
    # no version has a part of ten digits, and Python refuses to convert thousands
    parts = [int(part or "0") if len(part) < 10 else 10**9 for part in version.split(".")]
    while parts and not parts[-1]:
        parts.pop()
    return tuple(parts)


def clean_path(path: str) -> str:
    """Return the path without ``//``, ``.`` and ``..``; a slash at the end stays (REF 1.1)."""
    if path.startswith("/") and "//" not in path and "/." not in path:
        return path
    cleaned = posixpath.normpath("/" + path.lstrip("/"))
    return cleaned + "/" if path.endswith("/") and cleaned != "/" else cleaned


def remote(query: Mapping[str, str]) -> Reference:
    """Read the ``remote`` parameter, with ``:latest`` where it has neither tag nor digest.

    Raises:
        InvalidReference: it is missing or malformed.
    """
    return Reference.parse(query.get("remote", "")).with_default_tag()


def registry_access(headers: CIMultiDictProxy[str]) -> RegistryAccess:
    """Collect what a request brings along for the registry (REF 1.6)."""
    meta: dict[str, str] = {}
    for name, value in headers.items():
        if name.lower().startswith(_META_PREFIX):
            meta[name] = f"{meta[name]}, {value}" if name in meta else value
    return RegistryAccess(
        credentials=decode_auth_header(headers.get("X-Registry-Auth", "")),
        meta=meta,
        client_agent=headers.get("User-Agent", ""),
    )
