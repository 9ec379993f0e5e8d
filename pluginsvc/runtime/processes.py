"""The processes of a plugin, as ``ps -ef`` shows them. Blocks."""

from __future__ import annotations

import os
import pwd
import time
from contextlib import suppress
from pathlib import Path

from pluginsvc.runtime import cgroup

TITLES = ("UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD")

_TICKS = os.sysconf("SC_CLK_TCK")
_DAY = 24 * 3600
_TTYS = {4: "tty", 136: "pts/"}
_TTYS_PER_MAJOR = 256


def rows(group: str) -> list[list[str]]:
    """Return a row of ``TITLES`` for each process in the cgroup of that name, by process ID; numbers are the host's."""
    found = []
    for pid in sorted(cgroup.members(group)):
        # it may end while we look
        with suppress(FileNotFoundError, ProcessLookupError):
            found.append(_row(pid))
    return found


def _row(pid: int) -> list[str]:
    folder = Path(f"/proc/{pid}")
    stat = (folder / "stat").read_bytes()
    words = (folder / "cmdline").read_bytes()
    owner = (folder / "stat").stat().st_uid
    # the command, in parentheses, may hold anything; proc(5) numbers the fields from 1, and the state is the third
    name, _, rest = stat.partition(b"(")[2].rpartition(b")")
    fields = [b"", b"", b"", *rest.split()]
    parent, tty, user, system, began = (int(fields[number]) for number in (4, 7, 14, 15, 22))
    elapsed = max(1 / _TICKS, time.clock_gettime(time.CLOCK_BOOTTIME) - began / _TICKS)
    used = (user + system) / _TICKS
    command = words.rstrip(b"\0").replace(b"\0", b" ") or b"[%b]" % name
    if fields[3] == b"Z":
        command = b"[%b] <defunct>" % name
    hours, seconds = divmod(int(used), 3600)
    return [
        _user(owner),
        str(pid),
        str(parent),
        str(min(99, int(used * 100 / elapsed))),
        _since(elapsed),
        _tty(tty),
        f"{hours:02}:{seconds // 60:02}:{seconds % 60:02}",
        command.decode("utf-8", "backslashreplace"),
    ]


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _since(elapsed: float) -> str:
    return time.strftime("%H:%M" if elapsed < _DAY else "%b%d", time.localtime(time.time() - elapsed))


def _tty(device: int) -> str:
    name = _TTYS.get(os.major(device)) if device else None
    return "?" if name is None else f"{name}{os.minor(device) % _TTYS_PER_MAJOR}"
