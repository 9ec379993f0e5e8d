"""The ledger of mounts, with real mounts and a real database."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import anyio
import msgspec
import pytest
from anyio import to_thread

from pluginsvc.fsutil import boot_id
from pluginsvc.plugins import mounts as ledgers
from pluginsvc.plugins.disk import Disk, DiskTrouble
from pluginsvc.plugins.mounts import Ledger
from pluginsvc.rootfs import mounts, syscalls
from pluginsvc.state import mounts as rows
from pluginsvc.state import plugin_leases, plugins
from pluginsvc.state.database import Database
from pluginsvc.state.mounts import MountRow
from pluginsvc.tasks import every
from tests.support.records import plugin_id, record

pytestmark = [pytest.mark.anyio, pytest.mark.root]
ID = plugin_id(1)


def points(path: Path) -> list[str]:
    """Return the mount points at or below a path, the deepest first."""
    table = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((point for point in table if f"{point}/".startswith(f"{path}/")), key=len, reverse=True)


@dataclass
class Bench:
    """A ledger, and what is around it."""

    top: Path
    database: Database
    disk: Disk
    ledger: Ledger

    @property
    def point(self) -> Path:
        return self.disk.propagated(ID)

    def mounted(self) -> list[str]:
        """Return what is mounted below the plugin's directory, relative to it, the deepest first."""
        return [os.path.relpath(point, self.disk.plugin(ID)) for point in points(self.disk.plugin(ID))]

    def volume(self, name: str = "volume", *, bare: bool = False) -> Path:
        """Mount what a plugin would, below the propagated mount or, with ``bare``, beside it."""
        path = (self.disk.plugin(ID) if bare else self.point) / name
        path.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
        return path

    async def row(self) -> MountRow:
        (found,) = await self.ledger.rows()
        return found

    async def hold(self, holder: str = "web", *, expires_ns: int | None = None) -> None:
        now = time.time_ns()
        await self.database.write(
            lambda db: plugin_leases.acquire(db, ID, holder, "volume a", now_ns=now, expires_ns=expires_ns)
        )

    async def let_go(self, holder: str = "web") -> None:
        await self.database.write(lambda db: plugin_leases.release(db, ID, holder))
        self.ledger.wake()

    async def until(self, met: Callable[[list[MountRow]], bool]) -> None:
        """Wait until the rows are as wanted."""
        with anyio.fail_after(10):
            async for _ in every(0.01):
                if met(await self.ledger.rows()):
                    return


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Give a ledger and one disabled plugin; afterwards nothing is mounted."""
    await to_thread.run_sync(boot_id)
    database = await Database.open(tmp_path / "state.db")
    disk = Disk(tmp_path / "root")
    await disk.open()
    await database.write(lambda db: plugins.put(db, record(1)))
    disk.plugin(ID).mkdir()
    try:
        yield Bench(tmp_path, database, disk, Ledger(database, disk))
    finally:
        await database.close()
        await to_thread.run_sync(lambda: mounts.unmount_below(tmp_path, lazy=True))


async def test_made_and_cleared(bench: Bench) -> None:
    """A mount is in the ledger with its number while it is there, and with it goes what is mounted below it."""
    assert await bench.ledger.make(ID) == bench.point
    row = await bench.row()
    (mount,) = await to_thread.run_sync(mounts.below, bench.point)
    assert (row.path, row.plugin_id, row.mount_id, row.boot) == (str(bench.point), ID, mount.id, boot_id())
    assert row.trouble == ""
    bench.volume()
    bench.volume()
    bench.volume("other\udcff", bare=True)
    await bench.hold()
    await bench.ledger.clear(ID)
    assert len(await bench.ledger.rows()) == 2
    await bench.let_go()
    await bench.ledger.clear(ID)
    assert bench.mounted() == []
    assert await bench.ledger.rows() == []


async def test_what_hides_others_goes_first(bench: Bench) -> None:
    """Mounts that lie over others, volumes or the whole directory, leave none of them behind."""
    await bench.ledger.make(ID)
    bench.volume()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", bench.point], check=True)
    bench.volume()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", bench.disk.plugin(ID)], check=True)
    assert len(bench.mounted()) == 5
    await bench.ledger.clear(ID)
    assert bench.mounted() == []
    assert await bench.ledger.rows() == []


async def test_made_again_as_it_is(bench: Bench) -> None:
    """A mount that is still there, as after a crash of the plugin, is taken over with what is mounted below."""
    await bench.ledger.make(ID)
    before = await bench.row()
    bench.volume()
    await bench.ledger.make(ID)
    assert await bench.row() == before
    assert bench.mounted() == ["propagated-mount/volume", "propagated-mount"]


async def test_intent_comes_first(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment of mounting a row tells of it; a mount that is refused leaves none."""
    seen: list[list[MountRow]] = []
    make_propagated = bench.disk.make_propagated

    async def watched(plugin: str) -> Path:
        seen.append(await bench.ledger.rows())
        return await make_propagated(plugin)

    monkeypatch.setattr(bench.disk, "make_propagated", watched)
    bench.disk.plugin(ID).rmdir()
    with pytest.raises(DiskTrouble):
        await bench.ledger.make(ID)
    assert await bench.ledger.rows() == []
    bench.disk.plugin(ID).mkdir()
    await bench.ledger.make(ID)
    assert [[row.mount_id for row in found] for found in seen] == [[0], [0]]


async def test_busy_goes_lazily(bench: Bench) -> None:
    """What nobody holds and somebody has open is detached: gone from the host, and whole for who has it open."""
    await bench.ledger.make(ID)
    with (bench.volume() / "file").open("w+") as file:
        await bench.ledger.clear(ID)
        assert bench.mounted() == []
        assert await bench.ledger.rows() == []
        file.write("still here")
        file.flush()


async def test_held_stays_until_the_last_release(bench: Bench) -> None:
    """What is held is not unmounted, open or not, and says by whom; it goes when the last holder lets go."""
    await bench.ledger.make(ID)
    volume = bench.volume()
    await bench.hold("web")
    await bench.hold("db")
    async with anyio.create_task_group() as group:
        group.start_soon(bench.ledger.serve)
        await bench.ledger.clear(ID)
        assert (await bench.row()).trouble == "held by web (volume a), db (volume a)"
        await bench.let_go("web")
        await bench.until(lambda found: found[0].trouble == "held by db (volume a)")
        (volume / "file").write_text("usable")
        started = anyio.current_time()
        await bench.let_go("db")
        await bench.until(lambda found: not found)
        assert bench.mounted() == []
        # at once, and not with the next pause
        assert anyio.current_time() - started < 0.4
        group.cancel_scope.cancel()


async def test_held_goes_when_the_lease_ends(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a lease's time is as good as its release, long before a pause is over."""
    monkeypatch.setattr(ledgers, "_FIRST_PAUSE", 60.0)
    await bench.ledger.make(ID)
    await bench.hold(expires_ns=time.time_ns() + 300_000_000)
    await bench.ledger.clear(ID)
    assert bench.mounted() == ["propagated-mount"]
    async with anyio.create_task_group() as group:
        group.start_soon(bench.ledger.serve)
        await bench.until(lambda found: not found)
        group.cancel_scope.cancel()
    assert bench.mounted() == []


async def test_held_and_wanted_again(bench: Bench) -> None:
    """A plugin that is enabled again before its holders let go keeps its mounts when they do."""
    await bench.ledger.make(ID)
    bench.volume()
    await bench.hold()
    await bench.ledger.clear(ID)
    await bench.ledger.make(ID)
    assert (await bench.row()).trouble == ""
    async with anyio.create_task_group() as group:
        group.start_soon(bench.ledger.serve)
        await bench.let_go()
        # another plugin's mount that does go shows that the release was looked at
        await bench.database.write(lambda db: plugins.put(db, record(2)))
        bench.disk.plugin(plugin_id(2)).mkdir()
        await bench.ledger.make(plugin_id(2))
        await bench.database.write(lambda db: _doom(db, plugin_id(2)))
        bench.ledger.wake()
        await bench.until(lambda found: len(found) == 1)
        group.cancel_scope.cancel()
    assert bench.mounted() == ["propagated-mount/volume", "propagated-mount"]


def _doom(db: sqlite3.Connection, plugin: str) -> None:
    for row in rows.load(db, plugin):
        rows.put(db, msgspec.structs.replace(row, trouble="still mounted"))


async def test_force_minds_no_holder(bench: Bench) -> None:
    """A forced removal unmounts what is held and open, and leaves the directory free to be deleted."""
    await bench.ledger.make(ID)
    await bench.hold()
    with (bench.volume() / "file").open("w"):
        tombstone = await bench.ledger.bury(ID)
        assert tombstone is not None
        await bench.disk.discard(tombstone)
        assert not tombstone.exists()
    assert points(bench.top) == []
    assert await bench.ledger.rows() == []


async def test_refused_is_retried_and_then_deleted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel refuses stays in the ledger with the reason, in its place, and goes with all else once it can."""
    umount2 = syscalls.umount2
    tries: list[float] = []
    refuse = True

    def refusing(target: bytes, flags: int) -> None:
        if refuse:
            tries.append(time.monotonic())
            raise OSError(1, "Operation not permitted")
        umount2(target, flags)

    def pauses() -> list[float]:
        return [later - earlier for earlier, later in pairwise(tries) if later - earlier > 0.3]

    await bench.ledger.make(ID)
    monkeypatch.setattr(syscalls, "umount2", refusing)
    await bench.database.write(lambda db: plugins.delete(db, ID))
    assert await bench.ledger.bury(ID) is None
    row = await bench.row()
    assert "Operation not permitted" in row.trouble
    assert bench.mounted() == ["propagated-mount"]
    async with anyio.create_task_group() as group:
        group.start_soon(bench.ledger.serve)
        await bench.until(lambda _: len(pauses()) >= 2)
        refuse = False
        await bench.until(lambda found: not found)
        await bench.until(lambda _: not list(bench.disk.plugin(ID).parent.iterdir()))
        group.cancel_scope.cancel()
    assert points(bench.top) == []
    assert pauses()[1] > 1.5 * pauses()[0] > 0.6


async def test_another_mount_in_its_place_is_left_alone(bench: Bench) -> None:
    """When ours is gone and something else is mounted there, be it with its number, a retry touches nothing."""
    await bench.ledger.make(ID)
    await bench.hold()
    await bench.ledger.clear(ID)
    await to_thread.run_sync(mounts.unmount, bench.point)
    subprocess.run(["mount", "-t", "tmpfs", "foreign", bench.point], check=True)
    (foreign,) = await to_thread.run_sync(mounts.below, bench.point)
    # as happens by itself if nothing else was mounted in between
    row = msgspec.structs.replace(await bench.row(), mount_id=foreign.id)
    await bench.database.write(lambda db: rows.put(db, row))
    async with anyio.create_task_group() as group:
        group.start_soon(bench.ledger.serve)
        await bench.let_go()
        await bench.until(lambda found: not found)
        group.cancel_scope.cancel()
    assert bench.mounted() == ["propagated-mount"]


async def test_the_record_outlives_an_unreadable_one(bench: Bench) -> None:
    """A retry deletes no directory of a plugin whose record is there, though nobody can read it."""
    await bench.ledger.make(ID)
    await bench.hold()
    await bench.ledger.clear(ID)
    await bench.database.write(lambda db: db.execute("UPDATE plugins SET record = x'00'"))
    async with anyio.create_task_group() as group:
        group.start_soon(bench.ledger.serve)
        await bench.let_go()
        await bench.until(lambda found: not found)
        group.cancel_scope.cancel()
    assert bench.point.exists()


async def test_restore(bench: Bench) -> None:
    """A start keeps the rows that are true, forgets those whose mount is gone, and trusts none of another boot."""
    for number in (2, 3, 4):
        await bench.database.write(lambda db, of=number: plugins.put(db, record(of)))  # type: ignore[misc]  # no inference for defaults
        bench.disk.plugin(plugin_id(number)).mkdir()
    for number in (1, 2, 3):
        await bench.ledger.make(plugin_id(number))
    await bench.hold()
    await bench.ledger.clear(ID)
    held, gone, old = await bench.ledger.rows()
    intent = msgspec.structs.replace(held, path=str(bench.disk.propagated(plugin_id(4))), plugin_id=plugin_id(4))
    await to_thread.run_sync(mounts.unmount, Path(gone.path))
    changed = [
        msgspec.structs.replace(old, boot="another", trouble="held by web", since_ns=1),
        msgspec.structs.replace(intent, mount_id=0, trouble=""),
    ]
    await bench.database.write(lambda db: rows.replace(db, [old], changed))
    after = Ledger(bench.database, bench.disk)
    await after.restore([plugin_id(number) for number in (1, 2, 3, 4)])
    kept, taken = await after.rows()
    assert kept == held
    assert (taken.path, taken.boot, taken.trouble) == (old.path, boot_id(), "")
    assert taken.since_ns > 1


async def test_restore_takes_over_what_no_row_knows_of(bench: Bench) -> None:
    """A crash between the mount and its number, or a daemon that kept no ledger, leaves a mount that gets a row."""
    await bench.disk.make_propagated(ID)
    for left in ([], [msgspec.structs.replace(_row(bench), mount_id=0)]):
        await bench.database.write(lambda db, new=left: rows.replace(db, [], new))  # type: ignore[misc]  # no inference for defaults
        await bench.ledger.restore([ID])
        (mount,) = await to_thread.run_sync(mounts.below, bench.point)
        row = await bench.row()
        assert (row.mount_id, row.trouble) == (mount.id, "")


def _row(bench: Bench) -> MountRow:
    return MountRow(path=str(bench.point), plugin_id=ID, mount_id=1, source="", boot=boot_id(), since_ns=1)


async def test_restore_clears_after_plugins_that_are_gone(bench: Bench) -> None:
    """A crash between the removal of a record and the unmount leaves nothing mounted after the next start."""
    await bench.ledger.make(ID)
    bench.volume()
    await bench.database.write(lambda db: plugins.delete(db, ID))
    await bench.ledger.restore([])
    assert bench.mounted() == []
    assert await bench.ledger.rows() == []


async def test_a_database_that_fails_keeps_no_mount(bench: Bench) -> None:
    """Clearing by force needs no database: what cannot be written down is logged, and the mount goes all the same."""
    await bench.ledger.make(ID)
    await bench.database.close()
    await bench.ledger.clear(ID, force=True)
    assert bench.mounted() == []
