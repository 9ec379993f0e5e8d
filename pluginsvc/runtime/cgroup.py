"""A container's cgroups: whoever is in them is killed, and they are removed, on v1, hybrid and v2 alike.

The runtime does this as well, but not after a crash in the middle of its work, nor for processes that outlive the
first one of a container that shares the host's pid namespace. Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_PAUSE = 0.005


def directories(name: str) -> list[Path]:
    """Return the directories of the cgroup that is called ``name`` directly below the root of a hierarchy."""
    try:
        hierarchies = [_ROOT, *(path for path in _ROOT.iterdir() if path.is_dir())]
    except OSError:
        return []
    return [path / name for path in hierarchies if (path / name).is_dir()]


def members(name: str) -> set[int]:
    """Return the processes in the cgroup and in those below it."""
    found: set[int] = set()
    for directory in directories(name):
        for folder, _, _ in os.walk(directory):
            # a cgroup may go while we look
            with contextlib.suppress(OSError):
                found.update(map(int, Path(folder, "cgroup.procs").read_text("ascii").split()))
    return found


def signal_members(name: str, number: signal.Signals) -> None:
    """Send a signal to each process in the cgroup."""
    for pid in members(name):
        with contextlib.suppress(OSError):
            fd = os.pidfd_open(pid)
            try:
                # asked while the descriptor holds whatever has the number now
                if f"/{name}" in Path(f"/proc/{pid}/cgroup").read_text("utf-8"):
                    signal.pidfd_send_signal(fd, number)
            finally:
                os.close(fd)


def remove(name: str, *, within: float) -> bool:
    """Kill what is in the cgroup and delete it.

    Args:
        name: of the cgroup.
        within: seconds that the processes get to die.

    Returns:
        False when something in it would not die, or the kernel would not let go of it.
    """
    deadline = time.monotonic() + within
    while found := directories(name):
        signal_members(name, signal.SIGKILL)
        for directory in found:
            for folder, _, _ in os.walk(directory, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
        if directories(name):
            if time.monotonic() > deadline:
                return False
            # the kernel tells nobody when a v1 cgroup has become empty
            time.sleep(_PAUSE)
    return True
