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

# Arguments: a folder, in which `laid` goes on top of the machine's root; the checkout. The disk is there for as long as
# this lives: its mounts are in no other namespaces but those of the boots.
_DISK = r"""
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1/disk"
cd "$1/disk"
mkdir upper work root
mount -t overlay overlay -o "lowerdir=/,upperdir=$PWD/upper,workdir=$PWD/work" root
cd root
rm -rf etc/systemd usr/lib/systemd etc/fstab etc/machine-id var/lib/pluginsvc etc/pluginsvc
cp -a "$1/laid/." .
# an overlay shows the file system of / alone, the checkout may lie on another
[ -e ".$2/.venv" ] || { mkdir -p ".$2"; mount --bind "$2" ".$2"; mount -o remount,bind,ro ".$2"; }
touch "$1/mounted"
exec sleep infinity
"""

# Arguments: the same folder; a cgroup.
_BOOT = r"""
set -e
echo 0 >"$2/cgroup.procs"
mount --make-rprivate /
cd "$1/disk/root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
# the machine's own stays the same
mount --bind "$1/boot-id" proc/sys/kernel/random/boot_id
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
        --system --unit=multi-user.target --log-target=auto --show-status=false
'
"""


def lay_into(upper: Path) -> None:
    """Copy what booting and asking systemd takes into `upper`, to lie on a root that may have no systemd at all.

    About 12 MB. What sets up a machine (disks, kernel modules, sysctls, users) is left out: a boot has nothing to set
    up, and what it shares with this machine must stay as it is. Nor does it need logins.
    """
    if not has_parts():
        raise parts.MissingPartError("systemd")
    for folder in _FOLDERS:
        shutil.copytree(parts.PARTS / folder, upper / folder, symlinks=True, dirs_exist_ok=True)
    for unwanted in ("system-generators", "system/sysinit.target.wants", "system/multi-user.target.wants"):
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
    """A systemd that runs, and can be booted again; see `booted`.

    Attributes:
        proc: what waits for PID 1; its log is PID 1's console.
        pid: PID 1, as it is called here.
        root: its root directory, as it is reached from here.
        boot_id: the kernel's ID of this boot, as the system sees it.

    """

    proc: procs.Proc
    pid: int
    root: Path
    boot_id: str

    def __init__(self, top: Path, disk: procs.Proc) -> None:
        self._top = top
        self._disk = disk
        self._power = contextlib.ExitStack()

    def boot(self, boot_id: str = "") -> None:
        """Boot, and return once multi-user.target is reached; half a second.

        The disk is as the last boot left it, all else is new, the boot ID too unless it is given.
        """
        self.boot_id = boot_id or str(uuid.uuid4())
        (self._top / "boot-id").write_text(f"{self.boot_id}\n")
        words = ["setpriv", "--pdeathsig=KILL", "nsenter", "--target", str(self._disk.pid), "--mount", "--root"]
        words += ["unshare", "--mount", "--pid", "--uts", "--ipc", "--net", "--fork", "--kill-child"]
        cgroup = self._power.enter_context(_cgroup())
        self.proc = procs.start([*words, "sh", self._top / "boot", self._top, cgroup], log=self._top / "console")
        self._power.callback(self.proc.end)
        # with PID 1 goes all that it has started
        self._power.callback(self._kill)
        self.proc.wait_until(lambda: self._children() != [])
        self.pid = self._children()[0]
        self.root = Path(f"/proc/{self.pid}/root")
        self.proc.wait_until(self._answers)

    def cut(self) -> None:
        """End everything at once, as when the power goes; `boot` boots again."""
        self._power.close()

    def shut_down(self) -> None:
        """Stop all units, then end everything, as a reboot begins; `boot` boots again."""
        self.run("systemctl", "reboot")
        self.proc.wait()
        self._power.close()

    def _children(self) -> list[int]:
        return [int(pid) for pid in Path(f"/proc/{self.proc.pid}/task/{self.proc.pid}/children").read_text().split()]

    def _kill(self) -> None:
        with contextlib.suppress(OSError):  # it has ended
            for child in self._children():
                os.kill(child, signal.SIGKILL)

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
        return [
            line.split()[4] for line in Path(f"/proc/{self.pid}/mountinfo").read_text(errors="replace").splitlines()
        ]

    def _answers(self) -> bool:
        # before this PID 1 has a root of its own, `systemctl` would ask the machine's
        if self.processes().get(1) != "systemd":
            return False
        return self.run("systemctl", "is-active", "multi-user.target", check=False) == "active\n"


@contextmanager
def booted(top: Path, fill: Callable[[Path], None]) -> Iterator[Booted]:
    """Boot a systemd for the length of a `with` block.

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
    (top / "mount").write_text(_DISK)
    (top / "boot").write_text(_BOOT)
    words: list[str | Path] = ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "sh", top / "mount"]
    words += [top, parts.PROJECT]
    with procs.running(words, log=top / "console", answers=(top / "mounted").exists) as disk:
        system = Booted(top, disk)
        try:
            system.boot()
            yield system
        finally:
            system.cut()


def _cgroup_root() -> Path | None:
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        before, after = line.split(" - ")
        if after.startswith("cgroup2 ") and os.access(point := before.split()[4], os.W_OK):
            return Path(point)
    return None


@contextmanager
def _cgroup() -> Iterator[Path]:
    """Make a cgroup for the length of a `with` block, after which it has to be without processes."""
    root = _cgroup_root()
    assert root
    cgroup = root / f"test-systemd-{uuid.uuid4().hex[:12]}"
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
