"""Measure pluginsvc beside a dockerd of its own, in turn, in one run (design §7): in memory, then on disk.

    python -m tests.bench [--quick] [--only ROW,ROW] [--in-memory | --on-disk [DIR]] [--json FILE]

QUICK=1 does as --quick. It needs root, 6 GiB of /dev/shm and of the disk (quick: 1 GiB). All traffic stays on loopback
and unix sockets.
"""

import argparse
import compileall
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path

from tests.bench import bulk, growth, latency, live, report
from tests.bench.rows import EXPECTED_FAILURES
from tests.bench.sides import peer, pluginsvc
from tests.bench.stage import FULL, QUICK, Size, Stage
from tests.support import parts
from tests.support.registry import start_registry

MEMORY, DISK = "/dev/shm", "/var/tmp"
OUT = parts.PROJECT / ".cache" / "bench"
_FILES = 65_536
"""Descriptors a process may have: a thousand readers of events take more than many a shell allows."""
_LONGEST_PARENT = 60
"""Bytes: containerd and dockerd make sockets below it, whose paths have at most 107."""


def main() -> int:
    """Run the bench; return 0 when every row was measured on both sides."""
    arguments = _arguments()
    size = QUICK if arguments.quick else FULL
    places = _places(arguments)
    for folder in places:
        if problem := _problem(folder, size=size.room):
            print(f"bench: {problem}", file=sys.stderr)
            return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is ended in order
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit if 0 < limit < _FILES else _FILES, limit))
    # an installation has its bytecode, a working copy may not
    compileall.compile_dir(parts.PROJECT / "pluginsvc", quiet=1)
    began = time.monotonic()
    results = [_run(folder, only, size, _teller(began)) for folder, only in places.items()]
    about = {"size": "quick" if arguments.quick else "full", "seconds": f"{time.monotonic() - began:.0f}"}
    print(f"\n{report.machine()}; " + ", ".join(f"{key} {value}" for key, value in about.items()))
    for result in results:
        print(f"\n{report.text(result)}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(report.document(results, about=about))
    picture = arguments.json.with_suffix(".png")
    # drawn from the document, in a process of its own: matplotlib is large
    subprocess.run([sys.executable, "-m", "tests.bench.chart", arguments.json, picture], check=True, cwd=parts.PROJECT)
    print(f"all figures: {arguments.json}\nchart: {picture}")
    return int(any(result.lacking() for result in results))


def _run(parent: str, only: Collection[str], size: Size, tell: Callable[[str], None]) -> report.Result:
    """Measure in one place."""
    top = Path(tempfile.mkdtemp(prefix="b", dir=parent))
    try:
        with start_registry(top) as registry, peer(top / "d") as dockerd, pluginsvc(top / "p") as ours:
            stage = Stage(top, size, registry, dockerd, ours, tell=tell)
            tell(f"in {parent}")
            version = dockerd.version()
            _measure(stage, only)
    finally:
        shutil.rmtree(top, ignore_errors=True)
    return report.Result(
        folder=parent,
        memory_disk=parent == MEMORY,
        dockerd=version,
        rows=stage.rows,
        curves=stage.curves,
        failed=stage.failed,
    )


STEPS: dict[str, Callable[[Stage], None]] = {
    "memory": live.idle,
    "create": bulk.create,
    "create-tiny": bulk.create_tiny,
    "install-1": bulk.install_one,
    "install-tiny": bulk.install_tiny,
    "install-8": bulk.install_eight,
    "latency": latency.during_install,
    "growth-layers": growth.layers,
    "push": bulk.push,
    "enable": live.enable,
    "list-2": lambda stage: live.requests(stage, "/plugins", known=2),
    "ping": lambda stage: live.requests(stage, "/_ping", known=2),
    "events": live.events,
    "growth-readers": growth.event_readers,
    "list-100": lambda stage: live.requests(stage, "/plugins", known=live.MANY),
    "start": live.starts,
    "growth-plugins": growth.plugins,
}
"""What `--only` chooses from, in the order it is measured."""


ON_DISK = ("create", "create-tiny", "install-1", "install-tiny", "install-8", "push", "enable")
ON_DISK_QUICK = ("create", "push")
"""What the disk has a part in; the rest is measured in memory alone unless it is asked for."""
IN_MEMORY_QUICK = tuple(name for name in STEPS if name not in {"events", "latency", "install-tiny"})
"""Small numbers of events say nothing about what one costs, and are lost to nobody; a short install delays nobody."""


def _measure(stage: Stage, only: Collection[str]) -> None:
    """Measure every row; what one cannot begin with does not stop the others."""
    for name, step in STEPS.items():
        if name in only:
            try:
                step(stage)
            except EXPECTED_FAILURES as exc:
                stage.failed.append(f"{name}: {type(exc).__name__}: {exc}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure pluginsvc beside dockerd.")
    quick = os.environ.get("QUICK", "") not in {"", "0"}
    parser.add_argument("--quick", action="store_true", default=quick, help="small inputs, under 90 s")
    parser.add_argument(
        "--only",
        metavar="ROW,ROW",
        type=_chosen,
        help=f"measure these, in memory unless --on-disk is given: {', '.join(STEPS)}",
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--in-memory", action="store_true", help=f"measure in {MEMORY} alone")
    place.add_argument("--on-disk", metavar="DIR", nargs="?", const=DISK, help=f"measure there alone [{DISK}]")
    parser.add_argument("--json", metavar="FILE", type=Path, help=f"{OUT}/latest.json, with --only: only.json")
    found = parser.parse_args()
    found.json = (found.json or OUT / ("only.json" if found.only else "latest.json")).absolute()
    return found


def _places(arguments: argparse.Namespace) -> dict[str, Collection[str]]:
    """Return the folders to measure in, and what in each."""
    memory, disk = (IN_MEMORY_QUICK, ON_DISK_QUICK) if arguments.quick else (tuple(STEPS), ON_DISK)
    if arguments.on_disk:
        return {os.path.abspath(arguments.on_disk): arguments.only or disk}
    if arguments.in_memory or arguments.only:
        return {MEMORY: arguments.only or memory}
    return {MEMORY: memory, DISK: disk}


def _chosen(words: str) -> list[str]:
    names = words.split(",")
    if unknown := set(names).difference(STEPS):
        raise argparse.ArgumentTypeError(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    return names


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
