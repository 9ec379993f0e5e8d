"""A real systemd as PID 1, in namespaces of its own and on an overlay of this machine's root.

Nothing it does reaches the machine: it sees no disk, no network and no kernel setting it could change, its cgroups lie
below one made for it, and it dies with the test. On the machine's own root it would empty /tmp.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import parts, procs

_FOLDERS = ("usr/lib/systemd", f"usr/lib/{parts.TRIPLET}")
_PROGRAMS = ("systemctl", "journalctl", "systemd-analyze", "systemd-run", "systemd-tmpfiles", "systemd-notify")
_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}

# Arguments: a folder, in which `laid` goes on top of the machine's root; a cgroup; the checkout.
_BOOT = r"""
set -e
echo 0 >"$2/cgroup.procs"
mount --make-rprivate /
mount -t tmpfs tmpfs "$1/disk"
cd "$1/disk"
mkdir upper work root
mount -t overlay overlay -o "lowerdir=/,upperdir=$PWD/upper,workdir=$PWD/work" root
cd root
rm -rf etc/systemd usr/lib/systemd etc/fstab etc/machine-id var/lib/pluginsvc etc/pluginsvc
cp -a "$1/laid/." .
# an overlay shows the file system of / alone, the checkout may lie on another
[ -e ".$3/.venv" ] || { mkdir -p ".$3"; mount --bind "$3" ".$3"; mount -o remount,bind,ro ".$3"; }
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
for node in null zero full random urandom tty; do touch "dev/$node"; mount --bind "/dev/$node" "dev/$node"; done
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
# as on every machine with systemd, or mounts would not spread even where nothing else keeps them from it
mount --make-rshared .
# PID 1 loads kernel modules and sets the clock when it may
exec unshare --cgroup sh -c '
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    exec setpriv --bounding-set=-sys_module,-sys_time chroot . env -i container=oci /usr/lib/systemd/systemd \
        --system --unit=basic.target --log-target=auto --show-status=false
'
"""


def lay_into(upper: Path) -> None:
    """Copy what booting and asking systemd takes into `upper`, to lie on a root that may have no systemd at all.

    About 12 MB. What sets up a machine (disks, kernel modules, sysctls, users) is left out: a boot has nothing to set
    up, and what it shares with this machine must stay as it is.
    """
    if not has_parts():
        raise parts.MissingPartError("systemd")
    for folder in _FOLDERS:
        shutil.copytree(parts.PARTS / folder, upper / folder, symlinks=True, dirs_exist_ok=True)
    for unwanted in ("system-generators", "system/sysinit.target.wants"):
        shutil.rmtree(upper / _FOLDERS[0] / unwanted)
    (upper / "usr/bin").mkdir(parents=True, exist_ok=True)
    for name in _PROGRAMS:
        shutil.copy2(parts.PARTS / "usr/bin" / name, upper / "usr/bin" / name)


def has_parts() -> bool:
    """Tell whether there is an unpacked systemd."""
    return (parts.PARTS / _FOLDERS[0] / "systemd").exists()


def cannot_boot() -> str:
    """Return what this machine lacks for `booted`, or nothing."""
    if os.geteuid() != 0:
        return "needs root: it boots a systemd in namespaces of its own"
    if not has_parts():
        return f"no systemd in {parts.PARTS}: `make setup` unpacks one, on Debian"
    if _cgroup_root() is None:
        return "no cgroup2 hierarchy is mounted that could be written to"
    return ""


class Booted:
    """A systemd that runs; see `booted`.

    Attributes:
        proc: what waits for PID 1; its log is PID 1's console.
        pid: PID 1, as it is called here.
        root: its root directory, as it is reached from here.

    """

    def __init__(self, proc: procs.Proc, pid: int) -> None:
        self.proc = proc
        self.pid = pid
        self.root = Path(f"/proc/{pid}/root")

    def run(self, *words: str | Path, check: bool = True, timeout: float = 30.0) -> str:
        """Run a command inside and return what it prints; unless `check` is off it must end with 0."""
        namespaces = ["--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--root", "--wd"]
        done = subprocess.run(
            ["nsenter", "--target", str(self.pid), *namespaces, "--", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
            env=_ENV,
        )
        assert not check or done.returncode == 0, f"{words} ended with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).strip()

    def processes(self) -> dict[int, str]:
        """Return the names of the processes that live, by the process IDs they have inside."""
        found = {}
        for file in (self.root / "proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it has just ended
                before, _, after = file.read_text().rpartition(") ")
                if after[0] not in "ZX":
                    found[int(file.parent.name)] = before.partition(" (")[2]
        return found

    def mounts(self) -> list[str]:
        """Return the mount points in PID 1's namespace."""
        return [line.split()[4] for line in Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()]

    def _answers(self) -> bool:
        # before this PID 1 has a root of its own, `systemctl` would ask the machine's
        if self.processes().get(1) != "systemd":
            return False
        return self.run("systemctl", "is-active", "basic.target", check=False) == "active\n"


@contextmanager
def booted(top: Path, fill: Callable[[Path], None]) -> Iterator[Booted]:
    """Boot a systemd for the length of a `with` block, entered once basic.target is reached; half a second.

    Args:
        top: an empty folder to work in.
        fill: is given a folder and puts in there what shall lie on top of the machine's root.

    """
    laid = top / "laid"
    lay_into(laid)
    (laid / "etc").mkdir()
    (laid / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
    fill(laid)
    (top / "disk").mkdir()
    (top / "boot").write_text(_BOOT)
    with _cgroup() as cgroup:
        words = ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--pid", "--uts", "--ipc", "--net"]
        words += ["--fork", "--kill-child", "sh"]
        proc = procs.start([*words, top / "boot", top, cgroup, parts.PROJECT], log=top / "console")
        children = Path(f"/proc/{proc.pid}/task/{proc.pid}/children")
        try:
            proc.wait_until(lambda: children.read_text() != "")
            system = Booted(proc, int(children.read_text()))
            proc.wait_until(system._answers)
            yield system
        finally:
            # with PID 1 goes all that it has started
            with contextlib.suppress(OSError):  # it has ended
                for child in children.read_text().split():
                    os.kill(int(child), signal.SIGKILL)
            proc.end()


def _cgroup_root() -> Path | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, after = line.split(" - ")
        if after.startswith("cgroup2 ") and os.access(point := before.split()[4], os.W_OK):
            return Path(point)
    return None


@contextmanager
def _cgroup() -> Iterator[Path]:
    """Make a cgroup for the length of a `with` block, after which it has to be without processes."""
    root = _cgroup_root()
    assert root
    cgroup = root / f"pluginsvc-test-{uuid.uuid4().hex[:12]}"
    cgroup.mkdir()
    try:
        yield cgroup
    finally:
        deadline = time.monotonic() + 10
        while cgroup.exists():
            try:
                for folder, _, _ in os.walk(cgroup, topdown=False):
                    os.rmdir(folder)
            except OSError:
                # a process that was killed leaves its cgroup a moment later
                if time.monotonic() > deadline:
                    raise
                time.sleep(procs.POLL)
