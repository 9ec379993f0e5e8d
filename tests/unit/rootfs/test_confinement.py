"""The confinement itself: what the child can reach, and that nothing of it stays."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from anyio import to_thread
from asyncinotify import Inotify, Mask

from pluginsvc.fsutil import mounts_below
from pluginsvc.rootfs import confine
from pluginsvc.rootfs.child import Child, ChildFailed, ConfinementFailed, UnpackFailed
from pluginsvc.rootfs.confinement import Confinement, NeedsRoot
from pluginsvc.rootfs.source import InvalidArchive
from tests.unit.rootfs.archives import END, body, member

pytestmark = [pytest.mark.anyio, pytest.mark.root]

PLUGIN = member(b"config.json", b"{}") + member(b"rootfs/f", b"data" * 1000) + END


def processes(pid: int) -> list[int]:
    """Return the process and all below it."""
    found = [pid]
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has ended
            for child in (thread / "children").read_text().split():
                found += processes(int(child))
    return found


def below_us() -> set[int]:
    return set(processes(os.getpid()))


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


async def gone(pids: list[int]) -> None:
    """Wait until the kernel has let go of each process."""
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        with open(fd, closefd=True), anyio.fail_after(10):
            await anyio.wait_readable(fd)


class Held:
    """A body that stops in the middle until it is let go, to look at the child at work."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.reached = anyio.Event()
        self.go = anyio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._data[:-1500]
        self.reached.set()
        await self.go.wait()
        yield self._data[-1500:]


async def at_work(staging: Path) -> int:
    """Return the process ID of the confined process that fills `staging`, once it does."""
    with anyio.fail_after(10), Inotify() as watch:
        watch.add_watch(staging, Mask.CREATE)
        if not any(staging.iterdir()):
            await watch.get()
    (inner,) = [
        pid
        for pid in below_us()
        if status(pid)["NSpid"].split()[-1:] == ["1"] and len(status(pid)["NSpid"].split()) == 2
    ]
    return inner


async def test_what_the_child_can_reach(tmp_path: Path) -> None:
    """At work it has its own namespaces, six capabilities, no way to gain more, staging as root, low priority."""
    staging = tmp_path / "staging"
    staging.mkdir()
    held = Held(PLUGIN)
    async with Confinement() as confinement:
        with (tmp_path / "blob").open("wb") as blob:
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: confinement.ingest(aiter(held), staging, blob.fileno(), level=1))
                await held.reached.wait()
                pid = await at_work(staging)
                facts = status(pid)
                kept = sum(1 << number for number in confine.KEPT)
                assert {facts[name] for name in ("CapEff", "CapPrm", "CapBnd")} == {f"{kept:016x}"}
                assert {facts[name] for name in ("CapInh", "CapAmb")} == {f"{0:016x}"}
                assert facts["NoNewPrivs"] == "1"
                assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)
                for name in ("mnt", "pid", "net", "ipc"):
                    assert os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
                assert os.readlink(f"/proc/{pid}/ns/user") == os.readlink("/proc/self/ns/user")
                assert Path(f"/proc/{pid}/root").samefile(staging)
                (mount,) = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
                assert {"nosuid", "nodev", "noexec"} <= set(mount.split()[5].split(","))
                directories = [fd for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_dir()]
                assert directories
                # none was opened in another mount namespace: from there `..` would lead out
                infos = [Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text().split() for fd in directories]
                assert {info[info.index("mnt_id:") + 1] for info in infos} == {mount.split()[0]}
                limits = Path(f"/proc/{pid}/limits").read_text()
                assert f"Max address space         {confine.MAX_MEMORY}" in limits
                assert "Max core file size        0 " in limits
                environment = Path(f"/proc/{pid}/environ").read_bytes()
                assert environment == b""
                held.go.set()


async def test_a_caller_that_goes_away_leaves_nothing(tmp_path: Path) -> None:
    """When the caller is cancelled in the middle, the child goes; at the end the spare does too."""
    staging = tmp_path / "staging"
    staging.mkdir()
    held = Held(PLUGIN)
    before = below_us()
    async with Confinement() as confinement:
        with (tmp_path / "blob").open("wb") as blob:
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: confinement.ingest(aiter(held), staging, blob.fileno(), level=1))
                await held.reached.wait()
                inner = await at_work(staging)
                group.cancel_scope.cancel()
            assert len(below_us() - before) == 1
            await gone([inner])
    assert below_us() == before
    assert await to_thread.run_sync(mounts_below, tmp_path) == []


async def test_a_body_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """An error of the body, as when the client is cut off, comes out as it is, and the child is gone."""

    async def cut() -> AsyncIterator[bytes]:
        yield PLUGIN[:700]
        raise ConnectionResetError("the client is gone")

    (tmp_path / "staging").mkdir()
    before = below_us()
    async with Confinement() as confinement:
        with (tmp_path / "blob").open("wb") as blob, pytest.raises(ConnectionResetError, match="gone"):
            await confinement.ingest(cut(), tmp_path / "staging", blob.fileno(), level=1)
    assert below_us() == before


@pytest.mark.parametrize("which", [0, 1], ids=["outer", "confined"])
async def test_a_child_that_is_killed(tmp_path: Path, which: int) -> None:
    """A child that dies at work is an error of its own kind, never the end of the data."""
    staging = tmp_path / "staging"
    staging.mkdir()
    held = Held(PLUGIN)
    async with Confinement() as confinement:
        with (tmp_path / "blob").open("wb") as blob:

            async def kill() -> None:
                await held.reached.wait()
                inner = await at_work(staging)
                outer = int(status(inner)["PPid"])
                os.kill((outer, inner)[which], signal.SIGKILL)

            async with anyio.create_task_group() as group:
                group.start_soon(kill)
                with pytest.raises(ChildFailed, match="without a result"):
                    await confinement.ingest(aiter(held), staging, blob.fileno(), level=1)


@pytest.fixture
def starter() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as found:
        yield found


async def test_each_job_has_a_fresh_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No child serves twice, a dead spare is replaced, and several jobs run side by side."""
    started: list[int] = []
    start = Child.start

    async def noted(starter: Executor) -> Child:
        child = await start(starter)
        started.append(child.pid)
        return child

    monkeypatch.setattr(Child, "start", noted)
    async with Confinement(limit=2) as confinement:
        os.kill(started[0], signal.SIGKILL)
        await gone(started)

        async def job(number: int) -> None:
            (tmp_path / f"s{number}").mkdir()
            with (tmp_path / f"b{number}").open("wb") as blob:
                await confinement.ingest(body(PLUGIN), tmp_path / f"s{number}", blob.fileno(), level=1)

        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(job, number)
        assert [(tmp_path / f"s{number}/f").stat().st_size for number in range(5)] == [4000] * 5
    assert len(started) == len(set(started)) >= 6
    await gone(started)


async def test_dies_with_the_daemon(tmp_path: Path) -> None:
    """When the daemon is killed with SIGKILL, its children at work and in reserve end."""
    script = textwrap.dedent(
        """
        import asyncio, os, sys
        from pathlib import Path
        from pluginsvc.rootfs.confinement import Confinement
        from tests.unit.rootfs.archives import member

        async def body():
            yield member(b"rootfs/f")
            await asyncio.sleep(3600)

        async def main():
            async with Confinement() as confinement:
                with open(sys.argv[1] + "/blob", "wb") as blob:
                    await confinement.ingest(body(), Path(sys.argv[1], "staging"), blob.fileno(), level=1)

        asyncio.run(main())
        """
    )
    staging = tmp_path / "staging"
    staging.mkdir()
    daemon = subprocess.Popen([sys.executable, "-c", script, tmp_path], cwd=Path(__file__).parents[3])
    try:
        await at_work(staging)
        below = processes(daemon.pid)[1:]
        assert len(below) == 3
    finally:
        daemon.kill()
        daemon.wait()
    await gone(below)


async def test_needs_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without root the error says so, and nothing is started."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    before = below_us()
    async with Confinement() as confinement:
        assert below_us() == before
        with pytest.raises(NeedsRoot, match="start it as root"):
            await confinement.ingest(body(b""), tmp_path, 1, level=1)
        with pytest.raises(NeedsRoot):
            async with confinement.unpack(tmp_path):
                pass


async def test_without_the_capability_to_confine(tmp_path: Path) -> None:
    """When the kernel refuses the namespaces, nothing is unpacked and the error says what is missing."""
    script = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from pluginsvc.rootfs import syscalls
        from pluginsvc.rootfs.child import ConfinementFailed
        from pluginsvc.rootfs.confinement import Confinement

        async def main():
            async with Confinement() as confinement:
                try:
                    async with confinement.unpack(Path(sys.argv[1])):
                        pass
                except ConfinementFailed as exc:
                    print(exc)

        syscalls.keep_capabilities([0, 1, 6, 7])
        asyncio.run(main())
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "CAP_SYS_ADMIN" in done.stdout, done.stderr
    assert ConfinementFailed.status == 500


async def test_a_missing_staging_directory(confinement: Confinement, tmp_path: Path) -> None:
    """A staging directory that is not there, or a link, is an error that names it."""
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("missing", "link"):
        with pytest.raises(UnpackFailed, match=name):
            async with confinement.unpack(tmp_path / name):
                pass


@pytest.mark.parametrize(
    "answer",
    [
        b"not json",
        b"[" * 30_000,
        b'{"result": 1}',
        b'{"error": "archive"}',
        b'{"progress": "x"}',
        b"[]",
        b"null",
        b"\xff",
    ],
)
async def test_a_child_that_talks_nonsense(starter: Executor, answer: bytes) -> None:
    """What a subverted child sends is checked for its form before anything is done with it."""
    child = await Child.start(starter)
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        child._control.close()
        child._control = ours
        theirs.send(answer)
        theirs.close()
        with pytest.raises(ChildFailed, match=r"cannot be understood|without a result"):
            await child.result()
    finally:
        await child.kill()


async def test_a_child_that_names_oddly(starter: Executor) -> None:
    """An error that a child reports keeps its text, however odd its other fields."""
    child = await Child.start(starter)
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        child._control.close()
        child._control = ours
        theirs.send(b'{"error": "archive", "reason": "bad", "entry": "zz", "offset": "x"}')
        theirs.close()
        with pytest.raises(InvalidArchive, match="bad"):
            await child.result()
    finally:
        await child.kill()
