"""Events by HTTP POST, as batches of CloudEvents (CloudEvents 1.0.2, HTTP protocol binding, section 3.3)."""

from __future__ import annotations

import base64
import os
import re
import socket
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import aiohttp
from anyio import to_thread
from yarl import URL

from pluginsvc.events.delivery import SinkFailed
from pluginsvc.events.forms import Origin, cloud_event
from pluginsvc.model.event import Event, Gap

_CONTENT_TYPE = "application/cloudevents-batch+json; charset=utf-8"
_TIMEOUT = aiohttp.ClientTimeout(total=30, connect=10, sock_connect=10)
_ANSWER = 4096
"""Bytes of a refusal that are read."""
_TAKEN_IN = 4096
"""Bytes that the kernel holds of what a receiver says."""
_TEXT = 200
"""Characters of it that are told."""
_LARGEST_TOKEN = 16 * 1024
_TOKEN = re.compile(r"[\x21-\x7e]+")


class Webhook:
    """Posts events, a batch a request; any 2xx says that all of it was taken.

    Redirects are not followed and no proxy is used: what is secret goes to the URL's own host and nowhere else.

    Args:
        url: where to, http or https; a user and password in it are sent as Basic authorization.
        origin: who tells of them.
        token_file: its content is sent as a bearer token; read for each request, so that a new one works at once.
    """

    name = "webhook"

    def __init__(self, url: str, origin: Origin, *, token_file: Path | None = None) -> None:
        self._url, self._origin, self._token_file = URL(url), origin, token_file
        self._session: aiohttp.ClientSession | None = None

    async def send(self, items: Sequence[Event | Gap]) -> None:
        """Post items.

        Raises:
            SinkFailed: the answer was no 2xx, or there was none within 30 s.
        """
        token = "" if self._token_file is None else await to_thread.run_sync(self._read_token, self._token_file)
        headers = {"Content-Type": _CONTENT_TYPE}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        body = b"[%b]" % b",".join(cloud_event(item, self._origin) for item in items)
        try:
            if self._session is None:
                self._session = await self._open()
            async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
                if not 200 <= response.status < 300:
                    raise await self._refused(response, token)
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise self._failed(_reason(exc)) from exc

    async def close(self) -> None:
        """Close connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _open(self) -> aiohttp.ClientSession:
        # made here and in a thread: aiohttp's own context knows no authorities (see __main__)
        tls = await to_thread.run_sync(ssl.create_default_context) if self._url.scheme == "https" else True
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1, ssl=tls, socket_factory=_socket),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "pluginsvc", "Accept-Encoding": "identity"},
            auto_decompress=False,
            timeout=_TIMEOUT,
        )

    async def _refused(self, response: aiohttp.ClientResponse, token: str) -> SinkFailed:
        """Say what the answer was; what was secret in the request is taken out of its text."""
        reason = f"the answer was {response.status}"
        if 300 <= response.status < 400:
            reason += ", and redirects are not followed: set the address it leads to"
        elif text := _harmless(await _start(response.content), [token, *_secrets(self._url)]):
            reason += f": {text}"
        asked = response.headers.get("Retry-After") if response.status in {429, 503} else None
        return self._failed(reason, retry_after=_seconds(asked or ""))

    def _read_token(self, path: Path) -> str:
        try:
            # a FIFO nobody writes to must not block
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                token = os.read(fd, _LARGEST_TOKEN).decode("ascii", "replace").strip()
            finally:
                os.close(fd)
        except OSError as exc:
            reason = os.strerror(exc.errno or 0)
            raise SinkFailed(self.name, f"its token file {path} cannot be read: {reason}; mend it") from exc
        if not _TOKEN.fullmatch(token):
            raise SinkFailed(self.name, f"its token file {path} does not hold one word of ASCII; write the token there")
        return token

    def _failed(self, reason: str, *, retry_after: float = 0.0) -> SinkFailed:
        place = self._url.with_user(None).with_query(None).with_fragment(None)
        return SinkFailed(self.name, f"POST {place}: {reason}", retry_after=retry_after)


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """Make a socket that takes in little at a time.

    aiohttp goes through all that has come before others get their turn, and thousands of interim answers fit into what
    a socket takes in by default: a receiver could hold the loop up for seconds.
    """
    family, kind, proto, *_ = address
    found = socket.socket(family, kind, proto)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _TAKEN_IN)
    return found


async def _start(content: aiohttp.StreamReader) -> bytes:
    data = b""
    while len(data) < _ANSWER and (more := await content.read(_ANSWER - len(data))):
        data += more
    return data


def _secrets(url: URL) -> list[str]:
    """Return what of a URL is nobody else's business, in the forms in which an answer may repeat it."""
    found = [url.raw_query_string, url.query_string, *url.query.values(), url.password or "", url.raw_password or ""]
    if url.user is not None:
        found.append(base64.b64encode(f"{url.user}:{url.password or ''}".encode()).decode())
    return found


def _harmless(data: bytes, secrets: Sequence[str]) -> str:
    text = data.decode(errors="replace")
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    return "".join(char if char.isprintable() else " " for char in text)[:_TEXT].strip()


def _seconds(retry_after: str) -> float:
    """Read ``Retry-After`` (RFC 9110 section 10.2.3): seconds or a date; what makes no sense is 0."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:10])
    try:
        when = parsedate_to_datetime(retry_after)
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        return max((when - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, OverflowError):
        return 0.0


def _reason(exc: Exception) -> str:
    """Say why without aiohttp's own texts where those quote the whole URL."""
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        error = exc.certificate_error
        return f"no trusted TLS connection: {getattr(error, 'verify_message', '') or type(error).__name__}"
    if isinstance(exc, aiohttp.ClientSSLError):
        return f"no TLS connection: {getattr(exc.os_error, 'reason', '') or 'it was refused'}"
    if isinstance(exc, aiohttp.ClientConnectorError):
        return f"no connection: {_strerror(exc.os_error)}"
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    if isinstance(exc, (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError)):
        return f"the connection was cut: {_strerror(exc)}"
    return f"the answer is no HTTP: {type(exc).__name__}"


def _strerror(exc: Exception) -> str:
    number = exc.errno if isinstance(exc, OSError) else None
    # the errors of name look-ups are negative, and asyncio puts a text of its own where the system's would be
    return os.strerror(number) if number and number > 0 else getattr(exc, "strerror", None) or type(exc).__name__
