"""Events reach a stream of NATS JetStream once each and in order, whoever dies meanwhile; the server is a real one."""

from __future__ import annotations

import asyncio
import http.client
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from pluginsvc.events import nats_connection
from pluginsvc.events.delivery import SinkFailed
from pluginsvc.events.forms import Origin
from pluginsvc.events.nats_sink import NatsSink
from pluginsvc.model.event import Event, Gap
from tests.support import procs, remains
from tests.support.daemon import Daemon, running_daemon
from tests.support.nats import NatsServer, operated, wire_to
from tests.support.registry import _make_certificates
from tests.support.unruly import archive
from tests.support.wire import Api

STEPS = ("create", "enable", "disable", "remove")


def events(first: int, last: int) -> list[Event | Gap]:
    return [
        Event(action=STEPS[seq % 4], plugin_id="a" * 64, plugin_name="p:latest", seq=seq, time_ns=seq)
        for seq in range(first, last + 1)
    ]


def sink(url: str, origin: Origin = Origin("one", "web1"), **options: Any) -> NatsSink:  # noqa: B008 - it is frozen
    return NatsSink([url], origin, **{"stream": "PLUGINSVC", "subject": "pluginsvc"} | options)


def ids(first: int, last: int, origin: str = "one") -> list[str]:
    return [f"{origin}-{seq}" for seq in range(first, last + 1)]


async def told(server: NatsServer, **options: Any) -> list[str]:
    return [message.id for message in await server.read(**options)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path / "nats") as found:
        yield found


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait long for answers that will not come."""
    monkeypatch.setattr(nats_connection, "_ANSWER_SECONDS", 0.5)


@contextmanager
def nothing_left() -> Iterator[None]:
    """Check that no task outlives the block."""
    before = asyncio.all_tasks()
    yield
    assert asyncio.all_tasks() <= before


async def refused(server: NatsServer, match: str, **options: Any) -> str:
    """Check that sending fails with such words, and leaves nothing behind; return all of them."""
    it = sink(options.pop("url", server.url), **options)
    with nothing_left():
        try:
            with pytest.raises(SinkFailed, match=match) as caught:
                await it.send(events(1, 3))
        finally:
            await it.close()
    return caught.value.reason


@pytest.mark.anyio
async def test_a_stream_is_made(server: NatsServer) -> None:
    """Where nothing takes the subject a stream is made, that keeps events in files and drops repeats for an hour."""
    it = sink(server.url)
    with nothing_left():
        await it.send(events(1, 250))
        await it.send([Gap(250, 300)])
        await it.close()
    assert await told(server) == [*ids(1, 250), "one-gap-250-300"]
    async with server.client() as client:
        config = (await client.jetstream().stream_info("PLUGINSVC")).config
    assert (config.subjects, config.storage, config.discard) == (["pluginsvc.>"], "file", "old")
    assert (config.duplicate_window, config.max_age, config.max_bytes) == (3600, 30 * 24 * 3600, -1)


@pytest.mark.anyio
async def test_lost_acknowledgements(server: NatsServer) -> None:
    """What the server has stored and could not acknowledge is offered again, and is in the stream once."""
    async with wire_to(server) as wire:
        it = sink(wire.url)
        await it.send(events(1, 5))
        wire.deaf = True

        async def cut_when_stored() -> None:
            with anyio.fail_after(15):
                while await server.count() < 105:
                    pass
            wire.cut()

        with nothing_left():
            async with anyio.create_task_group() as group:
                group.start_soon(cut_when_stored)
                with pytest.raises(SinkFailed):
                    await it.send(events(6, 105))
            await it.close()
        wire.deaf = False
        await it.send(events(6, 110))
        await it.close()
    assert await told(server) == ids(1, 110)


@pytest.mark.anyio
async def test_the_server_dies_between_two_batches(server: NatsServer) -> None:
    """A connection that broke while nothing was to be sent is replaced without a failure."""
    it = sink(server.url)
    await it.send(events(1, 5))
    server.kill()
    server.start()
    assert it._connection
    with anyio.fail_after(15):
        while not it._connection.broken:  # noqa: ASYNC110 - nothing else tells
            await anyio.sleep(procs.POLL)
    await it.send(events(6, 10))
    await it.close()
    assert await told(server) == ids(1, 10)


@pytest.mark.anyio
async def test_two_daemons(server: NatsServer) -> None:
    """Two daemons of one host name that race to make the stream both get all their events in, in order."""
    names = ("one", "two")
    it = {name: sink(server.url, Origin(name, "same")) for name in names}
    async with anyio.create_task_group() as group:
        for name in names:
            group.start_soon(it[name].send, events(1, 100))
    found = await told(server)
    for name in names:
        await it[name].close()
        assert [each for each in found if each.startswith(name)] == ids(1, 100, name)
    assert len(found) == 200


@pytest.mark.anyio
async def test_streams_of_others(server: NatsServer) -> None:
    """A stream that is there is used if it takes the subject, named if it does not or is full, and never changed."""
    async with server.client() as client:
        jetstream = client.jetstream()
        await jetstream.add_stream(name="PLUGINSVC", subjects=["else.>", "part.web2.>"], max_msgs=2, discard="new")
        reason = await refused(
            server, "stream PLUGINSVC is there, but takes else.>, part.web2.> and not pluginsvc.web1.enable"
        )
        assert "add pluginsvc.> to its subjects" in reason
        await refused(server, "subjects overlap", subject="part", stream="ANOTHER")
        await refused(server, r"else\.web1\.remove: maximum messages exceeded \(10077\): make room", subject="else")
        config = (await jetstream.stream_info("PLUGINSVC")).config
        assert (config.subjects, config.max_msgs) == (["else.>", "part.web2.>"], 2)
        assert [message.id for message in await server.read("else.>")] == ids(1, 2)


@pytest.mark.anyio
async def test_somebody_listens(server: NatsServer, hasty: None) -> None:
    """Somebody who listens before there is a stream does not keep it from being made; one who answers is no stream."""
    async with server.client() as client:
        await client.subscribe("pluginsvc.>")
        await client.flush()
        it = sink(server.url)
        await it.send(events(1, 3))
        await it.close()
        assert await told(server) == ids(1, 3)

        async def answer(message: Any) -> None:
            await message.respond(b"thanks")

        await client.subscribe("another.>", cb=answer)
        await client.flush()
        await refused(server, "is not JetStream: choose another subject", subject="another", stream="ANOTHER")


@pytest.mark.anyio
async def test_a_server_that_hangs(server: NatsServer, hasty: None) -> None:
    """A server that stands still is given up in time, with all that belongs to the connection, and used later."""
    it = sink(server.url)
    await it.send(events(1, 3))
    server.signal(signal.SIGSTOP)
    with nothing_left():
        with pytest.raises(SinkFailed, match="no answer"):
            await it.send(events(4, 90))
        await it.close()
    server.signal(signal.SIGCONT)
    await it.send(events(4, 90))
    await it.close()
    assert await told(server) == ids(1, 90)


@pytest.mark.anyio
async def test_cancelled(server: NatsServer) -> None:
    """A sink that is cancelled while it connects, or waits, leaves nothing behind."""
    server.signal(signal.SIGSTOP)
    it = sink(server.url)
    with nothing_left():
        with anyio.move_on_after(0.2) as scope:
            await it.send(events(1, 3))
        assert scope.cancelled_caught
        await it.close()
    server.signal(signal.SIGCONT)
    await it.send(events(1, 3))
    server.signal(signal.SIGSTOP)
    with nothing_left():
        with anyio.move_on_after(0.2) as scope:
            await it.send(events(4, 5))
        assert scope.cancelled_caught
        await it.close()
    server.signal(signal.SIGCONT)


@pytest.mark.anyio
async def test_logins(tmp_path: Path) -> None:
    """Users with a password may do what they may; a refusal says what, and no password."""
    config = """authorization { users = [
        {user: all, password: secret1}
        {user: some, password: secret2, permissions: {publish: "pluginsvc.>"}}
        {user: none, password: secret3, permissions: {publish: "else"}}
    ] }"""
    with NatsServer(tmp_path / "nats", config=config) as server:
        for login, match in [
            ("", "(Authorization Violation'|reset by peer|Broken pipe): check the login"),
            ("all:secret9@", "(Authorization Violation'|reset by peer|Broken pipe): check the login"),
            ("some:secret2@", r"permissions violation for publish to \"\$js.api.stream.create.pluginsvc"),
            ("none:secret3@", 'permissions violation for publish to "pluginsvc'),
        ]:
            url = server.url.replace("//", f"//{login}")
            assert "secret" not in await refused(server, match, url=url)
        for login in ("all:secret1@", "some:secret2@"):
            it = sink(server.url.replace("//", f"//{login}"))
            await it.send(events(1, 3))
            await it.close()
        assert await told(server, user="all", password="secret1") == ids(1, 3)


@pytest.mark.anyio
async def test_credentials_file(tmp_path: Path) -> None:
    """A credentials file logs in where users are known by JWT; without it, or with another's, nobody does."""
    config, credentials = operated(tmp_path)
    (tmp_path / "other").mkdir()
    _, foreign = operated(tmp_path / "other")
    with NatsServer(tmp_path / "nats", config=config) as server:
        await refused(server, "check the login")
        await refused(server, "check the login", credentials_file=foreign)
        it = sink(server.url, credentials_file=credentials)
        # acknowledged, and what is asked again is a repeat
        await it.send(events(1, 3))
        await it.close()


@pytest.mark.anyio
async def test_tls(tmp_path: Path, server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """tls:// is kept to also where the server does not ask for it, and a server is known by the host's authorities."""
    await refused(server, "the server does not ask for TLS", url=server.url.replace("nats", "tls"))
    ca, certificate, key = _make_certificates(tmp_path)
    config = f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}'
    with NatsServer(tmp_path / "tls", config=config) as tls:
        url = tls.url.replace("nats", "tls")
        await refused(tls, "CERTIFICATE_VERIFY_FAILED", url=url)
        monkeypatch.setenv("SSL_CERT_FILE", str(ca))
        it = sink(url)
        with nothing_left():
            await it.send(events(1, 3))
            await it.close()


@contextmanager
def changing(daemon: Daemon) -> Iterator[None]:
    """Change plugins all the while, as far as the daemon lives."""
    stop = threading.Event()
    body = archive("well")

    def run() -> None:
        api = Api(daemon.socket)
        while not stop.is_set():
            with suppress(OSError, http.client.HTTPException):
                api.create("changing", body)
                api.act("enable", "changing", timeout=10)
                api.act("disable", "changing")
                api.call("DELETE", "/plugins/changing", {"force": 1})
            # a daemon that is away refuses at once
            stop.wait(procs.POLL)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def configured(folder: Path, server: NatsServer) -> str:
    file = folder / "config.toml"
    file.write_text(f'[sinks.nats]\nservers = ["{server.url}"]\n')
    return str(file)


def expected(daemon: Daemon) -> list[str]:
    origin = remains.journal_id(daemon)
    return [f"{origin}-{seq}" for seq in range(1, len(remains.journal(daemon)) + 1)]


@pytest.mark.root
def test_nothing_lost_nothing_doubled(tmp_path: Path) -> None:
    """Server and daemon are killed in turn; in the end the stream holds what the journal does, once, in order."""
    with ExitStack() as stack:
        server = stack.enter_context(NatsServer(tmp_path / "nats"))
        daemon = stack.enter_context(running_daemon("--config", configured(tmp_path, server)))
        assert daemon.proc

        def more(count: int = 4) -> None:
            goal = len(remains.journal(daemon)) + count
            procs.wait_until(lambda: len(remains.journal(daemon)) >= goal)

        with changing(daemon):
            for _ in range(3):
                more()
                server.kill()
                more()
                server.start()
                more()
                daemon.kill()
                daemon.start()
        procs.wait_until(lambda: asyncio.run(server.count()) >= len(expected(daemon)), timeout=20)
        found = asyncio.run(server.read())
        assert [message.id for message in found] == expected(daemon)
        journal = remains.journal(daemon)
        assert [message.event["data"]["action"] for message in found] == [row["action"] for row in journal]
        assert {message.subject.split(".")[2] for message in found} >= set(STEPS)


@pytest.mark.root
def test_trouble_is_told_and_passes(tmp_path: Path) -> None:
    """Without a server, without JetStream and without a login the log says so; then all that happened comes."""
    server = NatsServer(tmp_path / "nats", jetstream=False)
    with ExitStack() as stack:
        stack.callback(server.stop)
        daemon = stack.enter_context(running_daemon("--config", configured(tmp_path, server)))
        api = Api(daemon.socket)
        assert api.create("p", archive("well")).status == 204
        procs.wait_until(lambda: f"no connection to {server.url}" in daemon.log())
        server.start()
        procs.wait_until(lambda: f"JetStream does not answer at {server.url}" in daemon.log())
        server.stop()
        server.jetstream, server.config = True, "authorization { user: u, password: secret }"
        server.start()
        procs.wait_until(lambda: "Authorization Violation" in daemon.log())
        server.stop()
        server.config = ""
        server.start()
        assert api.call("DELETE", "/plugins/p").status == 200
        procs.wait_until(lambda: asyncio.run(server.count()) >= len(expected(daemon)), timeout=20)
        assert asyncio.run(told(server)) == expected(daemon)
        assert api.plugins() == []
