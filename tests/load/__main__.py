"""`make load`: a thousand readers follow the events of one daemon while twenty clients change plugins.

Everything is on loopback and bounded; exit 0 only if no reader missed or doubled an event, every answer was the
expected one, lists folded from events equal the daemon's, memory stayed flat and `/_ping` quick (docs/load.md).
"""

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from tests.load import highest
from tests.load.consumers import Consumers
from tests.load.press import Plan, Pressed, prepare, press
from tests.load.report import Bounds, document, dumped, failures, text
from tests.support import parts
from tests.support.daemon import running_daemon
from tests.support.registry import start_registry

OUT = parts.PROJECT / ".cache" / "load"
_FILES = 65_536
_SPARE_FILES = 200


def crowd(total: int, seconds: float) -> Consumers:
    """Return so many consumers in the usual proportions: of a thousand 890 fast ones."""
    slow, stalled, reconnecting, folding = (max(1, total * share // 1000) for share in (50, 20, 30, 10))
    fast = max(1, total - slow - stalled - reconnecting - folding)
    return Consumers(fast, slow, stalled, reconnecting, folding, seconds)


def main() -> int:
    """Run; return 0 when all held."""
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("--consumers", type=int, default=1000, help="event streams held open [1000]")
    parser.add_argument("--mutators", type=int, default=20, help="clients that change plugins [20]")
    parser.add_argument("--rate", type=float, default=10, help="changes a second, by all together [10]")
    parser.add_argument("--seconds", type=float, default=300, help="for how long [300]")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder for load.json and load.png [{OUT}]")
    parser.add_argument(
        "--find-highest", action="store_true", help="raise the rate in steps of 20 s, for 6 minutes at most"
    )
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("load: run it as root: plugins are unpacked and run as root (sudo make load)", file=sys.stderr)
        return 2
    if min(options.consumers, options.mutators, options.rate, options.seconds) <= 0:
        parser.error("consumers, mutators, rate and seconds have to be positive")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = min(limit, _FILES) if limit > 0 else _FILES
    if files < options.consumers + _SPARE_FILES:
        print(f"load: {files} descriptors are too few for {options.consumers} consumers: ulimit -n", file=sys.stderr)
        return 2
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, limit))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is ended in order
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        found = _run(options)
    except KeyboardInterrupt:
        print("load: interrupted; everything has ended", file=sys.stderr)
        return 130
    (file := options.out / "load.json").write_text(dumped(found))
    # in a process of its own: matplotlib is large
    words = [sys.executable, "-m", "tests.load.chart", file.absolute(), file.with_suffix(".png").absolute()]
    subprocess.run(words, check=True, cwd=parts.PROJECT)
    print(f"\n{text(found)}\n\nall figures: {file}\nchart: {file.with_suffix('.png')}")
    return int(not found["held"])


def _run(options: argparse.Namespace) -> dict[str, Any]:
    tell = _teller(time.monotonic())
    bounds, steps = Bounds(), list[dict[str, Any]]()
    seconds = highest.LONGEST if options.find_highest else options.seconds
    plan = Plan(crowd(options.consumers, seconds), options.mutators, options.rate, seconds)

    async def drive(pressed: Pressed) -> None:
        if options.find_highest:
            await highest.drive(pressed, steps, bounds, tell)
        else:
            await pressed.last(seconds)

    with (
        tempfile.TemporaryDirectory(prefix="pluginsvc-load-") as folder,
        start_registry(Path(folder)) as registry,
        running_daemon("--log-level", "warning") as daemon,
    ):
        material = prepare(daemon, registry, Path(folder))
        tell("the daemon runs")
        out = uvloop.run(press(daemon, material, plan, drive, tell))
    if options.find_highest:
        # a rate that is too high is found on purpose; what must hold at any rate is that nothing is lost
        bounds = Bounds(ping=float("inf"), growth=float("inf"), pace=0)
    return document(out, failures(out, bounds), steps)


def _teller(began: float) -> Callable[[str], None]:
    def tell(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", file=sys.stderr, flush=True)

    return tell


if __name__ == "__main__":
    sys.exit(main())
