"""Plugins that misbehave in a chosen way, made for a running daemon."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import procs, remains
from tests.support.daemon import Daemon
from tests.support.parts import PROJECT
from tests.support.wire import Api, tar

SOURCES = PROJECT / "tests" / "system"


def compiled(name: str) -> bytes:
    """Return the static program made of ``tests/system/<name>.c``; it needs gcc and libc6-dev."""
    source = SOURCES / f"{name}.c"
    cache = PROJECT / ".cache"
    binary = cache / f"{name}-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
    if not binary.exists():
        cache.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            made = Path(scratch) / name
            subprocess.run(["gcc", "-static", "-O2", "-Wall", "-Wextra", "-o", made, source], check=True, timeout=60)
            made.rename(binary)
    return binary.read_bytes()


def archive(*words: str, program: str = "unruly", **config: object) -> bytes:
    """Return a plugin whose only program is run with ``words``, for `Api.create`; ``config``: keys of its config."""
    document = {
        "Description": "misbehaves",
        "Entrypoint": ["/program", *words],
        "Interface": {"Socket": "p.sock", "Types": ["docker.dummy/1.0"]},
        "Network": {"Type": "none"},
    } | config
    files = {"config.json": json.dumps(document).encode(), "rootfs": None, "rootfs/program": compiled(program)}
    return tar(files)


class Plugin:
    """One such plugin of a daemon.

    Attributes:
        id: its ID.
    """

    def __init__(self, daemon: Daemon, name: str) -> None:
        self.daemon = daemon
        self.name = name
        self.api = Api(daemon.socket)
        self.id = str(self.api.ok("GET", f"/plugins/{name}/json")["Id"])

    def state(self) -> dict[str, Any]:
        """Return what our own API says of it."""
        found = self.api.ok("GET", f"/pluginsvc/v1/plugins/{self.name}/json")
        assert isinstance(found, dict)
        return found

    def until(self, found: Callable[[dict[str, Any]], bool], *, timeout: float = 20.0) -> dict[str, Any]:
        """Return its state as soon as ``found`` says so of it."""
        last: dict[str, Any] = {}

        def look() -> bool:
            nonlocal last
            last = self.state()
            return found(last)

        assert self.daemon.proc
        try:
            self.daemon.proc.wait_until(look, timeout=timeout)
        except procs.ProcessFailedError as exc:
            raise AssertionError(f"the state stays {last}") from exc
        return last

    def update(self, **options: object) -> None:
        """Change its options; ``start_timeout=3`` is ``start-timeout``."""
        document = {name.replace("_", "-"): value for name, value in options.items()}
        self.api.ok("POST", f"/pluginsvc/v1/plugins/{self.name}/update", document=document)

    def enable(self, timeout: int = 10) -> None:
        """Enable it, which has to succeed."""
        assert self.api.act("enable", self.name, timeout=timeout).status == 200

    def signal(self, number: signal.Signals = signal.SIGUSR1) -> None:
        """Send a signal to its process."""
        os.kill(self.state()["Pid"], number)

    def events(self) -> list[tuple[str, dict[str, str]]]:
        """Return the actions and attributes of all that has happened to it, from the journal."""
        rows = [row for row in remains.journal(self.daemon) if row["plugin_id"] == self.id]
        return [(row["action"], row["attributes"]) for row in rows]


def make(daemon: Daemon, name: str, *words: str, program: str = "unruly", **config: object) -> Plugin:
    """Create such a plugin."""
    answer = Api(daemon.socket).create(name, archive(*words, program=program, **config))
    assert answer.status == 204, answer
    return Plugin(daemon, name)


def wait_for(found: Callable[[], bool], *, timeout: float = 20.0, what: str = "it") -> None:
    """Return as soon as ``found()`` is true."""
    deadline = time.monotonic() + timeout
    while not found():
        assert time.monotonic() < deadline, f"{what} has not come about in {timeout} s"
        time.sleep(procs.POLL)
