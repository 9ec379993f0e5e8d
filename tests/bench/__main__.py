"""Measure pluginsvc beside a dockerd of its own, in turn, in one run (design §7).

    python -m tests.bench [--quick] [--on-disk DIR] [--json FILE]        QUICK=1 does as --quick

It needs root, and by default 6 GiB of /dev/shm (quick: 1 GiB). All traffic stays on loopback and unix sockets.
"""

import argparse
import compileall
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench import bulk, live, report
from tests.bench.rows import EXPECTED_FAILURES
from tests.bench.sides import peer, pluginsvc
from tests.bench.stage import FULL, QUICK, Stage
from tests.support import parts
from tests.support.registry import start_registry

MEMORY_DISK = "/dev/shm"
_ROOM = {FULL: 6, QUICK: 1}
_LONGEST_PARENT = 60
"""Bytes: containerd and dockerd make sockets below it, whose paths have at most 107."""


def main() -> int:
    """Run the bench; return 0 when every row was measured on both sides."""
    arguments = _arguments()
    size = QUICK if arguments.quick else FULL
    parent = str(Path(arguments.on_disk or MEMORY_DISK).absolute())
    if problem := _problem(parent, size=_ROOM[size]):
        print(f"bench: {problem}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is ended in order
    # an installation has its bytecode, a working copy may not
    compileall.compile_dir(parts.PROJECT / "pluginsvc", quiet=1)
    began = time.monotonic()
    top = Path(tempfile.mkdtemp(prefix="b", dir=parent))
    try:
        with (
            start_registry(top) as registry,
            peer(top / "d") as dockerd,
            pluginsvc(top / "p") as ours,
        ):
            about = {"size": "quick" if arguments.quick else "full", "folder": parent, "dockerd": dockerd.version()}
            stage = Stage(top, size, registry, dockerd, ours, tell=_teller(began))
            _measure(stage)
    finally:
        shutil.rmtree(top, ignore_errors=True)
    about["seconds"] = f"{time.monotonic() - began:.0f}"
    memory_disk = arguments.on_disk is None
    print(f"\n{report.machine()}; " + ", ".join(f"{key} {value}" for key, value in about.items()) + "\n")
    print(report.table(stage.rows, stage.failed, memory_disk=memory_disk))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(report.document(stage.rows, about=about, memory_disk=memory_disk))
    print(f"all figures: {arguments.json}")
    return int(bool(stage.failed) or any(row.failed for row in stage.rows))


def _measure(stage: Stage) -> None:
    """Measure every row; what one cannot begin with does not stop the others."""
    steps: list[tuple[str, Callable[[], None]]] = [
        ("memory", lambda: live.idle(stage)),
        ("bulk", lambda: bulk.measure(stage)),
        ("enable", lambda: live.enable(stage)),
        ("2 plugins", lambda: live.populate(stage, 2)),
        ("requests", lambda: live.requests(stage, 2, ping=True)),
        ("events", lambda: live.events(stage)),
        ("many plugins", lambda: live.populate(stage, stage.size.known)),
        ("requests, many", lambda: live.requests(stage, stage.size.known, ping=False)),
        ("start, many", lambda: live.starts(stage)),
    ]
    for title, step in steps:
        try:
            step()
        except EXPECTED_FAILURES as exc:
            stage.failed.append(f"{title}: {type(exc).__name__}: {exc}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure pluginsvc beside dockerd.")
    quick = os.environ.get("QUICK", "") not in {"", "0"}
    parser.add_argument("--quick", action="store_true", default=quick, help="small inputs, under 90 s")
    parser.add_argument("--on-disk", metavar="DIR", help=f"work in this folder instead of {MEMORY_DISK}")
    parser.add_argument("--json", metavar="FILE", type=Path, default=parts.PROJECT / ".cache" / "bench" / "latest.json")
    return parser.parse_args()


def _problem(parent: str, *, size: int) -> str:
    """Return why the bench cannot run, or nothing; `size` in GiB."""
    if os.geteuid() != 0:
        return "it needs root: both daemons unpack and run plugins as root"
    try:
        for name in ("dockerd", "containerd", "docker-registry", "conmon", "runc", "tar"):
            parts.find(name)
    except parts.MissingPartError as exc:
        return str(exc)
    if not Path(parent).is_dir():
        return f"{parent} is no folder"
    if len(os.fsencode(parent)) > _LONGEST_PARENT:
        return f"the path {parent} is too long: sockets below it must stay within 107 bytes"
    if os.statvfs(parent).f_flag & (os.ST_NOEXEC | os.ST_NODEV):
        return f"{parent} is mounted noexec or nodev: plugins cannot run from there; give another with --on-disk DIR"
    if (free := shutil.disk_usage(parent).free / 1024**3) < size:
        return f"{parent} has {free:.1f} GiB free, and {size} are needed"
    return ""


def _teller(began: float) -> Callable[[str], None]:
    def tell(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", file=sys.stderr, flush=True)

    return tell


if __name__ == "__main__":
    sys.exit(main())
