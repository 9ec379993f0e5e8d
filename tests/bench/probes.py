"""What a piece of work costs: wall time, CPU seconds and memory of whole process trees, read from /proc."""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_TICKS = os.sysconf("SC_CLK_TCK")
SAMPLE_EVERY = 0.1
"""Seconds between two looks at the memory; each costs the kernel a millisecond or two."""

Roots = Callable[[], Iterable[int]]


@dataclass(frozen=True)
class Figure:
    """One measurement.

    Attributes:
        value: in the row's unit.
        cpu: CPU seconds of all processes of the side, None when nobody asked.
        peak: the highest PSS seen of all its processes, in bytes.
        produced: bytes that came out, for rows that make something.

    """

    value: float
    cpu: float | None = None
    peak: int | None = None
    produced: int | None = None


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock, CPU seconds, and bytes of memory at the highest."""

    seconds: float
    cpu: float
    peak: int

    def figure(self, *, produced: int | None = None) -> Figure:
        """Return it as a figure whose value is the time."""
        return Figure(self.seconds, self.cpu, self.peak, produced)


def tree(roots: Iterable[int]) -> list[int]:
    """Return the processes and all their descendants that live now."""
    found: list[int] = []
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        for task in _listed(Path(f"/proc/{pid}/task")):
            waiting += [int(word) for word in _read(task / "children").split()]
    return found


def cpu_seconds(roots: Iterable[int]) -> float:
    """Return user and system time of the trees, with that of the children they have reaped."""
    ticks = 0
    for pid in tree(roots):
        # the name in parentheses may hold anything; fields 14 to 17 of proc(5), counted after it
        if fields := _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split():
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / _TICKS


def process_seconds(roots: Iterable[int]) -> float:
    """Return the CPU time of these processes alone, to the nanosecond and without their children."""
    # the clock of a process, as clock_getcpuclockid(3) makes it of its ID
    return sum(time.clock_gettime(~pid << 3 | 2) for pid in roots)


def pss(roots: Iterable[int]) -> int:
    """Return the proportional set size of the trees, in bytes."""
    total = 0
    for pid in tree(roots):
        for line in _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


class MemoryWatch:
    """Looks at the memory of process trees for the length of a `with` block; `peak` is the highest PSS, in bytes."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.peak = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self.peak = max(self.peak, pss(self._roots()))
            if self._over.wait(SAMPLE_EVERY):
                return


def cost(work: Callable[[], object], roots: Roots) -> Cost:
    """Run `work` and return what it cost the processes under `roots`."""
    with MemoryWatch(roots) as memory:
        cpu = cpu_seconds(roots())
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
        cpu = cpu_seconds(roots()) - cpu
    return Cost(seconds, cpu, memory.peak)


def own_cost(work: Callable[[], object]) -> Figure:
    """Run a floor's `work` in this process and the children it waits for."""
    before, began = os.times(), time.perf_counter()
    work()
    seconds, after = time.perf_counter() - began, os.times()
    return Figure(seconds, sum(after[:4]) - sum(before[:4]))


def settle(folder: Path) -> None:
    """Write out what earlier work left to be written on the file system of `folder`."""
    subprocess.run(["sync", "-f", folder], check=True, timeout=300)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process is gone
        return ""


def _listed(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError:
        return []
