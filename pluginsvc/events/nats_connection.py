"""One connection to a NATS server, given up at the first trouble; the only module that knows nats-py.

Of nats-py (2.16) the core client alone is used, with reconnecting off. Its ``publish_async`` never resolves when the
server answers with an error (nats.py issue 985), ``drain`` and ``flush`` may outlast their timeouts, ``close`` leaves
the socket behind when the connection broke while something was unsent, and its reader of credentials files does not end
on a file that is none.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias
from urllib.parse import urlsplit

import anyio
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from pluginsvc.events.delivery import SinkFailed

_log = structlog.get_logger()
_CONNECT_SECONDS = 3
"""Longest for each of: TCP, the server's greeting, TLS, the log-in."""
_ANSWER_SECONDS = 10.0
_CLOSE_SECONDS = 1.0
Message: TypeAlias = tuple[str, bytes, dict[str, str] | None]
"""Subject, content and headers of what is published and wants an answer."""
_PART = re.compile(r"-----BEGIN (NATS USER JWT|USER NKEY SEED)-----\s+(\S+)")


class Login(NamedTuple):
    """What a credentials file gives.

    Attributes:
        jwt: tells who we are.
        sign: proves it, by a base64 signature of what the server asks.
    """

    jwt: bytes
    sign: Callable[[str], bytes]


def read_login(path: Path) -> Login:
    """Read a credentials file, as ``nsc`` writes it. Blocks.

    Raises:
        SinkFailed: it cannot be read, or is none.
        ImportError: cryptography is not installed.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415 - rarely needed

    try:
        parts = dict(_PART.findall(path.read_text("ascii")))
        key = Ed25519PrivateKey.from_private_bytes(_unwrapped(parts["USER NKEY SEED"]))
        return Login(parts["NATS USER JWT"].encode(), lambda nonce: base64.b64encode(key.sign(nonce.encode())))
    except OSError as exc:
        raise SinkFailed("nats", f"credentials-file {path} cannot be read: {exc.strerror}") from exc
    except (ValueError, KeyError):
        # not from what was raised: it may show what the file holds
        raise SinkFailed(
            "nats", f"credentials-file {path} does not hold a user's JWT and seed: make it by nsc"
        ) from None


def _unwrapped(seed: str) -> bytes:
    """Return the private key of a seed: two bytes say what it is a seed of, then the key, then a checksum."""
    raw = base64.b32decode(seed + "=" * (-len(seed) % 8))
    if binascii.crc_hqx(raw[:-2], 0) != int.from_bytes(raw[-2:], "little"):
        raise ValueError
    return raw[2:-2]


class _Client(Client):
    def _connect_command(self) -> bytes:
        # nats-py takes up TLS when the server asks for it, whatever the address says: whoever stands between the two
        # could talk it out of it, and get the log-in
        assert self._current_server is not None
        if self._current_server.uri.scheme == "tls" and not self._server_info.get("tls_required"):
            raise NatsError("the server does not ask for TLS: set it up there, or say nats:// instead of tls://")
        return super()._connect_command()


class Connection:
    """One connection; make it with ``open``."""

    def __init__(self, server: str) -> None:
        url = urlsplit(server)
        # the address may hold a log-in
        self.place = f"{url.scheme}://{url.netloc.rpartition('@')[2]}"
        self._client = _Client()
        self._tasks: list[asyncio.Task[None]] = []
        self._trouble = ""
        self._inbox = ""
        self._asked = 0
        self._answers: dict[int, bytes] = {}
        self._wanted = 0
        self._settled = anyio.Event()

    @classmethod
    async def open(cls, server: str, *, tls: ssl.SSLContext, login: Login | None) -> Connection:
        """Connect and log in.

        Args:
            server: ``nats://`` or ``tls://`` address, perhaps with user and password.
            tls: for servers that ask for TLS.
            login: of the credentials file.

        Raises:
            SinkFailed: there is no connection.
        """
        self = cls(server)
        try:
            await self._open(server, tls, login)
        except Exception as exc:
            await self.close()
            # the last error is nats-py's word that there are no more servers; what it met comes before
            raise SinkFailed("nats", f"no connection to {self.place}: {self._trouble or _text(exc)}") from exc
        except BaseException:
            await self.close()
            raise
        return self

    async def _open(self, server: str, tls: ssl.SSLContext, login: Login | None) -> None:
        client = self._client
        await client.connect(
            [server],
            name="pluginsvc",
            error_cb=self._failed,
            allow_reconnect=False,
            # the first address it cannot reach is tried once more, as 0 means for ever
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=_CONNECT_SECONDS,
            tls=tls,
            user_jwt_cb=(lambda: login.jwt) if login else None,
            signature_cb=login.sign if login else None,
        )
        # of an address that was tried before the one that answered
        self._trouble = ""
        assert client._reading_task is not None  # noqa: SLF001 - see ``close``
        # it ends whenever the connection does, also where no callback of nats-py is called
        client._reading_task.add_done_callback(self._lost)  # noqa: SLF001 - as above
        self._inbox = client.new_inbox()
        answers = await client.subscribe(f"{self._inbox}.*", cb=self._answered)
        tasks = (
            client._reading_task,  # noqa: SLF001 - as above
            client._ping_interval_task,  # noqa: SLF001 - as above
            client._flusher_task,  # noqa: SLF001 - as above
            answers._wait_for_msgs_task,  # noqa: SLF001 - as above
        )
        self._tasks = [task for task in tasks if task is not None]

    @property
    def broken(self) -> bool:
        """Tell whether it is of no more use."""
        return bool(self._trouble)

    async def ask(self, messages: Sequence[Message]) -> list[bytes | None]:
        """Publish all, then wait for all answers; 10 s in all.

        Returns:
            In the order of the messages: the answer; empty where the server says that nobody takes the subject; or
            ``None`` where nobody has answered.

        Raises:
            SinkFailed: the connection broke, or the server has forbidden something.
        """
        if not messages:
            return []
        first = self._asked
        self._asked += len(messages)
        self._answers, self._wanted, self._settled = {}, len(messages), anyio.Event()
        try:
            with anyio.move_on_after(_ANSWER_SECONDS):
                for number, (subject, payload, headers) in enumerate(messages, first):
                    await self._client.publish(subject, payload, f"{self._inbox}.{number}", headers)
                if not self._trouble:
                    await self._settled.wait()
        except (NatsError, OSError) as exc:
            self._trouble = self._trouble or _text(exc)
        if self._trouble:
            raise SinkFailed("nats", f"{self.place}: {self._trouble}")
        return [self._answers.get(number) for number in range(first, self._asked)]

    async def close(self) -> None:
        """Close it, and leave nothing of it behind; seconds at most, and not to be cancelled."""
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(_CLOSE_SECONDS):
                try:
                    await self._client.close()
                except Exception as exc:  # noqa: BLE001 - what it could not do is done below
                    _log.debug("nats.not_closed", server=self.place, error=_text(exc))
            # nats-py offers no way to get at what its own close leaves behind
            writer = getattr(self._client._transport, "_io_writer", None)  # noqa: SLF001 - as above
            if writer is not None:
                writer.transport.abort()
            for task in self._tasks:
                task.cancel()
            with anyio.move_on_after(_CLOSE_SECONDS):
                await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _answered(self, message: Msg) -> None:
        number = int(message.subject.rpartition(".")[2])
        # not one that comes too late
        if number >= self._asked - self._wanted:
            nobody = (message.headers or {}).get("Status") == "503"
            self._answers[number] = b"" if nobody else message.data
            if len(self._answers) == self._wanted:
                self._settled.set()

    async def _failed(self, exc: Exception) -> None:
        """Take what nats-py complains of, the server's refusals among it."""
        _log.debug("nats.trouble", server=self.place, error=_text(exc))
        self._trouble = _text(exc)
        self._settled.set()

    def _lost(self, _reader: asyncio.Task[None]) -> None:
        self._trouble = self._trouble or _text(self._client.last_error or NatsError("the connection is closed"))
        self._settled.set()


def _text(exc: Exception) -> str:
    """Say what went wrong, and what to do about a log-in."""
    text = str(exc).removeprefix("nats: ") or type(exc).__name__
    # a server that refuses a login may hang up before its word for it is read
    hung_up = isinstance(exc, (ConnectionResetError, BrokenPipeError))
    if hung_up or re.search(r"authorization|authentication|permissions", text, re.IGNORECASE):
        return f"{text}: check the login in servers or credentials-file of [sinks.nats], and what it may do"
    return text
