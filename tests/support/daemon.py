"""A real pluginsvc in a root of its own: start, kill, start again, look at what is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support import parts, procs
from tests.support.docker_cli import DockerCLI, docker_clis

PROGRAM = Path(sys.executable).with_name("pluginsvc")


class Daemon:
    """One daemon and its directories; use `running_daemon`.

    Attributes:
        top: holds all below, for leftovers to be found by.
        root, run: the daemon's ROOT and RUN.
        published: where it publishes sockets.
        socket: the API's.
        proc: the present process, None before the first start.

    """

    def __init__(self, top: Path, flags: Sequence[str] = ()) -> None:
        self.top = top
        self.root, self.run = top / "root", top / "run"
        self.published = top / "published"
        self.socket = top / "api.sock"
        self.flags = tuple(flags)
        self.env: dict[str, str] = {}
        self.proc: procs.Proc | None = None

    @property
    def host(self) -> str:
        """The address for clients."""
        return f"unix://{self.socket}"

    def serve(self) -> list[str]:
        """Return the words that run the daemon on its own directories, and on nobody else's."""
        places = {"--root": self.root, "--run-root": self.run, "--publish-dir": self.published, "--host": self.host}
        return ["serve", *(str(word) for pair in places.items() for word in pair)]

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        words: list[str | Path] = [PROGRAM, *self.serve(), "--log-level", "debug", *self.flags]
        self.proc = procs.start(words, log=self.top / "daemon.log", env=parts.env() | self.env)
        self.proc.wait_until(lambda: procs.accepts(self.socket), timeout=40)

    def kill(self) -> None:
        """Send KILL and reap: the daemon gets no chance to clean up."""
        assert self.proc
        self.proc.signal(signal.SIGKILL)
        self.proc.wait()

    def stop(self) -> int:
        """Send TERM and return the exit code."""
        assert self.proc
        return self.proc.end(grace=30)

    def log(self) -> str:
        """Return all that the daemon has logged, over its restarts."""
        return (self.top / "daemon.log").read_text(errors="replace")

    def cli(self, path: Path | None = None) -> DockerCLI:
        """Return a docker CLI for this daemon: the newest there is, or the one named."""
        return DockerCLI(path or docker_clis()[-1], self.host, self.top / "docker-config")

    def mounts(self) -> list[str]:
        """Return the mount points below `top`."""
        table = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
        return [line.split()[4] for line in table if f"{self.top}/" in line.split()[4] + "/"]

    def processes(self) -> dict[int, str]:
        """Return what runs for this daemon, itself left out: by command line, or by a root file system of its own."""
        found = {}
        for name in os.listdir("/proc"):
            if not name.isdigit() or (self.proc and int(name) == self.proc.pid):
                continue
            folder = Path("/proc", name)
            try:
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                elsewhere = (folder / "ns" / "mnt").readlink() != Path("/proc/self/ns/mnt").readlink()
                if str(self.top) in words or (elsewhere and self._is_root_of(folder)):
                    found[int(name)] = words
            except OSError:
                continue
        return found

    def _is_root_of(self, process: Path) -> bool:
        # in a mere copy of the host's mounts, which others make as well, what is ours is mounted at places of ours
        lines = (process / "mountinfo").read_text(errors="replace").splitlines()
        return any(
            str(self.top) in root and str(self.top) not in place for _, _, _, root, place, *_ in map(str.split, lines)
        )

    def blobs(self) -> set[str]:
        """Return the hex digests of the stored blobs."""
        return {path.name for path in (self.root / "content" / "blobs" / "sha256").glob("*")}


@contextmanager
def running_daemon(*flags: str) -> Iterator[Daemon]:
    """Run a daemon for the length of a `with` block; whatever it still runs is removed at the end."""
    top = Path(tempfile.mkdtemp(prefix="pluginsvc-test-"))
    daemon = Daemon(top, flags)
    try:
        daemon.start()
        yield daemon
    finally:
        try:
            clean(daemon)
        finally:
            # only after a failure: what should have gone by itself must not disturb the next test
            for pid in daemon.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if mounts := daemon.mounts():
                subprocess.run(["umount", "-l", *mounts], check=False)
            shutil.rmtree(top, ignore_errors=True)


def clean(daemon: Daemon) -> None:
    """Remove every plugin by the API, end the daemon, and check that nothing is left running or mounted."""
    assert daemon.proc
    if not procs.accepts(daemon.socket):
        daemon.start()
    cli = daemon.cli()
    if ids := cli.run("plugin", "ls", "-q", "--no-trunc", check=True).stdout.split():
        cli.run("plugin", "rm", "-f", *ids, check=True)
    code = daemon.stop()
    assert code == 0, f"the daemon ended with {code}:\n{daemon.proc.tail()}"
    assert not daemon.mounts(), daemon.mounts()
    assert not daemon.processes(), daemon.processes()
