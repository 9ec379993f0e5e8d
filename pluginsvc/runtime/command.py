"""Programs that do one thing and end: the runtime, and what forks the monitor.

They are started in a thread by ``subprocess``, which uses vfork(2), and waited for by a pidfd. The loops' own ways cost
more: asyncio's starts a thread to wait for each process, uvloop's forks, which copies the page tables of the daemon.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio import to_thread

from pluginsvc.spawn import spawn

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
"""All that runtime and monitor get of an environment: the daemon's own NOTIFY_SOCKET or LISTEN_FDS would make the
runtime pass those on to the plugin."""

_MAX_OUTPUT = 4096
_KILL_SECONDS = 10.0


class CommandFailed(Exception):
    """A command ended badly; the caller knows for which plugin and makes it a ``RuntimeFailed``."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended.

    Attributes:
        code: its exit code, or a signal's number below zero.
        said: the last that it wrote to stderr.
    """

    code: int
    said: bytes


def find(name: str) -> str:
    """Return the absolute path of a program. Blocks.

    Raises:
        CommandFailed: it is not there.
    """
    path = shutil.which(name, path=ENVIRONMENT["PATH"])
    if path is None:
        raise CommandFailed(f"{name} is not there or not executable: install it, or say where it is")
    return str(Path(path).absolute())


async def run(
    words: Sequence[str],
    *,
    within: float,
    environment: Mapping[str, str] = ENVIRONMENT,
    directory: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> Ended:
    """Run a program to its end, with nothing to read, in a session of its own.

    Args:
        words: the program, found in ``ENVIRONMENT``'s PATH, and its arguments.
        within: seconds it may take; it is killed then, and when the caller is cancelled.
        environment: all variables that it gets.
        directory: where it runs.
        pass_fds: descriptors that it gets.

    Raises:
        CommandFailed: the program is not there.
        TimeoutError: it was killed.
        OSError: it could not be run.
    """
    # a file in memory: what a child of the program holds open keeps nobody waiting, as a pipe would
    said = os.memfd_create("stderr")

    def start() -> tuple[subprocess.Popen[bytes], int]:
        command = [find(words[0]), *words[1:]]
        return spawn(
            command, stderr=said, environment=environment, directory=directory, new_session=True, pass_fds=pass_fds
        )

    try:
        with anyio.fail_after(within):
            process, ended = await to_thread.run_sync(start)
            try:
                await anyio.wait_readable(ended)
            except BaseException:
                process.kill()
                with anyio.move_on_after(_KILL_SECONDS, shield=True):
                    await anyio.wait_readable(ended)
                raise
            finally:
                os.close(ended)
                process.poll()
        begin = max(0, os.lseek(said, 0, os.SEEK_END) - _MAX_OUTPUT)
        return Ended(process.returncode, os.pread(said, _MAX_OUTPUT, begin))
    finally:
        os.close(said)
