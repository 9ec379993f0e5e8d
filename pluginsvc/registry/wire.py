"""One HTTP exchange with a registry or its token server: time-outs, redirects, caps, foreign errors converted.

What is private (credentials, the user's meta headers) goes to the origin of the first URL only, never to a redirect's
target. Only an exchange with an insecure registry may use plain HTTP, at any of its hops.
"""

from __future__ import annotations

import ssl
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, Self
from urllib.parse import quote, urljoin

import aiohttp
import anyio
from multidict import CIMultiDict
from yarl import URL

from pluginsvc.registry.errors import RegistryFault, RegistryProtocolError, converted, redact_url
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
        self._agent = user_agent
        self._proxies = dict(proxies)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
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
        connect: float = CONNECT_TIMEOUT,
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
            connect: seconds for each connection.

        Raises:
            RegistryBusy: no connection, no answer in time, connection cut.
            RegistryProtocolError: an answer or redirect that makes no sense, or leads away from HTTPS.
        """
        origin = _parsed(url).origin()
        at_home = True
        for _hop in range(_MAX_REDIRECTS):
            target = _parsed(url)
            if secure and target.scheme != "https":
                raise RegistryProtocolError(
                    f"{method} {redact_url(target)}: refused, plain HTTP is for insecure registries only",
                    url=redact_url(target),
                )
            at_home = at_home and target.origin() == origin
            sent = [*headers, *private] if at_home else list(headers)
            response = await self._send(method, target, sent, body, wait, connect, verify=secure and at_home)
            try:
                location = response.headers.get("Location")
                if not follow or response.status not in {301, 302, 303, 307, 308} or not location:
                    yield response
                    return
                if method not in {"GET", "HEAD"} and response.status not in {307, 308}:
                    yield response
                    return
            finally:
                response.release()
            url = join(url, location)
        raise RegistryProtocolError(
            f"{method} {redact_url(url)}: more than {_MAX_REDIRECTS} redirects", url=redact_url(url)
        )

    async def _send(
        self,
        method: str,
        url: URL,
        headers: Headers,
        body: bytes | Body | None,
        wait: float,
        connect: float,
        *,
        verify: bool,
    ) -> aiohttp.ClientResponse:
        assert self._session is not None, "the registry client is not open"
        proxy = self._proxy(url)
        tls: ssl.SSLContext | bool = True
        if url.scheme == "https" or proxy:
            # also for a proxy that is spoken to over TLS: aiohttp's own context knows no authorities (see __main__)
            tls = await self.hosts.tls(authority(url), verify=verify or url.scheme != "https")
        fields = CIMultiDict(headers)
        fields["Accept-Encoding"] = "identity"
        fields.setdefault("User-Agent", self._agent)
        timeout = aiohttp.ClientTimeout(total=None, connect=connect, sock_connect=connect, sock_read=wait)
        failed: list[Exception] = []
        try:
            # one deadline to the first byte of the answer; while a body flows, each of its chunks moves it on
            with converted(method, url), anyio.fail_after(connect + wait) as scope:
                data: bytes | AsyncIterator[bytes] | None
                if isinstance(body, Body):
                    fields["Content-Length"] = str(body.size)
                    data = _watched(body, scope, wait, failed)
                else:
                    data = body
                return await self._session.request(
                    method,
                    url,
                    headers=fields,
                    data=data,
                    allow_redirects=False,
                    timeout=timeout,
                    ssl=tls,
                    proxy=proxy,
                )
        except RegistryFault:
            if failed:
                raise failed[0] from None
            raise

    def _proxy(self, url: URL) -> str | None:
        host = url.host or ""
        loopback = host == "localhost" or host.startswith("127.") or host == "::1"
        if loopback or urllib.request.proxy_bypass(authority(url), self._proxies):
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
    with converted(response.method, response.url), anyio.fail_after(BODY_TIMEOUT):
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
    with converted(response.method, response.url), anyio.fail_after(IDLE_TIMEOUT):
        while size < limit and (data := await response.content.read(limit - size)):
            size += len(data)
            parts.append(data)
    return b"".join(parts)


async def read_some(response: aiohttp.ClientResponse) -> bytes:
    """Read what has arrived, empty at the end.

    Raises:
        RegistryBusy: cut off, or silent for the exchange's ``wait``.
    """
    with converted(response.method, response.url):
        return await response.content.readany()


def join(base: str, location: str) -> str:
    """Resolve a ``Location`` against the URL it answers, quoting only what may not stand in a URL.

    Raises:
        RegistryProtocolError: it is no URL.
    """
    try:
        return urljoin(base, quote(location.strip(), safe=_PRINTABLE))
    except ValueError as exc:
        raise _unusable(location) from exc


def _too_large(response: aiohttp.ClientResponse, limit: int) -> RegistryProtocolError:
    url = redact_url(response.url)
    return RegistryProtocolError(
        f"{response.method} {url}: the answer is larger than {limit} bytes", url=url, http_status=response.status
    )


def _parsed(url: str) -> URL:
    try:
        parsed = URL(url, encoded=True)
        if parsed.scheme in {"http", "https"} and parsed.host and not parsed.user and parsed.port:
            return parsed
    except ValueError:
        pass
    raise _unusable(url)


def _unusable(url: str) -> RegistryProtocolError:
    shown = url.partition("?")[0].rpartition("@")[2][:200]
    return RegistryProtocolError(f"the registry names a URL that cannot be used: {shown!r}")


def authority(url: URL) -> str:
    """Return ``host[:port]`` as references and certs.d write it: without a port that is the scheme's own."""
    host = url.host or ""
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{url.explicit_port}" if url.explicit_port else host


async def _watched(body: Body, scope: anyio.CancelScope, wait: float, failed: list[Exception]) -> AsyncIterator[bytes]:
    try:
        async for chunk in body.chunks():
            scope.deadline = anyio.current_time() + IDLE_TIMEOUT
            yield chunk
    except Exception as exc:
        failed.append(exc)  # aiohttp would wrap it in an error of the connection
        raise
    scope.deadline = anyio.current_time() + IDLE_TIMEOUT + wait
