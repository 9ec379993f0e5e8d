"""Calls to plugins: ``POST /<Service.Method>`` with JSON both ways (REF 3.13, §5).

A plugin is not trusted: what it answers is capped, bounded in time and never followed elsewhere. Each call has a
connection of its own, so that there is nothing to close between calls.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import anyio
import msgspec
import structlog
from anyio import to_thread
from anyio.abc import ByteStream

from pluginsvc.directory.address import TLSConfig, UnixStream, connected, make_context, parse
from pluginsvc.directory.aside import Aside
from pluginsvc.directory.exchange import Exchange, NoHTTP
from pluginsvc.errors import Internal, Unavailable

CONNECT_TIMEOUT: Final = 10.0
"""Seconds for name look-up, connection and TLS together, also where a call itself may take as long as it takes."""

RETRY_FOR: Final = 30.0
"""Seconds after the first try within which a further one must begin; also the longest wait before one."""

_MAX_TEXT = 4096
"""Characters kept of what a plugin says went wrong."""

_HEADERS = {"Accept": "application/vnd.docker.plugins.v1.2+json", "Accept-Encoding": "identity"}
_log = structlog.get_logger()


class PluginFault(Exception):
    """What every error of a call carries; caught, never raised itself.

    Attributes:
        plugin: its name, or its address where that is not known.
        method: ``Service.Method`` that was called.
        reason: what went wrong, for people.
    """

    def __init__(self, message: str, *, plugin: str, method: str, reason: str) -> None:
        self.plugin, self.method, self.reason = plugin, method, reason
        super().__init__(message)


class PluginUnreachable(PluginFault, Unavailable):
    """A plugin took no connection, or gave no answer to the call, or none in time.

    Attributes:
        sent: whether it was connected at any try, so that it may have done what it was asked to.
    """

    sent = False


class PluginUntrusted(PluginFault, Unavailable):
    """A plugin's certificate is not trusted, or the files that TLS needs cannot be used."""


class PluginRefused(PluginFault, Internal):
    """A plugin answered that the call failed; the text is its own (REF §5).

    Attributes:
        http_status: of the answer.
    """

    def __init__(self, *, plugin: str, method: str, reason: str, http_status: int) -> None:
        self.http_status = http_status
        super().__init__(f"{method}: {reason}", plugin=plugin, method=method, reason=reason)


class BadAnswer(PluginFault, Internal):
    """A plugin's answer is no HTTP, no JSON object, too large, never finished, or no answer to this call."""

    def __init__(self, *, plugin: str, method: str, reason: str) -> None:
        text = f"{method}: the answer of plugin {plugin} is of no use: {reason}: tell the author of the plugin"
        super().__init__(text, plugin=plugin, method=method, reason=reason)


class _Refusal(msgspec.Struct, frozen=True):
    err: str = msgspec.field(default="", name="Err")


class Client:
    """Calls one plugin.

    Args:
        address: ``unix:///PATH``, ``tcp://HOST:PORT`` (plain HTTP), ``http://…`` or ``https://…``, whose path is not
            used. A unix socket that is a symbolic link is refused.
        name: of the plugin, for errors; its address if empty.
        tls: for ``https``; ``None``: verified with the machine's authorities.
        clock: tells seconds.
        sleep: waits between tries.

    Raises:
        InvalidAddress: it is none of these.
    """

    def __init__(
        self,
        address: str,
        *,
        name: str = "",
        tls: TLSConfig | None = None,
        clock: Callable[[], float] = anyio.current_time,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._socket, self._url = parse(address)
        self._address, self._name = address, name or address
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        self._aside = Aside(1)
        self._clock, self._sleep = clock, sleep

    async def call(
        self, method: str, argument: object = None, *, timeout: float | None = None, retry_for: float = RETRY_FOR
    ) -> dict[str, Any]:
        """Call the plugin, again after 1, 2, 4, 8 s if it gave no answer at all.

        Args:
            method: ``Service.Method``.
            argument: sent as JSON; nothing is sent for ``None``.
            timeout: seconds for each try; 0 or ``None``: as long as it takes once connected.
            retry_for: seconds after the first try within which a further one must begin; 0: there is one try.

        Returns:
            The answer. An ``Err`` in it is for the caller to look at.

        Raises:
            PluginUnreachable: no answer to any of the tries.
            PluginUntrusted: no TLS that can be trusted.
            PluginRefused: an answer other than 200.
            BadAnswer: an answer that is none.
        """
        body = b"" if argument is None else msgspec.json.encode(argument)
        started = self._clock()
        wait = 1.0
        sent = False
        while True:
            try:
                return await self._call(method, body, timeout)
            except PluginUnreachable as exc:
                exc.sent = sent = sent or exc.sent
                if self._clock() - started + wait >= retry_for:
                    raise
                _log.info("rpc.retry", plugin=self._name, method=method, wait=wait, error=exc.reason)
            await self._sleep(wait)
            wait = min(2 * wait, RETRY_FOR)

    async def _call(self, method: str, body: bytes, timeout: float | None) -> dict[str, Any]:
        async with self.exchange(method, body, timeout=timeout) as answer:
            raw = await answer.read()
        if answer.status != 200:
            reason = _text(raw, answer.status)
            raise PluginRefused(plugin=self._name, method=method, reason=reason, http_status=answer.status)
        try:
            return msgspec.json.decode(raw, type=dict[str, Any])
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            raise self._bad(method, f"it is no JSON object: {exc}") from exc

    @asynccontextmanager
    async def exchange(self, method: str, body: bytes, *, timeout: float | None) -> AsyncIterator[Exchange]:
        """Ask once, and give the answer whose body is still to be read; what that meets is converted as well.

        Args:
            method: ``Service.Method``.
            body: what to send.
            timeout: seconds for all of it; 0 or ``None``: as long as it takes once connected.

        Raises:
            PluginUnreachable: no answer.
            PluginUntrusted: no TLS that can be trusted.
            BadAnswer: no HTTP, or the body did not end well.
        """
        sent = answered = False
        try:
            with anyio.fail_after(timeout or None):
                stream = await self._connect(method)
                sent = True
                try:
                    answer = Exchange(stream)
                    await answer.post(self._url.host_port_subcomponent or "", f"/{method}", _HEADERS, body)
                    answered = True
                    yield answer
                finally:
                    await anyio.aclose_forcefully(stream)
        except NoHTTP as exc:
            raise self._bad(method, str(exc)) from exc
        except (OSError, anyio.EndOfStream, anyio.BrokenResourceError) as exc:
            reason = _reason(exc)
            if answered:
                # the plugin may have done what it was asked to: not to be tried again
                raise self._bad(method, reason) from exc
            text = f"{method}: no answer from plugin {self._name} at {self._address}: {reason}: see that it runs"
            unreachable = PluginUnreachable(text, plugin=self._name, method=method, reason=reason)
            unreachable.sent = sent
            raise unreachable from exc

    async def _connect(self, method: str) -> ByteStream:
        with anyio.fail_after(CONNECT_TIMEOUT):
            if self._socket is not None:
                return UnixStream(await to_thread.run_sync(connected, self._socket))
            host, port = self._url.raw_host or "", self._url.port or 0
            if self._url.scheme == "http":
                return await anyio.connect_tcp(host, port)
            if self._context is None:
                try:
                    # its files may be where a mount hangs
                    self._context = await self._aside.run(make_context, self._tls)
                except (OSError, ValueError) as exc:
                    raise self._untrusted(method, exc) from exc
            try:
                return await anyio.connect_tcp(host, port, ssl_context=self._context, tls_standard_compatible=False)
            except ssl.SSLCertVerificationError as exc:
                raise self._untrusted(method, exc) from exc

    def _untrusted(self, method: str, exc: Exception) -> PluginUntrusted:
        text = (
            f"{method}: no trusted TLS connection to plugin {self._name} at {self._address}: {exc}: "
            "check CAFile, CertFile and KeyFile of its TLSConfig"
        )
        return PluginUntrusted(text, plugin=self._name, method=method, reason=str(exc))

    def _bad(self, method: str, reason: str) -> BadAnswer:
        return BadAnswer(plugin=self._name, method=method, reason=reason)


def printable(text: str) -> str:
    """Return what a plugin says on one line, and not too much of it."""
    return "".join(c if c.isprintable() else " " for c in text[:_MAX_TEXT]).strip()


def _text(raw: bytearray, status: int) -> str:
    """Return what an error answer says: its ``Err``, else all of it (REF §5)."""
    text = raw.decode(errors="replace")
    with suppress(msgspec.MsgspecError, ValueError, RecursionError):
        text = msgspec.json.decode(raw, type=_Refusal).err or text
    return printable(text) or f"HTTP status {status} without a word"


def _reason(exc: BaseException) -> str:
    """Say why in the words of the system, without anyio's own around them."""
    while isinstance(exc, OSError) and exc.__cause__ is not None:
        exc = exc.__cause__
    if isinstance(exc, BaseExceptionGroup):
        # one for each address of the host
        exc = exc.exceptions[-1]
    if isinstance(exc, TimeoutError):
        return "it took too long"
    if isinstance(exc, anyio.EndOfStream | anyio.BrokenResourceError):
        return "it closed the connection"
    return getattr(exc, "strerror", "") or str(exc) or type(exc).__name__
