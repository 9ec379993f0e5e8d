"""Processes we did not fork, told apart by their start time so that a reused number fools nobody."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path
from typing import Self

import anyio
import msgspec
from anyio import to_thread


class ProcessId(msgspec.Struct, frozen=True):
    """One process of one boot.

    Attributes:
        pid: its number, which another may have one day.
        started: when it began, in clock ticks since the boot (proc(5), field 22 of ``stat``).
    """

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return who has this number now; a process that is dead and reaped gives ``None``. Blocks."""
        try:
            line = Path(f"/proc/{pid}/stat").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # the command, in parentheses, may hold anything; the state follows the last one
        return cls(pid, int(line[line.rindex(b")") + 2 :].split()[19]))

    def open(self) -> int | None:
        """Return a pidfd, or ``None`` when the process has ended and was reaped. Blocks; the caller closes it."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        # checked while the descriptor holds whatever has the number now
        if ProcessId.of(self.pid) != self:
            os.close(fd)
            return None
        return fd

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; false when the process is gone. Blocks."""
        fd = self.open()
        if fd is None:
            return False
        try:
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)
        return True

    def ended(self) -> bool:
        """Tell whether it has ended, reaped or not. Blocks, though not for long."""
        fd = self.open()
        if fd is None:
            return True
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            return bool(poll.poll(0))
        finally:
            os.close(fd)

    async def wait(self) -> None:
        """Return when the process has ended; any number of tasks may wait."""
        fd = await to_thread.run_sync(self.open)
        if fd is None:
            return
        try:
            await anyio.wait_readable(fd)
        finally:
            os.close(fd)


def with_argument(word: bytes) -> list[ProcessId]:
    """Return every process that has ``word`` as one of its arguments. Blocks, and costs a look at all processes."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            if word in Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0") and (it := ProcessId.of(int(entry))):
                found.append(it)
    return found
