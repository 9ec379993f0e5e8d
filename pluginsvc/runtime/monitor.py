"""conmon: the parent that a plugin has instead of us (design D3).

It creates the container through the runtime, writes the plugin's output to the log, and leaves the exit code in a
file. It goes on when the daemon does not. Written for conmon 2.1.6; see conmon(8) and its ``src/conmon.c``.
"""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path
from typing import Any

import anyio
import msgspec
from anyio import to_thread

from pluginsvc.runtime.bundle import LOG_NAME, Place
from pluginsvc.runtime.command import ENVIRONMENT, CommandFailed, find, run
from pluginsvc.runtime.logs import clean
from pluginsvc.runtime.oci import Runtime, last_lines

_REOPEN = b"2 0 0\n"
"""The control message by which conmon closes its log file and opens a new one."""

_MAX_REPORT = 64 * 1024


async def create(
    place: Place, *, container_id: str, conmon: str, runtime: Runtime, log_limit: int, within: float
) -> int:
    """Start a monitor, and by it create the container of a prepared bundle, ready to be started.

    The monitor reports the container's process, or what the runtime said when it failed, through a pipe of ours.
    Cancellation waits until it has: before that nobody knows what would have to be cleaned up.

    Args:
        place: with the bundle in it.
        container_id: one that was never used before.
        conmon: name or path of the program.
        runtime: what creates the container.
        log_limit: bytes above which the monitor itself replaces the log file by an empty one; what was in it is gone.
        within: seconds it may take.

    Returns:
        The process ID of the container's first process.

    Raises:
        CommandFailed: with what conmon or the runtime says.
    """
    creator = await to_thread.run_sync(find, runtime.name)
    reading, descriptor = os.pipe()
    os.set_blocking(reading, False)
    writing = FileIO(descriptor, "w")
    words = [conmon, "--api-version", "1", "--cid", container_id, "--cuuid", container_id, "--runtime", creator]
    words += [word for option in runtime.options(place.runtime_log) for word in ("--runtime-arg", option)]
    words += ["--bundle", str(place.bundle), "--exit-dir", str(place.exits), "--full-attach", "--no-sync-log"]
    words += ["--container-pidfile", str(place.container_pid), "--conmon-pidfile", str(place.monitor_pid)]
    words += ["--log-path", f"k8s-file:log/{LOG_NAME}", "--log-size-max", str(log_limit)]
    try:
        with anyio.CancelScope(shield=True), anyio.fail_after(within):
            report = await _report(words, place.state, reading, writing, within)
    except TimeoutError as exc:
        raise CommandFailed(f"{conmon} and {runtime.name} did not create it within {within:g} s") from exc
    except OSError as exc:
        raise CommandFailed(f"{conmon} could not be run: {exc.strerror}") from exc
    finally:
        os.close(reading)
        writing.close()
    pid = report.get("data")
    if not isinstance(pid, int) or pid <= 0:
        said = clean(str(report.get("message", "")).encode())
        said = said or await to_thread.run_sync(last_lines, place.runtime_log)
        raise CommandFailed(f"{runtime.name} create: {said or 'ended without saying why'}")
    return pid


async def _report(words: list[str], state: Path, reading: int, writing: FileIO, within: float) -> dict[str, Any]:
    environment = {**ENVIRONMENT, "_OCI_SYNCPIPE": str(writing.fileno())}
    # what is run here only forks the monitor proper, and ends
    ended = await run(words, within=within, environment=environment, directory=state, pass_fds=[writing.fileno()])
    writing.close()
    if ended.code != 0:
        raise CommandFailed(f"conmon: {clean(ended.said) or f'exit code {ended.code}'}")
    line = b""
    while b"\n" not in line and len(line) < _MAX_REPORT:
        await anyio.wait_readable(reading)
        data = os.read(reading, _MAX_REPORT)
        if not data:
            break
        line += data
    try:
        return msgspec.json.decode(line.partition(b"\n")[0], type=dict[str, Any])
    except msgspec.MsgspecError:
        # conmon 2.1.6 does not escape all that a runtime may say
        return {"data": -1, "message": line.decode(errors="replace")}


def reopen_log(place: Place) -> bool:
    """Make the monitor write to a new log file under the old name; false when there is no monitor any more. Blocks."""
    try:
        # without a reader this fails instead of waiting for one
        fd = os.open(place.control, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, _REOPEN)
    finally:
        os.close(fd)
    return True
