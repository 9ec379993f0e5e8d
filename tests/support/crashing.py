"""A daemon that dies at a chosen step: every change to the disk, every process started, every transaction is one.

Run as a program this is a *zygote*: it imports the daemon once and forks one life of it per line on stdin, so that a
sweep over many steps does not pay for the imports each time. The product holds no code for this.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from tests.support import parts, procs, remains
from tests.support.daemon import Daemon

_CHANGES = frozenset(
    {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.truncate", "subprocess.Popen"}
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class _Steps:
    """Counts the steps of one life once `armed` exists, writes each to `trace`, and dies at the one called `at`."""

    def __init__(self, armed: Path, trace: Path, at: str) -> None:
        self._armed, self._at = armed, at
        self._trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        self._seen: Counter[str] = Counter()
        self._guard = threading.RLock()
        self._owner = os.getpid()

    def install(self) -> None:
        """Hook ourselves in; each step is told of before it happens, a commit also after it."""
        sys.addaudithook(self._audit)
        from pluginsvc.rootfs import mounts  # noqa: PLC0415 - the daemon's modules are the zygote's alone
        from pluginsvc.state.database import Database  # noqa: PLC0415 - the same

        fsync, make_shared, write = os.fsync, mounts.make_shared, Database._write

        def stepped_fsync(fd: int) -> None:
            self.step("fsync")
            fsync(fd)

        def stepped_make_shared(path: Path) -> None:
            self.step("mount")
            make_shared(path)
            self.step("mounted")

        def stepped_write(database: Database, work: Callable[[Any], Any]) -> Any:
            name = (work.func if isinstance(work, partial) else work).__qualname__
            self.step(f"before {name}")
            result = write(database, work)
            self.step(f"after {name}")
            return result

        # patched for the length of a process that is only there to die
        setattr(os, "fsync", stepped_fsync)  # noqa: B010 - assigning would be a type error
        setattr(mounts, "make_shared", stepped_make_shared)  # noqa: B010 - the same
        setattr(Database, "_write", stepped_write)  # noqa: B010 - the same

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event in _CHANGES or (event == "open" and isinstance(args[2], int) and args[2] & _WRITING):
            self.step(event)

    def step(self, what: str) -> None:
        """Count a step; do not return from the chosen one."""
        if os.getpid() != self._owner or not self._armed.exists():
            return
        with self._guard:
            label = f"{what} in {_caller()}"
            self._seen[label] += 1
            name = f"{label} #{self._seen[label]}"
            os.write(self._trace, f"{name}\n".encode())
            if name == self._at:
                os.kill(self._owner, signal.SIGKILL)


def _caller() -> str:
    """Return the innermost function of the daemon on this thread's stack."""
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]  # ends at None
        module = frame.f_globals.get("__name__", "")
        if module.startswith("pluginsvc."):
            return f"{module}.{frame.f_code.co_qualname}"
    return "nobody"


def _count(path: Path, *_: object) -> None:
    """Write down how many objects of each of the daemon's own classes there are, and which tasks its loop has."""
    gc.collect()
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in map(type, gc.get_objects()))
    found = Counter(name for name in names if name.startswith("pluginsvc."))
    # tasks without a name are numbered, and are those of connections
    found.update(f"task {task.get_name().rstrip('0123456789')}" for task in asyncio.all_tasks())
    new = path.with_suffix(".new")
    new.write_text(json.dumps(found))
    new.replace(path)


def _zygote() -> None:
    from pluginsvc import __main__, daemon  # noqa: PLC0415 - only the zygote loads the daemon

    del daemon
    for line in sys.stdin:
        life = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setsid()
                log = os.open(life["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                null = os.open(os.devnull, os.O_RDONLY)
                for source, target in ((null, 0), (log, 1), (log, 2)):
                    os.dup2(source, target)
                os.close(log)
                os.close(null)
                signal.signal(signal.SIGUSR2, partial(_count, Path(life["counts"])))
                _Steps(Path(life["armed"]), Path(life["trace"]), life["at"]).install()
                __main__.main(life["words"])
                code = 0
            except SystemExit as exc:
                # what Python itself would say of it
                print(exc.code, file=sys.stderr)
            except BaseException:  # noqa: BLE001 - nobody else would tell of it
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


class Zygote:
    """The client's side of the zygote process."""

    def __init__(self, log: Path) -> None:
        environment = parts.env() | {"PYTHONPATH": str(parts.PROJECT)}
        with log.open("ab") as errors:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "tests.support.crashing"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )

    def fork(self, **life: object) -> Life:
        """Begin a life; the one before has ended."""
        assert self._popen.stdin
        assert self._popen.stdout
        self._popen.stdin.write(json.dumps(life) + "\n")
        self._popen.stdin.flush()
        return Life(int(self._popen.stdout.readline()), self._popen.stdout, Path(str(life["log"])))

    def close(self) -> None:
        """End the zygote; its last life has ended."""
        assert self._popen.stdin
        assert self._popen.stdout
        self._popen.stdin.close()
        self._popen.wait(10)
        self._popen.stdout.close()


class Life(procs.Proc):
    """One forked daemon; does what a `Proc` does."""

    def __init__(self, pid: int, ends: IO[str], log: Path) -> None:
        self._pid, self._ends, self.log = pid, ends, log
        self._code: int | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        self._code = int(self._ends.readline())

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._code is not None

    def wait_until(self, answers: Callable[[], bool], *, timeout: float = 20.0) -> None:
        """Do as `Proc.wait_until`, asking more often."""
        deadline = time.monotonic() + timeout
        while not answers():
            if self.over:
                raise procs.ProcessFailedError(f"the daemon ended early with {self._code}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise procs.ProcessFailedError(f"the daemon did not answer in {timeout} s:\n{self.tail()}")
            time.sleep(procs.POLL / 4)

    def signal(self, number: signal.Signals) -> None:
        if not self.over:
            with suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def wait(self, *, timeout: float = 20.0) -> int:
        self._reader.join(timeout)
        assert self._code is not None, f"process {self._pid} has not ended after {timeout} s:\n{self.tail()}"
        return self._code

    def end(self, *, grace: float = 10.0) -> int:
        self.signal(signal.SIGTERM)
        self._reader.join(grace)
        self.signal(signal.SIGKILL)
        return self.wait()


class MortalDaemon(Daemon):
    """A daemon of which each life may be told at which step to die; `at` is used by the next `start`."""

    def __init__(self, top: Path, flags: Sequence[str] = ()) -> None:
        super().__init__(top, flags)
        self.at = ""
        self._armed, self._trace, self._counts = top / "armed", top / "trace", top / "counts"
        self._zygote = Zygote(top / "daemon.log")

    def start(self, *, armed: bool = False) -> None:
        """Start the next life and wait until it answers; `armed` counts its very first steps as well."""
        self.arm() if armed else self.disarm()
        self.proc = self._zygote.fork(
            words=[*self.serve(), *self.flags],
            log=str(self.top / "daemon.log"),
            armed=str(self._armed),
            trace=str(self._trace),
            counts=str(self._counts),
            at=self.at,
        )
        self.proc.wait_until(lambda: procs.accepts(self.socket), timeout=40)

    def arm(self) -> None:
        """Count steps from now on."""
        self._trace.write_bytes(b"")  # the daemon has it open
        self._armed.touch()

    def disarm(self) -> None:
        """Count no more."""
        self._armed.unlink(missing_ok=True)

    def steps(self) -> list[str]:
        """Return the names of the steps since `arm`."""
        return self._trace.read_text().splitlines() if self._trace.exists() else []

    def counts(self) -> dict[str, int]:
        """Return how many tasks of each name the daemon has, and how many objects of each of its classes."""
        assert self.proc
        self._counts.unlink(missing_ok=True)
        self.proc.signal(signal.SIGUSR2)
        self.proc.wait_until(self._counts.exists)
        found = json.loads(self._counts.read_text())
        assert isinstance(found, dict)
        return found

    def close(self) -> None:
        """End the zygote."""
        self._zygote.close()


@contextmanager
def mortal_daemon(top: Path, *flags: str) -> Iterator[MortalDaemon]:
    """Own a mortal daemon; it is not started, and whatever it leaves is ended with it."""
    daemon = MortalDaemon(top, flags)
    try:
        yield daemon
    finally:
        if daemon.proc is not None:
            daemon.kill()
        daemon.close()
        remains.purge(daemon)


if __name__ == "__main__":
    _zygote()
