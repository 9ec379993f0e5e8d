"""What happens in directories."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from asyncinotify import Inotify, Mask, Watch

from pluginsvc.watches import Watches

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(20)]


@asynccontextmanager
async def served() -> AsyncIterator[Watches]:
    watches = Watches()
    async with anyio.create_task_group() as group:
        await group.start(watches.serve)
        yield watches
        group.cancel_scope.cancel()


async def test_removing_looks_at_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory is removed without a look at all that are watched: of thousands that would take minutes."""
    removed: list[Path] = []
    remove = Inotify.rm_watch

    def listed(_inotify: Inotify) -> list[Watch]:
        raise AssertionError("all watches are listed")

    def noted(inotify: Inotify, watch: Watch) -> None:
        removed.append(watch.path)
        remove(inotify, watch)

    monkeypatch.setattr(Inotify, "watches", property(listed))
    monkeypatch.setattr(Inotify, "rm_watch", noted)
    async with served() as watches:
        for number in range(3):
            (tmp_path / str(number)).mkdir()
            watches.add(tmp_path / str(number), Mask.CREATE, lambda _: None)
        watches.remove(tmp_path / "1")
        watches.remove(tmp_path / "never")
        assert removed == [tmp_path / "1"]
        assert set(watches._set) == {tmp_path / "0", tmp_path / "2"}


async def test_directory_that_was_made_again(tmp_path: Path) -> None:
    """After a directory has moved away and another has come, the other alone is watched, until it is removed."""
    heard: list[str] = []
    came = anyio.Event()
    there = tmp_path / "there"
    there.mkdir()

    def hear(name: Path | None) -> None:
        heard.append(str(name))
        came.set()

    async with served() as watches:
        watches.add(there, Mask.CREATE, hear)
        there.rename(tmp_path / "old")
        there.mkdir()
        watches.rearm(there)
        (tmp_path / "old" / "unheard").touch()
        (there / "heard").touch()
        await came.wait()
        assert heard == ["heard"]
        watches.remove(there)
        assert watches._set == {}
