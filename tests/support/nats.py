"""A real NATS server (Debian's nats-server) on loopback that can die and come back, and what its stream holds."""

from __future__ import annotations

import base64
import binascii
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import anyio
import anyio.abc
import nats
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig
from nats.js.errors import NotFoundError

from tests.support import parts, procs


class Stored(NamedTuple):
    """One message of a stream."""

    subject: str
    headers: dict[str, str]
    event: dict[str, Any]

    @property
    def id(self) -> str:
        return self.headers["Nats-Msg-Id"]


class NatsServer:
    """A server on a port of its own, the same over its lives; use it in a ``with`` block, which starts it.

    Attributes:
        home: its folder.
        jetstream, config: for the next start.
        port: on 127.0.0.1.
        url: for clients.
    """

    def __init__(self, home: Path, *, jetstream: bool = True, config: str = "") -> None:
        home.mkdir()
        self.home = home
        self.jetstream, self.config = jetstream, config
        self.port = procs.free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self._proc: procs.Proc | None = None

    def start(self) -> None:
        """Start it, on the store of its life before, and wait until it answers."""
        log, config = self.home / "log", self.home / "config"
        began = log.stat().st_size if log.exists() else 0
        config.write_text(self.config)
        words: list[str | Path] = [parts.find("nats-server"), "-a", "127.0.0.1", "-p", str(self.port), "-c", config]
        if self.jetstream:
            words += ["-js", "-sd", self.home / "store"]
        self._proc = procs.start(words, log=log, env=parts.env())
        self._proc.wait_until(lambda: b"Server is ready" in log.read_bytes()[began:])

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._proc
        self._proc.signal(number)

    def kill(self) -> None:
        """Send KILL and reap."""
        assert self._proc
        self._proc.signal(signal.SIGKILL)
        self._proc.wait()

    def stop(self) -> None:
        """Send TERM and reap; may be called again."""
        if self._proc:
            self._proc.end()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[Client]:
        """Give a connection of nats-py's, with options of ``nats.connect``."""
        client = await nats.connect(self.url, **options)
        try:
            yield client
        finally:
            await client.close()

    async def count(self, stream: str = "PLUGINSVC", **options: Any) -> int:
        """Return how many messages the stream holds; none where it is not there."""
        async with self.client(**options) as client:
            try:
                return int((await client.jetstream().stream_info(stream)).state.messages)
            except NotFoundError:
                return 0

    async def read(self, subject: str = "pluginsvc.>", **options: Any) -> list[Stored]:
        """Return all that the stream with such a subject holds, in its order, as a consumer gets it."""
        async with self.client(**options) as client:
            jetstream = client.jetstream()
            stream = await jetstream.find_stream_name_by_subject(subject)
            count = (await jetstream.stream_info(stream)).state.messages
            # a pulled one: nats-py leaves tasks of its ordered consumer behind
            config = ConsumerConfig(ack_policy=AckPolicy.NONE)
            consumer = await jetstream.pull_subscribe(subject, stream=stream, config=config)
            found: list[Stored] = []
            while len(found) < count:
                for each in await consumer.fetch(count - len(found), timeout=10):
                    assert each.metadata.sequence.stream == len(found) + 1, "the stream has lost something"
                    found.append(Stored(each.subject, dict(each.headers or {}), json.loads(each.data)))
            return found


class Wire:
    """A way to a server on which answers can be lost; use ``wire_to``.

    Attributes:
        url: for clients.
        deaf: whether what the server says is thrown away.
    """

    def __init__(self, port: int) -> None:
        self.url = f"nats://127.0.0.1:{port}"
        self.deaf = False
        self._scopes: set[anyio.CancelScope] = set()

    def cut(self) -> None:
        """Cut all connections."""
        for scope in self._scopes:
            scope.cancel()

    async def carry(self, server: int, near: anyio.abc.SocketStream) -> None:
        """Serve one connection."""
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            async with near, await anyio.connect_tcp("127.0.0.1", server) as far, anyio.create_task_group() as group:
                group.start_soon(self._pump, far, near, scope)
                async for data in near:
                    await far.send(data)
                scope.cancel()
        self._scopes.discard(scope)

    async def _pump(self, far: anyio.abc.SocketStream, near: anyio.abc.SocketStream, scope: anyio.CancelScope) -> None:
        async for data in far:
            if not self.deaf:
                await near.send(data)
        scope.cancel()


@asynccontextmanager
async def wire_to(server: NatsServer) -> AsyncIterator[Wire]:
    """Give a way to a server."""
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as group,
    ):
        wire = Wire(listener.extra(anyio.abc.SocketAttribute.local_port))  # noqa: S610 - no Django here

        async def carry(near: anyio.abc.SocketStream) -> None:
            await wire.carry(server.port, near)

        group.start_soon(listener.serve, carry)
        yield wire
        group.cancel_scope.cancel()


def operated(folder: Path) -> tuple[str, Path]:
    """Return the configuration of a server that takes users by JWT, and a credentials file for it."""
    operator, system, account, user = (_Key(kind) for kind in (14, 0, 0, 20))
    unlimited = {"subs": -1, "data": -1, "payload": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1}
    storage = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
    about_account = {"type": "account", "version": 2, "limits": unlimited | {"wildcards": True} | storage}
    system_jwt = operator.issue(system, {"type": "account", "version": 2, "limits": unlimited})
    account_jwt = operator.issue(account, about_account)
    config = {
        "operator": operator.issue(operator, {"type": "operator", "version": 2}),
        "system_account": system.public,
        "resolver": "MEMORY",
        "resolver_preload": {system.public: system_jwt, account.public: account_jwt},
    }
    user_jwt = account.issue(user, {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1})
    file = folder / "user.creds"
    file.write_text(
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
    )
    return json.dumps(config), file


class _Key:
    """A key of NATS' kind (nkeys): 14 is an operator's, 0 an account's, 20 a user's."""

    def __init__(self, kind: int) -> None:
        self._key = Ed25519PrivateKey.generate()
        self.public = _encoded(bytes([kind << 3]) + self._key.public_key().public_bytes_raw())
        # 18 says that it is a seed; of what, the eight bits after the first five
        kind <<= 3
        self.seed = _encoded(bytes([18 << 3 | kind >> 5, (kind & 31) << 3]) + self._key.private_bytes_raw())

    def issue(self, subject: _Key, claims: dict[str, Any]) -> str:
        """Return a JWT that this key gives to another."""
        body = {"jti": "x", "iat": int(time.time()), "iss": self.public, "sub": subject.public, "name": "test"}
        head = {"typ": "JWT", "alg": "ed25519-nkey"}
        text = ".".join(_base64(json.dumps(part).encode()) for part in (head, body | {"nats": claims}))
        return f"{text}.{_base64(self._key.sign(text.encode()))}"


def _encoded(raw: bytes) -> str:
    checked = raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")
    return base64.b32encode(checked).decode().rstrip("=")


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
