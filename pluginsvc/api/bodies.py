"""Reading request bodies: small JSON documents whole, archives as a stream (REF 1.1).

The texts are Go's and Moby's: upstream's tests and people look for them.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import anyio
import msgspec
from aiohttp import HttpVersion11, web

# aiohttp names these two nowhere else
from aiohttp.web_protocol import PayloadAccessError, RequestPayloadError

from pluginsvc.api.gojson import GoSyntaxError, end_of_value
from pluginsvc.errors import Cancelled, InvalidParameter
from pluginsvc.model.auth import Credentials, credentials_from
from pluginsvc.model.privilege import Privilege

MAX_JSON = 1024 * 1024
"""Largest JSON body accepted, in bytes."""

JSON_TIMEOUT = 60.0
"""Seconds a client may take to send a JSON body."""

BODY = web.RequestKey("body", bytes)
"""The whole body, where it was read before its handler asked for it."""

_SCAN_LIMIT = 64 * 1024
_IDLE = 300.0
_WORD = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_MEDIA_TYPE = re.compile(rf"({_WORD})(/({_WORD})?)?")
_MEDIA_PARAMETERS = re.compile(rf'(?:;\s*{_WORD}\s*=\s*(?:{_WORD}|"(?:[^"\\]|\\.)*")\s*)*;?\s*')
_WHITE_SPACE = b" \t\r\n"
B = TypeVar("B")


class InvalidBody(InvalidParameter):
    """The body of a request is not what its endpoint takes."""


class ClientGone(Cancelled):
    """The client went away while it was sending the body."""

    def __init__(self) -> None:
        super().__init__("the client closed the connection before the end of the request body")


async def chunks(request: web.BaseRequest) -> AsyncIterator[bytes]:
    """Yield the body as it arrives; it ends only when the client has sent all of it.

    Raises:
        ClientGone: the connection broke off; never mistaken for the end.
        InvalidBody: the framing is broken, or nothing comes for ``_IDLE`` seconds.
    """
    if BODY in request:
        # not kept for as long as the request is served
        yield request.pop(BODY)
        return
    try:
        await _ask_for_body(request)
        while True:
            # a client that stalls must not hold a confined child for ever
            with anyio.fail_after(_IDLE):
                chunk = await request.content.readany()
            if not chunk:
                return
            yield chunk
    except TimeoutError as exc:
        raise InvalidBody(f"no byte of the request body came for {_IDLE:g} s: send it again") from exc
    except RequestPayloadError as exc:
        raise InvalidBody(f"the request body cannot be read: {exc}") from exc
    except (ConnectionError, PayloadAccessError) as exc:
        raise ClientGone from exc


async def _ask_for_body(request: web.BaseRequest) -> None:
    """Send ``100 Continue`` to a client that waits for it (RFC 9110, 10.1.1); curl does before a large archive."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # the answer itself has not begun
        request.writer.output_size = 0


async def read_json(request: web.BaseRequest) -> Any:
    """Read the JSON body of a request; None when there is none.

    Raises:
        InvalidBody: wrong content type, not JSON, more than one document, too large or too slow.
        ClientGone: the connection broke off.
    """
    if not request.body_exists:
        return None
    _check_content_type(request.headers.get("Content-Type", ""))
    body = await gather(chunks(request), MAX_JSON)
    if len(body) > MAX_JSON:
        raise InvalidBody(f"the JSON body is larger than the {MAX_JSON} bytes that are accepted: send less")
    return decode_json(body)


async def gather(body: AsyncIterator[bytes], most: int) -> bytes:
    """Read a body of JSON whole, or more than ``most`` bytes of one that is larger.

    Args:
        body: its ``chunks``; what is left of them can be read on.
        most: a number of bytes.

    Raises:
        InvalidBody: broken or too slow.
        ClientGone: the connection broke off.
    """
    parts, size = list[bytes](), 0
    with anyio.move_on_after(JSON_TIMEOUT) as limit:
        async for chunk in body:
            parts.append(chunk)
            size += len(chunk)
            if size > most:
                break
    if limit.cancelled_caught:
        raise InvalidBody(f"the JSON body did not arrive within {JSON_TIMEOUT:.0f} seconds: send it again")
    return b"".join(parts)


async def read_as(request: web.BaseRequest, kind: type[B]) -> B:
    """Read the JSON body of a request to our own API, which has to be a ``kind``.

    Raises:
        InvalidBody: it is not; see ``read_json`` too.
    """
    try:
        return msgspec.convert(await read_json(request), kind)
    except msgspec.ValidationError as exc:
        raise InvalidBody(f"invalid body: {exc}") from exc


def is_json(request: web.BaseRequest) -> bool:
    """Tell whether ``read_json`` takes the body for JSON."""
    try:
        _check_content_type(request.headers.get("Content-Type", ""))
    except InvalidBody:
        return False
    return True


def _check_content_type(text: str) -> None:
    """Accept ``application/json``, in any case and with parameters."""
    base, semicolon, rest = text.partition(";")
    base = base.strip().lower()
    found = _MEDIA_TYPE.match(base)
    problem = ""
    if found is None:
        problem = "mime: no media type"
    elif found[2] and not found[3]:
        problem = "mime: expected token after slash"
    elif found.end() != len(base):
        problem = (
            f"mime: {'unexpected content after media subtype' if found[3] else 'expected slash after first token'}"
        )
    elif not _MEDIA_PARAMETERS.fullmatch(semicolon + rest):
        problem = "mime: invalid media parameter"
    if problem:
        raise InvalidBody(f"malformed Content-Type header ({text}): {problem}")
    if base != "application/json":
        raise InvalidBody(f"unsupported Content-Type header ({text}): must be 'application/json'")


def decode_json(raw: bytes) -> Any:
    """Decode one JSON document.

    Raises:
        InvalidBody: with the text that Go would give.
    """
    if not raw.strip(_WHITE_SPACE):
        raise InvalidBody("invalid JSON: got EOF while reading request body")
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        if len(raw) > _SCAN_LIMIT:
            raise InvalidBody(f"invalid JSON: {exc}") from exc
    try:
        end = end_of_value(raw)
    except GoSyntaxError as exc:
        raise InvalidBody(f"invalid JSON: {exc}") from exc
    if raw[end:].strip(_WHITE_SPACE):
        raise InvalidBody("unexpected content after JSON")
    try:
        # Go takes bytes that are not UTF-8 for U+FFFD
        return msgspec.json.decode(raw.decode(errors="replace"))
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise InvalidBody(f"invalid JSON: {exc}") from exc


def credentials(document: Any) -> Credentials:
    """Read the body of ``auth``; keys in any case.

    Raises:
        InvalidBody: not an object.
    """
    if not isinstance(document, dict | None):
        raise _mismatch(document, "Go value of type registry.AuthConfig")
    return credentials_from(document)


def string_list(document: Any) -> list[str]:
    """Read the body of ``set``: a list of strings; null means none, as in Go.

    Raises:
        InvalidBody: any other type.
    """
    return _strings(document, "Go value of type")


def privilege_list(document: Any) -> list[Privilege]:
    """Read the body of ``pull`` and ``upgrade``: null, ``{}`` (docker-py, REF 7.4) and ``[]`` all mean none.

    Raises:
        InvalidBody: any other type.
    """
    if document is None or document == {}:
        return []
    if not isinstance(document, list):
        raise _mismatch(document, "Go value of type types.PluginPrivileges")
    return [_privilege(item) for item in document]


def _privilege(document: Any) -> Privilege:
    if document is None:
        return Privilege(name="")
    if not isinstance(document, dict):
        raise _mismatch(document, "Go value of type types.PluginPrivilege")
    folded = {key.lower(): value for key, value in document.items()}
    for field in ("Name", "Description"):
        if not isinstance(folded.get(field.lower()), str | None):
            raise _mismatch(folded[field.lower()], f"Go struct field PluginPrivilege.{field} of type string")
    value = folded.get("value")
    return Privilege(
        name=folded.get("name") or "",
        description=folded.get("description") or "",
        value=None if value is None else _strings(value, "Go struct field PluginPrivilege.Value of type"),
    )


def _strings(document: Any, target: str) -> list[str]:
    if document is None:
        return []
    if not isinstance(document, list):
        raise _mismatch(document, f"{target} []string")
    for item in document:
        if not isinstance(item, str | None):
            raise _mismatch(item, f"{target} string")
    return [item or "" for item in document]


def _mismatch(value: Any, target: str) -> InvalidBody:
    kinds = {bool: "bool", int: "number", float: "number", str: "string", list: "array"}
    return InvalidBody(f"invalid JSON: json: cannot unmarshal {kinds.get(type(value), 'object')} into {target}")
