"""Sinks of a real daemon that is killed again and again, with a receiver that fails in every way it can."""

from __future__ import annotations

import http.client
import json
import random
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon, running_daemon
from tests.support.sample import build_sample_plugin
from tests.support.wire import Api, pack

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

TOKEN = "hush-t0ken"
FAILURES = ("refuses", "hangs", "is gone", "dies", "works")
EVENTS_PER_LIFE = 60
FILE_SIZE = 65_536


class Receiver:
    """An HTTP server that keeps what it is posted, in a way that can be changed at any time.

    Attributes:
        numbers: of the events, as they came, those included that it did not say it took.
        tokens: what came as authorization.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.tokens: set[str | None] = set()
        self._way = "works"
        self._released = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self._open()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/in?key={TOKEN}"

    def take(self, way: str) -> None:
        """Behave in this way from now on."""
        self._released.set()
        self._way, self._released = way, threading.Event()
        if way == "is gone":
            self.close()
        elif self._server is None:
            self._open()

    def close(self) -> None:
        """Stop listening."""
        self._released.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _open(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 40

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with suppress(OSError):
                    receiver.answer(self, json.loads(body))

            def log_message(self, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        # a handler that waits for a client which was killed must not hold us up
        self._server.block_on_close = False
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler, events: list[dict[str, Any]]) -> None:
        """Deal with one request."""
        way, released = self._way, self._released
        self.tokens.add(handler.headers["Authorization"])
        if way != "refuses":
            self.numbers += [int(event["sequence"]) for event in events]
        if way == "hangs":
            released.wait(40)
        if way == "dies":
            handler.close_connection = True
            handler.connection.close()
            return
        handler.send_response(500 if way == "refuses" else 204)
        if way == "refuses":
            handler.send_header("Content-Length", "0")
        handler.end_headers()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.close()


def journal(daemon: Daemon) -> list[int]:
    """Return the numbers of all events."""
    with closing(sqlite3.connect(f"file:{daemon.root}/state.db?mode=ro", uri=True)) as db:
        return [seq for (seq,) in db.execute("SELECT seq FROM journal ORDER BY seq")]


def has_grown(daemon: Daemon, to: int) -> bool:
    return len(journal(daemon)) >= to


def written(path: Path) -> list[int]:
    """Return the numbers in the file and what was renamed, oldest first."""
    older = sorted(path.parent.glob(f"{path.name}.*"), key=lambda file: -int(file.suffix[1:]))
    return [
        json.loads(line)["seq"]
        for file in (*older, path)
        if file.exists()
        for line in file.read_bytes().split(b"\n")[:-1]
    ]


@contextmanager
def changes(daemon: Daemon, archive: bytes, name: str) -> Iterator[None]:
    """Create, enable, set, disable and remove plugins until the daemon is killed; leaving waits for that."""
    api = Api(daemon.socket)

    def work() -> None:
        with suppress(OSError, http.client.HTTPException):
            for number in range(1000):
                plugin = f"{name}-{number}"
                assert api.create(plugin, archive).status == 204
                for value in range(20):
                    assert api.call("POST", f"/plugins/{plugin}/set", document=[f"DEBUG={value % 2}"]).status == 204
                assert api.act("enable", plugin, timeout=5).status == 200
                assert api.act("disable", plugin).status == 200
                assert api.call("DELETE", f"/plugins/{plugin}").status == 200

    failed: list[BaseException] = []

    def caught() -> None:
        try:
            work()
        except BaseException as exc:  # noqa: BLE001 - raised below
            failed.append(exc)

    thread = threading.Thread(target=caught)
    thread.start()
    try:
        yield
    finally:
        thread.join(60)
        assert not thread.is_alive()
        assert failed == []


def test_killed_again_and_again_nothing_is_lost(tmp_path: Path, receiver: Receiver) -> None:
    """The file has every event once and in order; the receiver has each at least once, and first in order."""
    path, token, config = tmp_path / "events", tmp_path / "token", tmp_path / "pluginsvc.toml"
    token.write_text(TOKEN)
    config.write_text(
        f'[sinks.file]\npath = "{path}"\nsize = {FILE_SIZE}\nfiles = 100\n'
        f'[sinks.webhook]\nurl = "{receiver.url}"\ntoken-file = "{token}"\n'
    )
    archive = pack(build_sample_plugin(tmp_path / "plugin"))
    with running_daemon("--config", str(config)) as daemon:
        assert daemon.proc
        for number, way in enumerate(FAILURES):
            receiver.take(way)
            with changes(daemon, archive, f"p{number}"):
                try:
                    # it fails for a while, then it works, and at any time after that the daemon is killed
                    for wanted in (EVENTS_PER_LIFE, random.randint(1, EVENTS_PER_LIFE)):
                        goal = len(journal(daemon)) + wanted
                        daemon.proc.wait_until(partial(has_grown, daemon, goal), timeout=60)
                        receiver.take("works")
                finally:
                    daemon.kill()
            daemon.start()
        daemon.proc.wait_until(lambda: written(path) == journal(daemon), timeout=60)
        daemon.proc.wait_until(lambda: list(dict.fromkeys(receiver.numbers)) == journal(daemon), timeout=60)
        log = daemon.log()
    assert len(list(tmp_path.glob("events*"))) > 1
    assert receiver.tokens == {f"Bearer {TOKEN}"}
    assert "sink.failed" in log
    assert TOKEN not in log


def test_a_sink_comes_back_while_the_daemon_runs(tmp_path: Path, receiver: Receiver) -> None:
    """A file whose directory was missing and a receiver that was gone get all events once they can, with no restart."""
    path, config = tmp_path / "logs" / "events", tmp_path / "pluginsvc.toml"
    config.write_text(f'[sinks.file]\npath = "{path}"\n[sinks.webhook]\nurl = "{receiver.url}"\n')
    receiver.take("is gone")
    archive = pack(build_sample_plugin(tmp_path / "plugin"))
    with running_daemon("--config", str(config)) as daemon:
        assert daemon.proc
        assert Api(daemon.socket).create("p", archive).status == 204
        daemon.proc.wait_until(lambda: "make its directory" in daemon.log() and "Connection refused" in daemon.log())
        path.parent.mkdir()
        receiver.take("works")
        daemon.proc.wait_until(lambda: written(path) == receiver.numbers == journal(daemon) != [], timeout=40)
