"""What the daemon's process holds, once a second, from /proc."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench import probes


@dataclass(frozen=True)
class Look:
    """What was seen of one process at one moment.

    Attributes:
        at: seconds since the epoch.
        fds, threads: how many.
        rss, pss: bytes.
        cpu: seconds it has used by itself.
    """

    at: float
    fds: int
    threads: int
    rss: int
    pss: int
    cpu: float


def look(pid: int) -> Look:
    """Look at a process."""
    folder = Path(f"/proc/{pid}")
    fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    rollup = (folder / "smaps_rollup").read_text().splitlines()
    pss = next(int(line.split()[1]) * 1024 for line in rollup if line.startswith("Pss:"))
    return Look(
        at=time.time(),
        fds=len(os.listdir(folder / "fd")),
        threads=int(fields["Threads"]),
        rss=int(fields["VmRSS"].split()[0]) * 1024,
        pss=pss,
        cpu=probes.process_seconds([pid]),
    )


async def watch(pid: int, looks: list[Look]) -> None:
    """Look once a second, by the clock, until cancelled."""
    due = time.monotonic()
    while True:
        looks.append(look(pid))
        due += 1
        await asyncio.sleep(max(0.0, due - time.monotonic()))
