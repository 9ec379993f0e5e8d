"""Output and processes of real plugins, through the real daemon and pluginctl."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from docker.utils.socket import frames_iter_no_tty

from pluginsvc.runtime.executor import LOG_ROOM
from tests.support.daemon import Daemon
from tests.support.unruly import Plugin, make, wait_for
from tests.support.wire import Connection

pytestmark = pytest.mark.root

LOGS = "/pluginsvc/v1/plugins/{}/logs?stdout=1&stderr=1"


class Follower:
    """A running ``pluginctl logs -f``.

    Attributes:
        lines: what it has printed to stdout.
        said: to stderr; known once it has ended.
    """

    def __init__(self, daemon: Daemon, name: str, *words: str) -> None:
        command = [str(Path(sys.executable).with_name("pluginctl")), "--host", daemon.host, "logs", "-f", *words, name]
        self.lines: list[str] = []
        self.said = ""
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def until(self, last: str, *, timeout: float = 30) -> None:
        wait_for(lambda: last in self.lines[-1:], timeout=timeout, what=repr(last))

    def end(self) -> tuple[int, str]:
        """Return exit code and stderr once it has ended by itself."""
        code = self.process.wait(10)
        self.close()
        return code, self.said

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join()
        assert self.process.stdout
        assert self.process.stderr
        self.process.stdout.close()
        if not self.process.stderr.closed:
            with self.process.stderr as file:
                self.said = file.read()


@contextmanager
def following(daemon: Daemon, name: str, *words: str) -> Iterator[Follower]:
    """Follow a plugin's output while the block runs."""
    follower = Follower(daemon, name, *words)
    try:
        yield follower
    finally:
        follower.close()


def numbered(first: int, last: int) -> list[str]:
    return [f"line {number}" for number in range(first, last)]


@contextmanager
def counting(daemon: Daemon, name: str, count: int) -> Iterator[Plugin]:
    """Run a plugin that prints ``count`` numbered lines each time it gets USR1."""
    plugin = make(daemon, name, "count", str(count), program="probe")
    plugin.enable()
    yield plugin
    plugin.api.ok("DELETE", f"/plugins/{name}?force=1")


def test_docker_py_reads_the_stream(daemon: Daemon) -> None:
    """What a plugin prints is there at once, framed so that docker-py's own reader understands it."""
    plugin = make(daemon, "printing", "listen", program="probe")
    plugin.enable()
    connection = Connection(daemon.socket)
    try:
        # HTTP/1.0, so that the frames stand on the socket as they are
        connection.connect()
        connection.sock.sendall(f"GET {LOGS.format('printing')} HTTP/1.0\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.sock.recv(1)
        assert b"application/vnd.docker.multiplexed-stream" in head
        assert list(frames_iter_no_tty(connection.sock)) == [(1, b"begins\n")]
    finally:
        connection.close()
    plugin.api.ok("DELETE", "/plugins/printing?force=1")


def test_follower_survives_restarts_and_rotation(daemon: Daemon) -> None:
    """Over rotation, a crash of the plugin, and `kill -9` of the daemon, a follower shows each line once, in order."""
    with counting(daemon, "followed", 50_000) as plugin, following(daemon, "followed") as follower:
        follower.until("begins")
        plugin.signal()
        follower.until("line 49999")
        pid = plugin.state()["Pid"]
        daemon.kill()
        os.kill(pid, signal.SIGUSR1)
        daemon.start()
        follower.until("line 99999")
        for round_ in range(3, 7):
            plugin.signal()
            follower.until(f"line {round_ * 50_000 - 1}")
        assert len(list((daemon.root / "logs" / plugin.id).iterdir())) > 1
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: follower.lines[-1] == "begins", what="the restart")
        plugin.api.act("disable", "followed")
        code, said = follower.end()
        assert follower.lines == ["begins", *numbered(0, 300_000), "begins", "ends"]
        assert (code, said.count("waiting for it to go on")) == (0, 1)
        assert "may be missing" not in said


def test_follower_ends_with_a_removed_plugin(daemon: Daemon) -> None:
    """A follower ends in good order when its plugin is removed, and begins where it was told to."""
    with following(daemon, "nowhere") as follower:
        assert follower.end() == (1, 'pluginctl: plugin "nowhere" not found\n')
    with counting(daemon, "removed", 10) as plugin:
        plugin.signal()
        with following(daemon, "removed") as first:
            first.until("line 9")
        follower = Follower(daemon, "removed", "--tail", "2")
        follower.until("line 9")
    # the plugin is removed
    code, said = follower.end()
    assert (follower.lines, code, said) == (["line 8", "line 9", "ends"], 0, "")


def test_top(daemon: Daemon) -> None:
    """Processes are those of the plugin's cgroup, as `ps` shows them; none is a conflict."""
    with counting(daemon, "shown", 1) as plugin:
        pid = plugin.state()["Pid"]
        found = plugin.api.ok("GET", "/pluginsvc/v1/plugins/shown/top")
        assert found["Titles"] == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
        assert [row[:2] + row[5:] for row in found["Processes"]] == [
            ["root", str(pid), "?", "00:00:00", "/program count 1"]
        ]
        if shutil.which("ps"):
            shown = subprocess.run(["ps", "-ef", "-q", str(pid)], capture_output=True, text=True, check=True).stdout
            titles, row = (line.split(maxsplit=7) for line in shown.splitlines())
            assert titles == found["Titles"]
            # the share of a processor has changed since
            assert [row[:3] + row[5:]] == [mine[:3] + mine[5:] for mine in found["Processes"]]
        plugin.api.act("disable", "shown")
        refused = plugin.api.call("GET", "/pluginsvc/v1/plugins/shown/top")
        assert (refused.status, refused.error) == (409, "plugin shown:latest is not running")


def test_flood_with_a_follower(daemon: Daemon) -> None:
    """While a plugin prints without end and somebody follows, disk and memory stay bounded and the daemon answers."""
    plugin = make(daemon, "flooding", "flood", program="probe")
    plugin.enable()
    assert daemon.proc
    status = Path(f"/proc/{daemon.proc.pid}/status")

    def memory() -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS"))

    before, times = memory(), []
    with following(daemon, "flooding", "--tail", "0") as follower:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            began = time.monotonic()
            plugin.api.ok("GET", "/_ping")
            times.append(time.monotonic() - began)
            time.sleep(0.01)
        used = sum(path.stat().st_size for path in (daemon.root / "logs" / plugin.id).iterdir())
        assert len(follower.lines) > 1000
        after = memory()
    plugin.api.ok("DELETE", "/plugins/flooding?force=1")
    assert used <= 3 * (10 * 1024 * 1024 + LOG_ROOM)
    assert after - before < 32 * 1024
    # plugin, monitor, daemon and pluginctl share two processors here
    assert sorted(times)[len(times) // 2] < 0.1
