"""The runtime as a command, and the monitor that runs it."""

import os
import time
from pathlib import Path

import anyio
import pytest

from pluginsvc.runtime.bundle import Place
from pluginsvc.runtime.command import CommandFailed, find
from pluginsvc.runtime.monitor import create, reopen_log
from pluginsvc.runtime.oci import Runtime, last_lines

pytestmark = pytest.mark.anyio


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo bad luck >&2; exit 1", "bad luck"),
        ('log=${2#--log=}; echo from the log >"$log"; exit 1', "from the log"),
        ("exit 9", "exit code 9"),
        ("printf '\\033[31mred' >&2; exit 1", r"\\x1b\[31mred"),
        ("kill -9 $$", "exit code -9"),
    ],
)
async def test_failure_says_what_the_runtime_said(tmp_path: Path, text: str, said: str) -> None:
    """A failed operation carries stderr, else the end of the log, else the code; control characters are escaped."""
    runtime = Runtime(script(tmp_path / "rt", text), tmp_path / "root")
    with pytest.raises(CommandFailed, match=said):
        await runtime.start("c", log=tmp_path / "log", within=10)


async def test_runtime_that_hangs_is_killed(tmp_path: Path) -> None:
    """An operation that does not end in time is killed, and the error says so."""
    runtime = Runtime(script(tmp_path / "rt", "exec sleep 60"), tmp_path / "root")
    began = time.monotonic()
    with pytest.raises(CommandFailed, match=r"start did not end within 0\.2 s"):
        await runtime.start("c", log=tmp_path / "log", within=0.2)
    assert time.monotonic() - began < 5


async def test_words_of_an_operation(tmp_path: Path) -> None:
    """Root and log come before the operation, and no variable of ours is passed on but PATH."""
    runtime = Runtime(script(tmp_path / "rt", f'echo "$@" >{tmp_path}/words; env >{tmp_path}/env'), tmp_path / "root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTIFY_SOCKET", "/run/notify")
        await runtime.delete("c", log=tmp_path / "log", within=10)
    assert (tmp_path / "words").read_text() == f"--root={tmp_path}/root --log={tmp_path}/log delete --force c\n"
    names = {line.partition("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert names <= {"PATH", "PWD", "_", "SHLVL", "OLDPWD"}


def test_missing_or_unusable_program(tmp_path: Path) -> None:
    """A program that is not there, or is not executable, is named."""
    (tmp_path / "plain").touch()
    for name in ("no-such-program", str(tmp_path / "plain"), "/no/such"):
        with pytest.raises(CommandFailed, match=f"{name} is not there or not executable"):
            find(name)


def test_last_lines(tmp_path: Path) -> None:
    """The last three lines of a log are given, and none of a log that is not there."""
    (tmp_path / "log").write_text("1\n2\n3\n4\n")
    assert last_lines(tmp_path / "log") == "2; 3; 4"
    assert not last_lines(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo no such option >&2; exit 2", "conmon: no such option"),
        ("exit 2", "conmon: exit code 2"),
        ("exit 0", "rt create: ended without saying why"),
        ("""echo '{"data": -1, "message": "no luck"}' >/proc/self/fd/$_OCI_SYNCPIPE""", "rt create: no luck"),
        ("""echo '{"data": "x"}' >/proc/self/fd/$_OCI_SYNCPIPE""", "ended without saying why"),
        ("echo '{broken' >/proc/self/fd/$_OCI_SYNCPIPE", "rt create: {broken"),
        ("echo '[1]' >/proc/self/fd/$_OCI_SYNCPIPE", r"\[1\]"),
        ("exec sleep 60", r"did not create it within 0\.5 s"),
        ("(exec sleep 1) & exit 0", r"did not create it within 0\.5 s"),
    ],
)
async def test_monitor_that_fails(tmp_path: Path, text: str, said: str) -> None:
    """Whatever way a monitor fails, the error says so in time."""
    place = Place(tmp_path / "run", tmp_path / "logs", "ab" * 32)
    place.state.mkdir(parents=True)
    conmon = script(tmp_path / "conmon", text)
    runtime = Runtime(script(tmp_path / "rt", ""), tmp_path / "root")
    with pytest.raises(CommandFailed, match=said), anyio.fail_after(10):
        await create(place, container_id="c", conmon=conmon, runtime=runtime, log_limit=1 << 20, within=0.5)


def test_reopening_without_a_monitor(tmp_path: Path) -> None:
    """Without anybody at the control FIFO the request ends at once and says so."""
    place = Place(tmp_path / "run", tmp_path / "logs", "ab" * 32)
    assert not reopen_log(place)
    place.bundle.mkdir(parents=True)
    os.mkfifo(place.control)
    assert not reopen_log(place)
