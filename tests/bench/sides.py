"""The two daemons that are measured, seen alike: what to ask, which processes to count, where things lie on disk."""

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench import wire, workload
from tests.support import parts, procs
from tests.support.daemon import Daemon
from tests.support.dockerd import Dockerd, dockerd

PATIENCE = 30.0
"""Seconds for what a daemon does in the background."""


class NotDoneError(Exception):
    """A daemon answered well but the work is not as it must be; the figure would be worth nothing."""


@dataclass(frozen=True)
class Start:
    """Seconds that a start took.

    Attributes:
        ready: until READY=1 came (sd_notify(3)).
        answering: until `GET /_ping` was answered.
        alone: the same without what must run before the daemon.

    """

    ready: float
    answering: float
    alone: float


def known_name(number: int) -> str:
    """Return the name of one of the plugins that `Side.hold` makes."""
    return f"bench/known-{number:04}:latest"


class Side:
    """One daemon.

    Attributes:
        name: in tables.
        engine: its API.

    """

    name: str

    def __init__(self, address: Path, proc: procs.Proc) -> None:
        self.engine = wire.Engine(address)
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

    def restart(self) -> Start:
        """Stop the daemon and start it again."""
        words = _command(self._proc.pid)
        self._proc.end(grace=60)
        return self._start(words)

    def _start(self, words: Sequence[str]) -> Start:
        """Start the daemon, as systemd would, and wait until it is ready and answers."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            name = f"pluginsvc-bench-{secrets.token_hex(8)}"  # abstract: gone with the socket
            manager.bind(f"\0{name}")
            manager.setblocking(False)
            began = time.perf_counter()
            self._proc = procs.start(words, log=self._proc.log, env=parts.env() | {"NOTIFY_SOCKET": f"@{name}"})
            found: dict[str, float] = {}
            while len(found) < 2:
                if "ready" not in found and _says_ready(manager):
                    found["ready"] = time.perf_counter() - began
                if "answering" not in found and wire.pings(self.engine.socket):
                    found["answering"] = time.perf_counter() - began
                if time.perf_counter() - began > PATIENCE:
                    raise NotDoneError(f"{self.name} is not ready and answering again: {found}\n{self._proc.tail()}")
                time.sleep(0.001)
        return Start(**found, alone=found["answering"])

    def hold(self, known: int) -> None:
        """Make or remove plugins until there are so many.

        Raises:
            NotDoneError: there are others in the end.

        """
        there = {plugin["Name"]: plugin["Id"] for plugin in self.engine.plugins()}
        if dropped := sorted(there)[known:]:
            self._drop({name: there[name] for name in dropped})
        if known > len(there):
            self._make([known_name(number) for number in range(len(there), known)])
        if (found := len(self.engine.plugins())) != known:
            raise NotDoneError(f"{self.name} knows {found} plugins instead of {known}")

    def _drop(self, ids: Mapping[str, str]) -> None:
        """Remove plugins, given by name."""
        for name in ids:
            self.engine.remove(name)

    def _make(self, names: Sequence[str]) -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda name: self.engine.create(name, workload.tiny(secrets.token_hex(8))), names))

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

    def disable_all(self) -> None:
        """Disable every plugin, so that nothing of it runs or is mounted."""
        for plugin in self.engine.plugins():
            if plugin["Enabled"]:
                self.engine.disable(plugin["Id"])

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
    """dockerd and its containerd, which counts with it."""

    name = "dockerd"

    def __init__(self, root: Path, found: Dockerd) -> None:
        super().__init__(found.socket, found.daemon)
        self._root = root
        self._containerd = found.containerd

    def restart(self) -> Start:
        """Stop both and start both again."""
        words, below = _command(self._proc.pid), _command(self._containerd.pid)
        self._proc.end(grace=60)
        self._containerd.end()
        began = time.perf_counter()
        self._containerd = procs.start(below, log=self._containerd.log, env=parts.env())
        address = Path(below[below.index("--address") + 1])
        while not procs.accepts(address):
            if time.perf_counter() - began > PATIENCE:
                raise NotDoneError(f"containerd does not answer again:\n{self._containerd.tail()}")
            time.sleep(0.001)
        first = time.perf_counter() - began
        start = self._start(words)
        return Start(first + start.ready, first + start.answering, start.alone)

    def _make(self, names: Sequence[str]) -> None:
        """Make one and copy it on disk while dockerd is down: it takes 70 ms to make a plugin with nothing in it."""
        super()._make(names[:1])
        plugin_id = self.engine.inspect(names[0])["Id"]
        with self._down() as folder:
            config = (folder / plugin_id / "config.json").read_text()
            for name in names[1:]:
                new = secrets.token_hex(32)
                shutil.copytree(folder / plugin_id, folder / new)
                (folder / new / "config.json").write_text(config.replace(plugin_id, new).replace(names[0], name))

    def _drop(self, ids: Mapping[str, str]) -> None:
        """Delete them on disk: dockerd dies of one removal soon after another ("concurrent map iteration")."""
        with self._down() as folder:
            for plugin_id in ids.values():
                shutil.rmtree(folder / plugin_id)

    @contextmanager
    def _down(self) -> Iterator[Path]:
        """Have dockerd down for a `with` block that works on the folder of its plugins."""
        words = _command(self._proc.pid)
        self._proc.end(grace=60)
        yield self._root / "d" / "data" / "plugins"
        self._start(words)

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
    """Run a pluginsvc below `top`; its plugins are disabled at the end."""
    top.mkdir()
    daemon = Daemon(top, ("--log-level", "info"))  # the helper asks for debug; what comes last counts
    try:
        daemon.start()
        side = Pluginsvc(daemon)
        try:
            yield side
            side.disable_all()
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
            side.disable_all()
        finally:
            side.end()
    shutil.rmtree(root, ignore_errors=True)


def _says_ready(manager: socket.socket) -> bool:
    try:
        return b"READY=1" in manager.recv(4096).splitlines()
    except BlockingIOError:
        return False


def _command(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
