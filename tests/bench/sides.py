"""The two daemons that are measured, seen alike: what to ask, which processes to count, where things lie on disk."""

import contextlib
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench import wire
from tests.support import parts, procs
from tests.support.daemon import Daemon
from tests.support.dockerd import Dockerd, dockerd

PATIENCE = 30.0
"""Seconds for what a daemon does in the background."""


class NotDoneError(Exception):
    """A daemon answered well but the work is not as it must be; the figure would be worth nothing."""


class Side:
    """One daemon.

    Attributes:
        name: in tables.
        engine: its API.

    """

    name: str

    def __init__(self, socket: Path, proc: procs.Proc) -> None:
        self.engine = wire.Engine(socket)
        self._proc = proc

    def roots(self) -> list[int]:
        """Return the processes whose trees count as this side's."""
        return [self._proc.pid]

    def rootfs(self, plugin_id: str) -> Path:
        raise NotImplementedError

    def plugin_socket(self, plugin_id: str) -> Path:
        raise NotImplementedError

    def blob_folder(self) -> Path:
        raise NotImplementedError

    def blobs(self) -> set[str]:
        """Return the digests of the stored blobs."""
        return {f"sha256:{path.name}" for path in self.blob_folder().glob("*")}

    def restart(self) -> float:
        """Stop the daemon and start it again; return the seconds until it answered."""
        words = _command(self._proc.pid)
        self._proc.end(grace=60)
        return self._start(words)

    def _start(self, words: Sequence[str]) -> float:
        began = time.perf_counter()
        self._proc = procs.start(words, log=self._proc.log, env=parts.env())
        self._wait(lambda: wire.pings(self.engine.socket), began)
        return time.perf_counter() - began

    def _wait(self, answers: Callable[[], bool], began: float) -> None:
        while not answers():
            if time.perf_counter() - began > PATIENCE:
                raise NotDoneError(f"{self.name} does not answer again:\n{self._proc.tail()}")
            time.sleep(0.001)

    def forget(self, name: str, digests: Sequence[str] = ()) -> None:
        """Remove a plugin and wait until these blobs of it are gone, so that they must be fetched again."""
        self.engine.remove(name)
        deadline = time.monotonic() + PATIENCE
        while left := self.blobs().intersection(digests):
            if time.monotonic() > deadline:
                raise NotDoneError(f"{self.name} keeps {len(left)} blobs of {name}, which is removed")
            time.sleep(procs.POLL)

    def check_entries(self, plugin_id: str, expected: int) -> None:
        """Raise `NotDoneError` unless a plugin's rootfs has that many files and folders."""
        found = sum(len(folders) + len(files) for _, folders, files in os.walk(self.rootfs(plugin_id)))
        if found != expected:
            raise NotDoneError(f"{self.name} has unpacked {found} entries instead of {expected}")

    def remove_all(self) -> None:
        """Remove every plugin there is."""
        for plugin in self.engine.plugins():
            self.engine.remove(plugin["Id"])

    def end(self) -> None:
        """End the daemon."""
        self._proc.end(grace=60)


class Pluginsvc(Side):
    name = "pluginsvc"

    def __init__(self, daemon: Daemon) -> None:
        assert daemon.proc
        super().__init__(daemon.socket, daemon.proc)
        self._daemon = daemon

    def rootfs(self, plugin_id: str) -> Path:
        return max((self._daemon.root / "plugins" / plugin_id).glob("gen-*")) / "rootfs"

    def plugin_socket(self, plugin_id: str) -> Path:
        return self._daemon.run / "plugins" / plugin_id / "p"

    def blob_folder(self) -> Path:
        return self._daemon.root / "content" / "blobs" / "sha256"


class Peer(Side):
    """dockerd and its containerd, which counts with it.

    Attributes:
        alone: seconds that dockerd itself took of the last `restart`.

    """

    name = "dockerd"

    def __init__(self, root: Path, found: Dockerd) -> None:
        super().__init__(found.socket, found.daemon)
        self._root = root
        self._containerd = found.containerd
        self.alone = 0.0

    def restart(self) -> float:
        """Stop both and start both again; return the seconds until dockerd answered."""
        words, below = _command(self._proc.pid), _command(self._containerd.pid)
        self._proc.end(grace=60)
        self._containerd.end()
        began = time.perf_counter()
        self._containerd = procs.start(below, log=self._containerd.log, env=parts.env())
        address = Path(below[below.index("--address") + 1])
        self._wait(lambda: procs.accepts(address), began)
        ready = time.perf_counter() - began
        self.alone = self._start(words)
        return ready + self.alone

    def end(self) -> None:
        super().end()
        self._containerd.end()

    def roots(self) -> list[int]:
        return [self._proc.pid, self._containerd.pid]

    def rootfs(self, plugin_id: str) -> Path:
        return self._root / "d" / "data" / "plugins" / plugin_id / "rootfs"

    def plugin_socket(self, plugin_id: str) -> Path:
        return Path("/run/docker/plugins") / plugin_id / "p"  # wherever its roots are

    def blob_folder(self) -> Path:
        return self._root / "d" / "data" / "plugins" / "storage" / "blobs" / "sha256"

    def version(self) -> str:
        """Return the version in words."""
        found = re.search(rb'"Version":"([^"]+)"', self.engine.call("GET", "/version"))
        return found[1].decode() if found else "of unknown version"


@contextmanager
def pluginsvc(top: Path) -> Iterator[Pluginsvc]:
    """Run a pluginsvc below `top`; its plugins are removed at the end."""
    top.mkdir()
    daemon = Daemon(top, ("--log-level", "info"))  # the helper asks for debug; what comes last counts
    try:
        daemon.start()
        side = Pluginsvc(daemon)
        try:
            yield side
            side.remove_all()
        finally:
            side.end()
    finally:
        if daemon.proc:
            daemon.proc.end()
        for pid in daemon.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not daemon.mounts():
            shutil.rmtree(top, ignore_errors=True)


@contextmanager
def peer(root: Path) -> Iterator[Peer]:
    """Run a dockerd and its containerd below `root`, a short path."""
    with dockerd(root) as found:
        side = Peer(root, found)
        try:
            yield side
            side.remove_all()
        finally:
            side.end()
    shutil.rmtree(root, ignore_errors=True)


def _command(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
