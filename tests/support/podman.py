"""Podman with roots of its own, and the mount namespace in which engines find what they look for at fixed places."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support import parts, procs

# copies of /etc and /var/lib that may be written, an empty /run and /mnt, and no locks in common with others' Podman;
# libraries that were unpacked beside those of the machine, for a container's monitor forgets where they are; cgroups
# without the hybrid hierarchy, in which crun does not work
_SCRIPT = """
set -e
top=$1 libraries=$2 parts=$3; shift 3
mount -t tmpfs none "$top"
for copied in /etc /var/lib; do
    mkdir -p "$top/new$copied" "$top/work$copied"
    mount -t overlay -o "lowerdir=$copied,upperdir=$top/new$copied,workdir=$top/work$copied" none "$copied"
done
mount -t overlay -o "lowerdir=$libraries:$parts" none "$libraries"
mount -t tmpfs none /run
mount -t tmpfs none /mnt
mount -t tmpfs none /dev/shm
[ ! -d /sys/fs/cgroup/unified ] || umount /sys/fs/cgroup/unified
mkdir -p /etc/containers
echo '{"default": [{"type": "insecureAcceptAnything"}]}' >/etc/containers/policy.json
while [ $# -gt 0 ]; do
    mkdir -p "$1"
    mount --bind "$2" "$1"
    shift 2
done
echo ready
exec sleep infinity
"""


class Mounts:
    """A mount namespace: what is mounted there reaches nobody else, what the host mounts at shared places gets there.

    Attributes:
        prefix: words before those of a command that is to run in it; it keeps its process ID.
    """

    def __init__(self, holder: procs.Proc) -> None:
        # with its root: in a changed root the namespace's own would be another
        self.prefix = ("nsenter", f"--target={holder.pid}", "--mount", "--root", "--wd=/")
        self._namespace = Path(f"/proc/{holder.pid}/ns/mnt").readlink()
        self._holder = holder.pid

    def processes(self) -> dict[int, str]:
        """Return what runs in it: process IDs and command lines."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (folder / "ns" / "mnt").readlink() == self._namespace and int(folder.name) != self._holder:
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found


@contextmanager
def mounts(root: Path, places: Mapping[str, Path]) -> Iterator[Mounts]:
    """Hold a mount namespace for the length of a `with` block; fails when something still runs in it at its end.

    Args:
        root: an empty folder.
        places: paths, such as ``/run/docker/plugins``, and the folders that are to be seen there.
    """
    log, top = root / "mounts.log", root / "copies"
    top.mkdir()
    words: list[str | Path] = ["unshare", "--mount", "--propagation=slave", "sh", "-c", _SCRIPT, "sh", top]
    words += [f"/usr/lib/{parts.TRIPLET}", parts.PARTS / "usr/lib" / parts.TRIPLET]
    words += [word for pair in places.items() for word in pair]
    with procs.running(words, log=log, answers=lambda: log.read_text().endswith("ready\n")) as holder:
        found = Mounts(holder)
        try:
            yield found
        finally:
            try:
                # a container's monitor ends after its container
                procs.wait_until(lambda: not found.processes(), timeout=5)
            finally:
                for pid in found.processes():
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


class Podman:
    """Podman in such a namespace.

    Args:
        mounts: has the configuration that it reads at ``/etc/containers``.
        root: an empty folder for all that it keeps.
    """

    def __init__(self, mounts: Mounts, root: Path) -> None:
        folders = {"--root": root / "root", "--runroot": root / "run", "--tmpdir": root / "tmp"}
        # no systemd, no cgroups of its own, of which only crun can make none, and no overlay to leave mounted
        self._words: list[str | Path] = [*mounts.prefix, parts.find("podman"), "--storage-driver=vfs", "--runtime=crun"]
        self._words += ["--cgroup-manager=cgroupfs", "--events-backend=file"]
        self._words += [f"{flag}={folder}" for flag, folder in folders.items()]

    def run(self, *args: str | Path, code: int = 0) -> str:
        """Run ``podman ARGS…`` and return what it prints, both outputs of a command that is to fail.

        Args:
            args: the words after ``podman``.
            code: how it has to end.
        """
        words = [*self._words, *args]
        # it looks for logins where Docker has them, and insists
        env = {name: value for name, value in parts.env().items() if name != "DOCKER_CONFIG"}
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, env=env)
        assert done.returncode == code, f"podman {args} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout.strip() + (done.stderr.strip() if code else "")
