"""The API from the other side: one request on one connection, over a unix socket or loopback TCP.

It is synchronous and on the standard library: a command asks one thing after another, and loading an asynchronous HTTP
library would take longer than most of the answers.
"""

from __future__ import annotations

import http.client
import io
import select
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from pluginsvc.errors import KINDS, Internal, InvalidParameter, PluginsvcError, Unavailable
from pluginsvc.model.progress import Line

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

DEFAULT_HOST = "unix:///run/pluginsvc/pluginsvc.sock"

_CONNECT_TIMEOUT = 10.0
_READ_TIMEOUT = 60.0
"""Seconds for answers that need no work. Work may take as long as it takes: the person at the terminal can end it."""

_CHUNK = 256 * 1024
_KINDS = {kind.status: kind for kind in KINDS}

T = TypeVar("T")
_Query = Mapping[str, str] | None


class InvalidHost(InvalidParameter):
    """The address of the daemon is not one."""

    def __init__(self, host: str) -> None:
        self.host = host
        super().__init__(f"{host!r} is neither unix:///PATH nor tcp://HOST:PORT")


class DaemonUnreachable(Unavailable):
    """Nobody takes the connection."""

    def __init__(self, host: str, cause: OSError) -> None:
        self.host, self.cause = host, cause
        todo = "start it (systemctl start pluginsvc), or say where it is with --host or PLUGINSVC_HOST"
        if isinstance(cause, PermissionError):
            todo = "run this as root, or as a member of the group that owns the socket"
        super().__init__(f"cannot reach the daemon at {host}: {cause.strerror or cause}: {todo}")


class AnswerLost(Unavailable):
    """The connection failed before the end of the answer, or what came is no answer of ours."""

    def __init__(self, host: str, cause: Exception) -> None:
        self.host, self.cause = host, cause
        super().__init__(
            f"no whole answer from the daemon at {host} ({str(cause) or type(cause).__name__}): see that it runs "
            "(systemctl status pluginsvc), and with `pluginctl ls` what was done"
        )


class WorkFailed(Internal):
    """The last line of a stream says that the work failed; the kind of the error does not travel in it."""


class Connection:
    """How to talk to one daemon.

    Every method raises ``DaemonUnreachable``, ``AnswerLost``, or for an error of the API the kind that its status
    means, with its text as it is.

    Args:
        host: ``unix:///PATH`` or ``tcp://HOST:PORT``.

    Raises:
        InvalidHost: it is neither.
    """

    def __init__(self, host: str) -> None:
        self.host = host
        self._address = parse_host(host)

    def call(self, method: str, path: str, query: _Query = None, *, json: object = None) -> bytes:
        """Return the whole body of an answer; ``json`` is the body of the request, unless it is ``None``."""
        timeout = _READ_TIMEOUT if method == "GET" else None
        with self._exchange(method, path, query, json=json, timeout=timeout) as response:
            return response.read()

    def lines(
        self, method: str, path: str, query: _Query = None, *, headers: _Query = None, timeout: float | None = None
    ) -> Iterator[bytes]:
        """Yield the lines of a stream as they come; see ``chunks``."""
        rest = b""
        for chunk in self.chunks(method, path, query, headers=headers, timeout=timeout):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line.strip() for line in lines)
        if rest:
            raise AnswerLost(self.host, EOFError("the last line is not whole"))

    def chunks(
        self, method: str, path: str, query: _Query = None, *, headers: _Query = None, timeout: float | None = None
    ) -> Iterator[bytes]:
        """Yield the bytes of a stream as they come; ends only when the daemon has ended it in good order.

        After ``timeout`` seconds without a byte the connection counts as lost.
        """
        with self._exchange(method, path, query, headers=headers, timeout=timeout) as response:
            while chunk := response.read1(_CHUNK):
                yield chunk

    def progress(self, path: str) -> Iterator[tuple[Line, bytes]]:
        """Do work that tells its progress (REF 1.5); yield each line, decoded and as it came.

        Raises:
            WorkFailed: the last line said so.
        """
        for raw in self.lines("POST", path):
            line = self.decoded(raw, Line)
            if line.error_detail is not None:
                raise WorkFailed(line.error_detail.message)
            yield line, raw

    def upload(self, path: str, query: _Query, produce: Callable[[io.RawIOBase], None]) -> None:
        """Post a tar that is made while it is sent, and stop making it once the daemon has answered.

        Args:
            path: of the endpoint.
            query: its parameters.
            produce: writes the tar; what it raises breaks the connection off, so that half a body never looks whole.
        """
        with self._exchange("POST", path, query, produce=produce) as response:
            response.read()

    def decoded(self, body: bytes, kind: type[T]) -> T:
        """Decode an answer that must be a ``kind``."""
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as exc:
            raise AnswerLost(self.host, exc) from exc

    @contextmanager
    def _exchange(
        self,
        method: str,
        path: str,
        query: _Query,
        *,
        json: object = None,
        headers: _Query = None,
        produce: Callable[[io.RawIOBase], None] | None = None,
        timeout: float | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        """Send one request; inside the block its answer, which is no error, is read."""
        body = None if json is None else msgspec.json.encode(json)
        sent = dict(headers or {}) | ({} if body is None else {"Content-Type": "application/json"})
        if produce is not None:
            sent = {"Content-Type": "application/x-tar", "Transfer-Encoding": "chunked"}
        with closing(_Wire(self._address)) as wire:
            try:
                sock = wire.open()
            except OSError as exc:
                raise DaemonUnreachable(self.host, exc) from exc
            try:
                sock.settimeout(timeout)
                wire.request(method, f"{path}?{urlencode(query)}" if query else path, body, sent)
                if produce is not None:
                    with suppress(_AlreadyAnswered):
                        chunks = _Chunks(sock)
                        produce(chunks)
                        chunks.end()
                response = wire.getresponse()
                if response.status >= 300:
                    raise refusal(response.status, response.read())
                yield response
            except (OSError, http.client.HTTPException) as exc:
                raise AnswerLost(self.host, exc) from exc


def parse_host(host: str) -> str | tuple[str, int]:
    """Return the path of a unix socket, or host and port.

    Raises:
        InvalidHost: it is neither.
    """
    with suppress(ValueError):
        url = urlsplit(host)
        if url.scheme == "unix" and not url.netloc and url.path.startswith("/"):
            return host.removeprefix("unix://")
        if url.scheme == "tcp" and url.hostname and url.port and not url.path and "@" not in url.netloc:
            url.hostname.encode("idna")  # what it cannot encode would fail later, and not as an OSError
            return url.hostname, url.port
    raise InvalidHost(host)


class _Wire(http.client.HTTPConnection):
    """An HTTP connection that may be a unix socket's."""

    def __init__(self, address: str | tuple[str, int]) -> None:
        self._address = address
        super().__init__(*(("localhost",) if isinstance(address, str) else address))

    def open(self) -> socket.socket:
        if isinstance(self._address, str):
            self.sock = sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(_CONNECT_TIMEOUT)
            sock.connect(self._address)
        else:
            self.sock = sock = socket.create_connection(self._address, _CONNECT_TIMEOUT)
        return sock


class _AlreadyAnswered(Exception):
    """The daemon has answered, or hung up, before it had the whole body."""


class _Chunks(io.RawIOBase):
    """Sends what is written in chunks, for as long as the daemon has not answered."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._held = bytearray()
        self._incoming = select.poll()
        self._incoming.register(sock, select.POLLIN)

    def tell(self) -> int:
        """Return 0: tarfile asks once, before it writes."""
        return 0

    def write(self, data: ReadableBuffer, /) -> int:
        """Send a chunk when there is enough for one."""
        self._held += data
        if len(self._held) >= _CHUNK:
            self._send()
        return memoryview(data).nbytes

    def end(self) -> None:
        """Send what is left, and the end."""
        if self._held:
            self._send()
        self._send()

    def _send(self) -> None:
        """Send a chunk; the empty one is the end."""
        if self._incoming.poll(0):
            raise _AlreadyAnswered
        try:
            self._sock.sendall(b"%x\r\n" % len(self._held) + self._held + b"\r\n")
        except OSError as exc:
            raise _AlreadyAnswered from exc
        self._held.clear()


def refusal(status: int, body: bytes) -> PluginsvcError:
    """Return the daemon's error: only its kind and its text travel, so the kind itself is all there is to raise."""
    try:
        message = msgspec.json.decode(body, type=dict[str, str])["message"]
    except (msgspec.MsgspecError, KeyError):
        message = body.decode(errors="replace").strip()
    return _KINDS.get(status, Internal)(message or f"the daemon answered with status {status} and no reason")
