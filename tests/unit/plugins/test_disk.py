"""The plugins' directories: what becomes of them when a plugin goes, and what a start clears away."""

from __future__ import annotations

from pathlib import Path

import pytest

from pluginsvc.plugins.disk import Disk
from tests.support.records import plugin_id

pytestmark = pytest.mark.anyio
ID = plugin_id(7)


@pytest.fixture
async def disk(tmp_path: Path) -> Disk:
    """Give the directories of a daemon without plugins."""
    found = Disk(tmp_path)
    await found.open()
    return found


def make(path: Path) -> Path:
    """Make a directory with something in it."""
    (path / "gen-1" / "rootfs").mkdir(parents=True)
    (path / "gen-1" / "rootfs" / "file").write_text("x")
    return path


@pytest.mark.parametrize("there", [True, False], ids=["plugin", "no-plugin"])
async def test_burying(disk: Disk, *, there: bool) -> None:
    """Whether or not there is a directory, nothing of the plugin is left, and nobody else gets its tombstone."""
    path = disk.plugin(ID)
    if there:
        make(path)
    tombstone = await disk.bury(ID)
    assert (tombstone is not None) == there
    assert not path.exists()
    assert await disk.bury(ID) is None
    if tombstone is not None:
        assert (tombstone / "gen-1" / "rootfs" / "file").exists()
        await disk.discard(tombstone)
    assert list(path.parent.iterdir()) == []


async def test_burying_leaves_the_others(disk: Disk) -> None:
    """Only the plugin itself goes, though another's ID differs in the last digit alone."""
    other = make(disk.plugin(plugin_id(8)))
    make(disk.plugin(ID))
    assert await disk.bury(ID) is not None
    assert (other / "gen-1" / "rootfs" / "file").exists()


async def test_sweep(disk: Disk) -> None:
    """A start clears staging, tombstones, unknown plugins and generations nobody names, and spares what it must."""
    known, unreadable = plugin_id(1), plugin_id(2)
    make(disk.plugin(known))
    make(disk.plugin(known).with_name("x")).joinpath("gen-1").rename(disk.plugin(known) / "gen-2")
    disk.propagated(known).mkdir()
    make(disk.plugin(unreadable))
    make(disk.plugin(plugin_id(3)))
    make(disk.plugin(plugin_id(4)).with_name(f"{plugin_id(4)}-removing"))
    staging = await disk.make_staging()
    await disk.sweep({known: 2, unreadable: None})
    assert not staging.exists()
    assert {path.name for path in disk.plugin(known).parent.iterdir()} == {known, unreadable}
    assert {path.name for path in disk.plugin(known).iterdir()} == {"gen-2", "propagated-mount"}
    assert disk.rootfs(unreadable, 1).exists()


async def test_adopting_replaces_what_a_crash_left(disk: Disk) -> None:
    """A generation that was moved into place before a crash, and never named, gives way to the next."""
    make(disk.plugin(ID))
    staging = await disk.make_staging()
    await disk.adopt(staging, ID, 1)
    assert list(disk.rootfs(ID, 1).iterdir()) == []
    assert not staging.exists()
