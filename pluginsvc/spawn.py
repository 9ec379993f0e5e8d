"""Start a program so that its end can be waited for without a thread or a signal."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def spawn(
    words: Sequence[str],
    *,
    stderr: int,
    environment: Mapping[str, str],
    directory: Path | None = None,
    new_session: bool = False,
    pass_fds: Sequence[int] = (),
) -> tuple[subprocess.Popen[bytes], int]:
    """Start a program with nothing to read and nowhere to write but ``stderr``. Blocks until it runs.

    Args:
        words: the program and its arguments.
        stderr: descriptor for its standard error.
        environment: all variables that it gets.
        directory: where it runs.
        new_session: keep it out of our session, so that no signal to us reaches it.
        pass_fds: descriptors that it gets besides.

    Returns:
        The process and a pidfd, readable when it has ended; both are the caller's to end and close.

    Raises:
        OSError: it could not be started.
    """
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        cwd=directory,
        env=environment,
        start_new_session=new_session,
        pass_fds=pass_fds,
    )
    try:
        return process, os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise
