"""What the daemon holds, once a second, from /proc and from what it counts itself."""

from __future__ import annotations

import asyncio
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench import probes
from tests.support.wire import Api

_TASKS = re.compile("^pluginsvc_tasks (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Look:
    """What was seen of one process at one moment.

    Attributes:
        at: seconds since the epoch.
        fds, threads: how many.
        rss, pss: bytes.
        tasks: of its event loop.
        cpu: seconds it has used by itself.
    """

    at: float
    fds: int
    threads: int
    rss: int
    pss: int
    cpu: float
    tasks: int


def look(pid: int, socket: Path) -> Look:
    """Look at a daemon."""
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
        tasks=int(float(_TASKS.findall(Api(socket).call("GET", "/metrics").body)[0])),
    )


async def watch(pid: int, socket: Path, looks: list[Look]) -> None:
    """Look once a second, by the clock, until cancelled."""
    due = time.monotonic()
    while True:
        looks.append(await asyncio.to_thread(look, pid, socket))
        due += 1
        await asyncio.sleep(max(0.0, due - time.monotonic()))
