"""Looks at mountpoints, also where a file system hangs."""

from __future__ import annotations

import threading
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from pluginsvc.directory import mountpoints
from pluginsvc.directory.mountpoints import Hangs, look
from pluginsvc.directory.provider import Scope
from tests.support.volume_driver import hanging

pytestmark = pytest.mark.anyio


@pytest.fixture
def scope(tmp_path: Path) -> Scope:
    """Give a plugin's directories."""
    found = Scope(tmp_path / "rootfs", "/mnt", tmp_path / "propagated-mount")
    for path in (found.rootfs, found.propagated / "v", found.propagated / "w"):
        path.mkdir(parents=True)
    return found


class Slow:
    """Makes looks wait.

    Attributes:
        begun, begins: how many looks have.
        go_on: lets them.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.begins, self.go_on = 0, threading.Semaphore(0), threading.Event()
        run = mountpoints._Look._look

        def slow(look: mountpoints._Look) -> None:
            self.begun += 1
            self.begins.release()
            self.go_on.wait(20)
            run(look)

        monkeypatch.setattr(mountpoints._Look, "_look", slow)


def lookers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mountpoints"]


async def gone() -> None:
    """Wait until no thread looks."""
    for thread in lookers():
        await to_thread.run_sync(thread.join, 20)
    assert not lookers()


@pytest.mark.root
async def test_a_file_system_that_hangs(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it is asked, a file system that hangs costs one thread, which the process ends without."""
    monkeypatch.setattr(mountpoints, "_LOOK", 0.1)
    with hanging(scope.propagated / "v"):
        for path in ("/mnt/v/data", "/mnt/w", "/mnt/w"):
            with pytest.raises(Hangs) as failed:
                await look(scope, [path])
            assert failed.value.path == scope.propagated / "v" / "data"
        (thread,) = lookers()
        assert thread.daemon
        # its own root need not be asked
        other = Scope(scope.rootfs, "/other", scope.propagated.parent / "other", (("/x", scope.propagated),))
        assert (await look(other, ["/x/v"]))[0].directory
    await gone()
    monkeypatch.setattr(mountpoints, "_LOOK", 20.0)
    assert [place.path for place in await look(scope, ["/mnt/w", ""])] == [str(scope.propagated / "w"), ""]


async def test_who_asks_goes_away(scope: Scope, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that is slow, and whose caller has gone away, is waited for by the next, and not held against it."""
    slow = Slow(monkeypatch)
    found = []

    async def other() -> None:
        found.extend(await look(scope, ["/mnt/w"]))

    async with anyio.create_task_group() as first:
        first.start_soon(look, scope, ["/mnt/v"])
        await anyio.wait_all_tasks_blocked()
        first.cancel_scope.cancel()
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(other)
        await anyio.wait_all_tasks_blocked()
        assert (slow.begun, len(lookers())) == (1, 1)
        slow.go_on.set()
    assert {place.path for place in found} == {str(scope.propagated / "w")}
    assert slow.begun == 4
    await gone()
    assert not mountpoints._going


async def test_other_plugins(scope: Scope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One plugin's file system does not keep another from its own."""
    slow = Slow(monkeypatch)
    async with anyio.create_task_group() as group:
        group.start_soon(look, scope, ["/mnt/v"])
        group.start_soon(look, Scope(scope.rootfs, "/mnt", tmp_path / "other"), ["/mnt/v"])
        await anyio.wait_all_tasks_blocked()
        for _ in range(2):
            assert await to_thread.run_sync(slow.begins.acquire, True, 20)
        slow.go_on.set()
    await gone()


async def test_a_directory_that_cannot_be_looked_at(scope: Scope, tmp_path: Path) -> None:
    """A plugin whose own directories cannot be followed has no place on the host, and says why."""
    (tmp_path / "loop").symlink_to("loop")
    broken = Scope(tmp_path / "loop", "/mnt", scope.propagated)
    (place,) = await look(broken, ["/mnt/v"])
    assert (place.path, "cannot be looked at" in place.trouble) == ("", True)
