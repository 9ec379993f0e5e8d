"""One HTTP exchange with a registry or its token server: time-outs, redirects, caps, foreign errors converted.

What is private (credentials, the user's meta headers) goes to the origin of the first URL only, never to a redirect's
target. An exchange that began under HTTPS never continues under plain HTTP.
"""

from __future__ import annotations

import asyncio
import ssl
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final
from urllib.parse import quote, urljoin

import aiohttp
import anyio
from multidict import CIMultiDict
from yarl import URL

from pluginsvc.registry.errors import (
    CONNECT,
    CUT,
    TIMEOUT,
    TLS,
    RegistryBusy,
    RegistryProtocolError,
    redact_url,
)
from pluginsvc.registry.hosts import Hosts

Headers = Sequence[tuple[str, str]]

CONNECT_TIMEOUT: Final = 15.0
"""Seconds for name look-up, TCP and TLS together."""

IDLE_TIMEOUT: Final = 60.0
"""Seconds to the first byte of an answer, between two reads of it, and between two writes of a body."""

BODY_TIMEOUT: Final = 120.0
"""Seconds for a whole answer that is read into memory."""

_MAX_REDIRECTS = 10
_MAX_FIELD = 32 * 1024
_BUFFER = 512 * 1024
_PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F))


class Body:
    """A request body that is streamed, and can be streamed again from its start.

    Args:
        size: bytes in all.
        chunks: opens the stream; what it raises is raised to the sender unchanged.
    """

    def __init__(self, size: int, chunks: Callable[[], AsyncIterator[bytes]]) -> None:
        self.size, self.chunks = size, chunks


class Wire:
    """The one client session of the daemon towards registries; an async context manager.

    Args:
        hosts: trust in hosts.
        user_agent: the daemon's own.
        proxies: as of ``urllib.request.getproxies_environment()``; hosts on loopback are never proxied.
    """

    def __init__(self, hosts: Hosts, *, user_agent: str, proxies: Mapping[str, str]) -> None:
        self.hosts = hosts
        self.user_agent = user_agent
        self._proxies = dict(proxies)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Wire:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=_BUFFER,
            max_line_size=_MAX_FIELD,
            max_field_size=_MAX_FIELD,
            skip_auto_headers=("Content-Type",),
        )
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def exchange(
        self,
        method: str,
        url: str,
        *,
        headers: Headers = (),
        private: Headers = (),
        body: bytes | Body | None = None,
        secure: bool,
        follow: bool = True,
        wait: float = IDLE_TIMEOUT,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request, follow redirects, give the answer whose body is still to be read.

        Args:
            method: of HTTP.
            url: absolute, already quoted.
            headers: for every host on the way.
            private: for the origin of ``url`` alone.
            body: what to send; a redirect that would turn the request into a GET is not followed.
            secure: refuse plain HTTP.
            follow: follow redirects.
            wait: seconds to wait for the first byte once the request is sent.

        Raises:
            RegistryBusy: no connection, no answer in time, connection cut.
            RegistryProtocolError: an answer or redirect that makes no sense, or leads away from HTTPS.
        """
        origin = _parsed(url).origin()
        at_home = True
        for _hop in range(_MAX_REDIRECTS):
            target = _parsed(url)
            secure = secure or target.scheme == "https"
            if secure and target.scheme != "https":
                raise RegistryProtocolError(
                    f"{method} {redact_url(target)}: refused, it leads from HTTPS to plain HTTP", url=redact_url(target)
                )
            at_home = at_home and target.origin() == origin
            sent = [*headers, *private] if at_home else list(headers)
            response = await self._send(method, target, sent, body, wait)
            try:
                location = response.headers.get("Location")
                if not follow or response.status not in {301, 302, 303, 307, 308} or not location:
                    yield response
                    return
                if method not in {"GET", "HEAD"} and response.status not in {307, 308}:
                    yield response
                    return
            finally:
                response.close() if not response.content.at_eof() else response.release()
            url = join(url, location)
        raise RegistryProtocolError(
            f"{method} {redact_url(url)}: more than {_MAX_REDIRECTS} redirects", url=redact_url(url)
        )

    async def _send(
        self, method: str, url: URL, headers: Headers, body: bytes | Body | None, wait: float
    ) -> aiohttp.ClientResponse:
        assert self._session is not None, "the registry client is not open"
        tls = await self.hosts.tls(_authority(url)) if url.scheme == "https" else True
        fields = CIMultiDict(headers)
        fields["Accept-Encoding"] = "identity"
        fields.setdefault("User-Agent", self.user_agent)
        timeout = aiohttp.ClientTimeout(
            total=None, connect=CONNECT_TIMEOUT, sock_connect=CONNECT_TIMEOUT, sock_read=wait
        )
        failed: list[Exception] = []
        with _converted(method, url):
            # the first byte's deadline runs from the last byte that was sent; while a body flows, each chunk moves it on
            with anyio.fail_after(CONNECT_TIMEOUT + wait) as scope:
                if isinstance(body, Body):
                    fields["Content-Length"] = str(body.size)
                data = _watched(body, scope, wait, failed) if isinstance(body, Body) else body
                try:
                    return await self._session.request(
                        method,
                        url,
                        headers=fields,
                        data=data,
                        allow_redirects=False,
                        timeout=timeout,
                        ssl=tls,
                        proxy=self._proxy(url),
                    )
                except aiohttp.ClientError:
                    if failed:
                        raise failed[0] from None
                    raise

    def _proxy(self, url: URL) -> str | None:
        host = url.host or ""
        loopback = host == "localhost" or host.startswith("127.") or host == "::1"
        if loopback or urllib.request.proxy_bypass_environment(_authority(url), self._proxies):
            return None
        return self._proxies.get(url.scheme) or self._proxies.get("all")


async def read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Read the rest of an answer into memory.

    Args:
        response: from ``Wire.exchange``.
        limit: most bytes accepted.

    Raises:
        RegistryProtocolError: the answer is longer.
        RegistryBusy: it is cut off or takes longer than ``BODY_TIMEOUT``.
    """
    if (response.content_length or 0) > limit and response.method != "HEAD":
        raise _too_large(response, limit)
    parts: list[bytes] = []
    size = 0
    with _converted(response.method, response.url), anyio.fail_after(BODY_TIMEOUT):
        while data := await response.content.readany():
            size += len(data)
            if size > limit:
                raise _too_large(response, limit)
            parts.append(data)
    return b"".join(parts)


async def read_start(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Read at most ``limit`` bytes of an answer and forget the rest; for texts of errors."""
    parts: list[bytes] = []
    size = 0
    with _converted(response.method, response.url), anyio.fail_after(IDLE_TIMEOUT):
        while size < limit and (data := await response.content.read(limit - size)):
            size += len(data)
            parts.append(data)
    return b"".join(parts)


async def read_some(response: aiohttp.ClientResponse) -> bytes:
    """Read what has arrived, empty at the end.

    Raises:
        RegistryBusy: cut off, or silent for the exchange's ``wait``.
    """
    with _converted(response.method, response.url):
        return await response.content.readany()


def join(base: str, location: str) -> str:
    """Resolve a ``Location`` against the URL it answers, quoting only what may not stand in a URL."""
    return urljoin(base, quote(location.strip(), safe=_PRINTABLE))


def _too_large(response: aiohttp.ClientResponse, limit: int) -> RegistryProtocolError:
    url = redact_url(response.url)
    return RegistryProtocolError(
        f"{response.method} {url}: the answer is larger than {limit} bytes", url=url, http_status=response.status
    )


def _parsed(url: str) -> URL:
    try:
        parsed = URL(url, encoded=True)
        usable = parsed.scheme in {"http", "https"} and parsed.host and not parsed.user and parsed.port
    except ValueError:
        usable = None
    if not usable:
        raise RegistryProtocolError(f"the registry names a URL that cannot be used: {url.partition('?')[0][:200]!r}")
    return parsed


def _authority(url: URL) -> str:
    host = url.host or ""
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{url.explicit_port}" if url.explicit_port else host


async def _watched(
    body: Body, scope: anyio.CancelScope, wait: float, failed: list[Exception]
) -> AsyncIterator[bytes]:
    try:
        async for chunk in body.chunks():
            scope.deadline = anyio.current_time() + IDLE_TIMEOUT
            yield chunk
    except Exception as exc:  # noqa: BLE001 - aiohttp would wrap it in an error of the connection
        failed.append(exc)
        raise
    scope.deadline = anyio.current_time() + IDLE_TIMEOUT + wait


@contextmanager
def _converted(method: str, target: URL) -> Iterator[None]:
    """Turn what aiohttp and the system raise into faults of this room."""
    url = redact_url(target)
    try:
        yield
    except (ssl.SSLError, aiohttp.ClientSSLError, ssl.CertificateError) as exc:
        raise RegistryBusy(f"{method} {url}: no trusted TLS connection: {exc}", url=url, code=TLS) from exc
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as exc:
        raise RegistryBusy(f"{method} {url}: no connection: {exc}", url=url, code=CONNECT, temporary=True) from exc
    except (TimeoutError, asyncio.TimeoutError) as exc:
        raise RegistryBusy(f"{method} {url}: no answer in time", url=url, code=TIMEOUT, temporary=True) from exc
    except (aiohttp.ClientResponseError, aiohttp.InvalidURL, ValueError) as exc:
        raise RegistryProtocolError(f"{method} {url}: not an HTTP exchange: {exc}", url=url) from exc
    except (aiohttp.ClientError, OSError) as exc:
        raise RegistryBusy(f"{method} {url}: connection cut: {exc}", url=url, code=CUT, temporary=True) from exc
