"""One request on one connection to the daemon, asynchronously; ``connection`` is the other way, for commands."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Self, TypeVar

import aiohttp
import anyio
import msgspec
from yarl import URL

from pluginsvc.client.connection import AnswerLost, DaemonUnreachable, parse_host, refusal

CONNECT_TIMEOUT: Final = 10.0
"""Seconds for a connection."""

_LONGEST_PATH = 107
T = TypeVar("T")


class Wire:
    """How to talk to one daemon; an async context manager, for any number of tasks at once.

    Every method raises ``DaemonUnreachable``, ``AnswerLost``, or for an error of the API the kind that its status
    means, with its text as it is, and ``RuntimeError`` where it is not open.

    Args:
        host: ``unix:///PATH`` or ``tcp://HOST:PORT``.
        timeout: seconds for a whole answer.

    Raises:
        InvalidHost: it is neither.
    """

    def __init__(self, host: str, *, timeout: float) -> None:
        self.host = host
        self._address, self._timeout = parse_host(host), timeout
        self._base = URL("http://localhost")
        if not isinstance(self._address, str):
            self._base = URL.build(scheme="http", host=self._address[0], port=self._address[1])
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open; nothing is sent yet.

        Raises:
            RuntimeError: it is open.
        """
        if self._session is not None:
            raise RuntimeError("the client is open already: share it, any number of tasks may use it at once")
        # a connection for each request: one that was kept would be found broken after a restart of the daemon
        connector = (
            aiohttp.UnixConnector(self._address, limit=0, force_close=True)
            if isinstance(self._address, str)
            else aiohttp.TCPConnector(limit=0, force_close=True)
        )
        self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Close all connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def call(
        self,
        kind: type[T],
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        json: object = None,
        timeout: float | None = None,
    ) -> T:
        """Return a whole answer, decoded.

        Args:
            kind: what it must be.
            method: of HTTP.
            path: of the endpoint.
            query: its parameters.
            json: the body of the request, unless it is ``None``.
            timeout: seconds, where it is not the usual time.
        """
        with self.converted(), anyio.fail_after(timeout or self._timeout):
            response = await self.send(method, path, query, json=json)
            try:
                return msgspec.json.decode(await response.read(), type=kind)
            finally:
                response.close()

    async def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        json: object = None,
        silence: float | None = None,
    ) -> aiohttp.ClientResponse:
        """Send a request and return its answer, which is no error; whoever has it reads and closes it.

        Args:
            method: of HTTP.
            path: of the endpoint.
            query: its parameters.
            json: the body of the request, unless it is ``None``.
            silence: seconds without a byte after which the answer is lost; by default those for a whole one.
        """
        if self._session is None:
            raise RuntimeError("the client is not open: use it inside its `async with` block")
        if isinstance(self._address, str) and len(os.fsencode(self._address)) > _LONGEST_PATH:
            # uvloop would cut it, and reach another socket
            raise DaemonUnreachable(self.host, OSError("the path of a unix socket cannot be so long"))
        with self.converted():
            response = await self._session.request(
                method,
                self._base.with_path(path, encoded=True).with_query(query or {}),
                data=None if json is None else msgspec.json.encode(json),
                headers=None if json is None else {"Content-Type": "application/json"},
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT, sock_read=silence or self._timeout),
            )
            if response.status < 300:
                return response
            try:
                raise refusal(response.status, await response.read())
            finally:
                response.close()

    @contextmanager
    def converted(self) -> Iterator[None]:
        """Convert what goes wrong while a request is sent, or its answer read."""
        try:
            yield
        except aiohttp.ConnectionTimeoutError as exc:
            raise DaemonUnreachable(self.host, TimeoutError(errno.ETIMEDOUT, "it took too long")) from exc
        except aiohttp.ClientConnectorError as exc:
            cause, number = exc.os_error, exc.os_error.errno or 0
            # in the system's words; a name that is not found has a number of its own kind
            raise DaemonUnreachable(self.host, OSError(number, os.strerror(number)) if number > 0 else cause) from exc
        except (aiohttp.ClientError, OSError, msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise AnswerLost(self.host, exc) from exc
