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


def pure_v2() -> bool:
    """Tell whether there is nothing but v2; otherwise the controllers are in v1 hierarchies, as the runtimes judge."""
    return (_ROOT / "cgroup.controllers").exists()


def counts_swap() -> bool:
    """Tell whether swap can be limited; kernels before 6.1 often lack that, and runc 1.1 then fails when asked to."""
    # v2 has no such file at its root, but in all that systemd makes below
    return any(_ROOT.glob("*/memory.swap.max" if pure_v2() else "memory/memory.memsw.limit_in_bytes"))


def ran_out_of_memory(name: str) -> bool:
    """Tell whether the kernel has killed any process of the cgroup for want of memory, the machine's or its own."""
    for directory in directories(name):
        for file in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError):
                words = (directory / file).read_text("ascii").split()
                if "oom_kill" in words and words[words.index("oom_kill") + 1] != "0":
                    return True
    return False


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
