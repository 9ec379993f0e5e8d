"""Events in a stream of NATS JetStream, where a fleet's consumers read many hosts."""

from __future__ import annotations

import random
import re
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio
import msgspec
import structlog
from anyio import to_thread

from pluginsvc.events.delivery import SinkFailed
from pluginsvc.events.forms import Origin, cloud_event
from pluginsvc.model.event import Event, Gap

if TYPE_CHECKING:
    # nats-py is an optional part, and takes a while to load
    from pluginsvc.events.nats_connection import Connection, Login

_log = structlog.get_logger()
_CONNECT_SECONDS = 15.0
"""Longest for all servers together; with the waits for answers a ``send`` stays below a minute."""
_NOT_A_TOKEN = re.compile(r"[^A-Za-z0-9_-]")
_NAME_IN_USE = 10058
_FULL = frozenset({10002, 10023, 10028, 10047, 10077})
"""Codes of JetStream for: resources of the account, of the server, or limits of the stream, are exhausted."""
_SECOND = 1_000_000_000
_DAY = 24 * 3600 * _SECOND


class _Message(NamedTuple):
    subject: str
    payload: bytes
    headers: dict[str, str] | None


class _Refusal(msgspec.Struct, frozen=True):
    err_code: int = 0
    description: str = ""


class _Config(msgspec.Struct, frozen=True):
    subjects: list[str] = []


class _Reply(msgspec.Struct, frozen=True):
    """What JetStream answers, to a publication and to a request of its API, as far as we care."""

    error: _Refusal | None = None
    stream: str = ""
    config: _Config = _Config()
    did_create: bool = False


_REPLY = msgspec.json.Decoder(_Reply)


class NatsSink:
    """Publishes each event as a CloudEvent to ``SUBJECT.HOST.ACTION``, a gap to ``SUBJECT.HOST.gap``.

    Each has a ``Nats-Msg-Id`` of its own, the same whenever it is offered again, so that the stream drops what it has.

    Args:
        servers: addresses of one cluster.
        origin: who tells of them.
        stream: name of the stream, made when nothing takes the subject; one that is there is not changed.
        subject: first token or tokens of the subjects.
        credentials_file: for the log-in; read at each connection.
    """

    name = "nats"

    def __init__(
        self,
        servers: Sequence[str],
        origin: Origin,
        *,
        stream: str,
        subject: str,
        credentials_file: Path | None = None,
    ) -> None:
        self._servers, self._origin, self._stream, self._subject = servers, origin, stream, subject
        self._prefix = f"{subject}.{_NOT_A_TOKEN.sub('_', origin.host) or '_'}"
        self._credentials_file = credentials_file
        self._connection: Connection | None = None
        # whether this connection's first message has been taken
        self._begun = False

    async def send(self, items: Sequence[Event | Gap]) -> None:
        """Publish all, and return when the stream has acknowledged each."""
        if self._connection is not None and self._connection.broken:
            await self.close()
        if self._connection is None:
            self._connection, self._begun = await self._connect(), False
        messages = [self._message(item) for item in items]
        if not self._begun:
            # alone: as long as one may be refused, nothing may come into the stream before it
            await self._begin(self._connection, messages[0])
            messages, self._begun = messages[1:], True
        answers = await self._connection.ask(messages)
        for message, answer in zip(messages, answers, strict=True):
            self._check(message, answer)

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _connect(self) -> Connection:
        """Connect to any of the servers."""
        try:
            connection, tls, login = await to_thread.run_sync(self._prepare)
        except ImportError as exc:
            raise self._failed(f"{exc.name} cannot be loaded: pip install 'pluginsvc[nats]'") from exc
        problems: list[str] = []
        with anyio.move_on_after(_CONNECT_SECONDS):
            for server in random.sample(self._servers, len(self._servers)):
                try:
                    return await connection.open(server, tls=tls, login=login)
                except SinkFailed as exc:
                    problems.append(exc.reason)
        raise self._failed("; ".join(problems) or f"no connection to any server in {_CONNECT_SECONDS:g} s")

    def _prepare(self) -> tuple[type[Connection], ssl.SSLContext, Login | None]:
        """Load what loading blocks for: the library, the host's authorities, the log-in."""
        from pluginsvc.events.nats_connection import Connection, read_login  # noqa: PLC0415 - see above

        return (
            Connection,
            ssl.create_default_context(),
            read_login(self._credentials_file) if self._credentials_file else None,
        )

    def _message(self, item: Event | Gap) -> _Message:
        if isinstance(item, Gap):
            action, number = "gap", f"gap-{item.after}-{item.oldest}"
        else:
            action, number = item.action, str(item.seq)
        headers = {"Content-Type": "application/cloudevents+json", "Nats-Msg-Id": f"{self._origin.id}-{number}"}
        return _Message(f"{self._prefix}.{action}", cloud_event(item, self._origin), headers)

    async def _begin(self, connection: Connection, message: _Message) -> None:
        """Publish a first message; make the stream where nothing takes it."""
        (answer,) = await connection.ask([message])
        if not answer:
            # where somebody merely listens the server does not say that no stream does
            await self._make_stream(connection)
            (answer,) = await connection.ask([message])
            if not answer:
                reply = await self._request(connection, "INFO", b"")
                raise self._failed(
                    f"stream {self._stream} is there, but takes {', '.join(reply.config.subjects)} and not"
                    f" {message.subject}: add {self._subject}.> to its subjects, or choose another stream or subject"
                    " in [sinks.nats]"
                )
        self._check(message, answer)

    async def _make_stream(self, connection: Connection) -> None:
        """Make the stream; where somebody else has, that one will do."""
        config = {
            "name": self._stream,
            "description": "Lifecycle events of plugins, by pluginsvc",
            "subjects": [f"{self._subject}.>"],
            "storage": "file",
            "retention": "limits",
            "discard": "old",
            "max_age": 30 * _DAY,
            "max_bytes": -1,
            "max_msgs": -1,
            "max_msg_size": -1,
            "max_consumers": -1,
            "num_replicas": 1,
            "duplicate_window": 3600 * _SECOND,
        }
        reply = await self._request(connection, "CREATE", msgspec.json.encode(config))
        if reply.error is not None and reply.error.err_code != _NAME_IN_USE:
            raise self._failed(f"stream {self._stream} cannot be made at {connection.place}: {_why(reply.error)}")
        if reply.did_create:
            _log.info("nats.stream_made", server=connection.place, stream=self._stream, subjects=config["subjects"])

    async def _request(self, connection: Connection, verb: str, payload: bytes) -> _Reply:
        subject = f"$JS.API.STREAM.{verb}.{self._stream}"
        (answer,) = await connection.ask([_Message(subject, payload, None)])
        if not answer:
            raise self._failed(
                f"JetStream does not answer at {connection.place}: it has to be on there (nats-server -js), and open to"
                " this account"
            )
        return self._reply(subject, answer)

    def _check(self, message: _Message, answer: bytes | None) -> None:
        """Raise unless a stream has the message."""
        if answer is None:
            raise self._failed(f"no answer for {message.subject}")
        if not answer:
            raise self._failed(f"no stream takes {message.subject}: add {self._subject}.> to the subjects of one")
        reply = self._reply(message.subject, answer)
        if reply.error is not None:
            raise self._failed(f"{message.subject}: {_why(reply.error)}")
        if not reply.stream:
            raise self._failed(f"what answers {message.subject} is no stream: choose another subject in [sinks.nats]")

    def _reply(self, subject: str, answer: bytes) -> _Reply:
        try:
            return _REPLY.decode(answer)
        except msgspec.MsgspecError as exc:
            raise self._failed(
                f"what answers {subject} is not JetStream: choose another subject in [sinks.nats]"
            ) from exc

    def _failed(self, reason: str) -> SinkFailed:
        return SinkFailed(self.name, reason)


def _why(refusal: _Refusal) -> str:
    hint = ": make room, or raise the limits of stream, account or server" if refusal.err_code in _FULL else ""
    return f"{refusal.description} ({refusal.err_code}){hint}"
