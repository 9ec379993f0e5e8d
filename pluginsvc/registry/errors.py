"""What can go wrong with a registry, as errors with fields (REF 3.4, 4.1; distribution spec, "Error Codes").

Each error says whether trying again may help (``temporary``) and never holds a secret: queries are cut off URLs,
bodies are capped and the secrets that were sent are taken out of them.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import aiohttp
import msgspec
from yarl import URL

from pluginsvc.errors import Forbidden, Internal, NotFound, Unauthorized, Unavailable

MAX_ERROR_BODY: Final = 64 * 1024
"""Bytes of an error answer that are read."""

_MAX_TEXT = 1024
"""Characters of an error answer that are kept."""

CONNECT, TLS, TIMEOUT, CUT = "CONNECT", "TLS", "TIMEOUT", "CUT"
"""Codes of faults that are no answer: no connection, no trust, no answer in time, an answer cut off."""


class RegistryFault(Exception):
    """What every error of this room carries; caught, never raised itself.

    Attributes:
        url: the request's URL, redacted.
        http_status: the registry's answer, 0 when there was none.
        code: the registry's own error code (``MANIFEST_UNKNOWN``), or ``CONNECT``, ``TLS``, ``TIMEOUT``, ``CUT``.
        body: the answer's text, capped and redacted.
        temporary: whether trying again may help.
        retry_after: seconds the registry asks to wait, if it does.
    """

    def __init__(
        self,
        message: str,
        *,
        url: str = "",
        http_status: int = 0,
        code: str = "",
        body: str = "",
        temporary: bool = False,
        retry_after: float | None = None,
    ) -> None:
        self.url, self.http_status, self.code, self.body = url, http_status, code, body
        self.temporary, self.retry_after = temporary, retry_after
        super().__init__(message)


class AccessDenied(RegistryFault, Unauthorized):
    """The registry wants credentials, or others than it got (401)."""


class RegistryForbidden(RegistryFault, Forbidden):
    """The registry knows who asks and refuses (403)."""


class ManifestUnknown(RegistryFault, NotFound):
    """The registry has no such manifest or repository (404)."""


class BlobUnknown(RegistryFault, NotFound):
    """The registry has no such blob (404)."""


class RegistryBusy(RegistryFault, Unavailable):
    """The registry does not answer, or not now: 408, 429, 5xx, no connection, time-out, cut connection."""


class TruncatedBlob(RegistryBusy):
    """A blob ended before its size was reached; what came so far is good to resume from."""


class RegistryProtocolError(RegistryFault, Internal):
    """The registry breaks the protocol: wrong length, wrong digest, too large, an answer that makes no sense."""


def redact_url(url: URL | str) -> str:
    """Return ``url`` without user, query and fragment, where signatures and session secrets live."""
    parsed = URL(url, encoded=True) if isinstance(url, str) else url
    return str(parsed.with_user(None).with_query(None).with_fragment(None)) if parsed.host else parsed.path


def redact_text(text: str, secrets: Iterable[str]) -> str:
    """Take ``secrets`` and unprintable characters out of a text of foreign origin and cap its length."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "<redacted>")
    return "".join(c if c.isprintable() else " " for c in text[:_MAX_TEXT]).strip()


def describe(body: bytes, secrets: Iterable[str]) -> tuple[str, str]:
    """Read an error answer.

    Args:
        body: the answer's bytes, at most ``MAX_ERROR_BODY``.
        secrets: what must not appear in the result.

    Returns:
        The registry's error code (may be empty) and a text for people.
    """
    secrets = list(secrets)
    try:
        document = msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return "", redact_text(body.decode(errors="replace"), secrets)
    errors = document.get("errors")
    first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else document
    code = first.get("code", first.get("error", ""))
    # token servers say "details" (distribution) or "error_description" (OAuth 2)
    texts = (first.get(key) for key in ("message", "details", "error_description"))
    text = next((found for found in texts if isinstance(found, str) and found), "")
    return redact_text(str(code), secrets)[:64], redact_text(text, secrets)


def most_specific(faults: list[tuple[RegistryFault, bool]]) -> RegistryFault:
    """Choose the error to report after several hosts failed (REF 7.25).

    An answer beats the lack of one, then the registry itself beats its mirrors, then the later beats the earlier.

    Args:
        faults: in the order met; each with whether a mirror gave it.
    """
    chosen, from_mirror = faults[0]
    for fault, mirror in faults[1:]:
        if (fault.http_status > 0, not mirror) >= (chosen.http_status > 0, not from_mirror):
            chosen, from_mirror = fault, mirror
    return chosen


@contextmanager
def converted(method: str, target: URL) -> Iterator[None]:
    """Turn what aiohttp and the system raise into faults of this room.

    Args:
        method: of the request, for the text.
        target: its URL.

    Raises:
        RegistryBusy: no connection, no trust, no answer in time, cut off.
        RegistryProtocolError: what came is no HTTP.
    """
    url = redact_url(target)
    try:
        yield
    except aiohttp.ClientSSLError as exc:
        raise RegistryBusy(f"{method} {url}: no trusted TLS connection: {_reason(exc)}", url=url, code=TLS) from exc
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as exc:
        text = f"{method} {url}: no connection: {_reason(exc)}"
        raise RegistryBusy(text, url=url, code=CONNECT, temporary=True) from exc
    except TimeoutError as exc:
        raise RegistryBusy(f"{method} {url}: no answer in time", url=url, code=TIMEOUT, temporary=True) from exc
    except (aiohttp.ClientResponseError, aiohttp.InvalidURL, ValueError) as exc:
        raise RegistryProtocolError(f"{method} {url}: not an HTTP exchange: {_reason(exc)}", url=url) from exc
    except (aiohttp.ClientError, OSError) as exc:
        text = f"{method} {url}: connection cut: {_reason(exc)}"
        raise RegistryBusy(text, url=url, code=CUT, temporary=True) from exc


def _reason(exc: Exception) -> str:
    """Say why without aiohttp's own texts where those quote the whole URL, query included."""
    if isinstance(exc, aiohttp.ClientConnectorError):
        exc = exc.os_error
        return exc.strerror or str(exc) or type(exc).__name__
    if isinstance(exc, aiohttp.ClientResponseError):
        return exc.message.partition("\n")[0]
    if isinstance(exc.__cause__, ssl.SSLError):
        return exc.__cause__.reason or "TLS failed"
    if isinstance(exc, OSError) and exc.errno:
        return os.strerror(exc.errno)
    return "timed out" if isinstance(exc, TimeoutError) else type(exc).__name__
