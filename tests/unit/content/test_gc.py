"""Collection: what no root names goes; a pull that leases during a sweep loses nothing."""

from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from pluginsvc.content.gc import Collector, collect
from pluginsvc.content.ingest import StorageError
from pluginsvc.content.store import ContentStore
from pluginsvc.errors import Internal
from pluginsvc.model.digest import Digest

pytestmark = pytest.mark.anyio


class Leases:
    """Roots and removal as the daemon gives them: one lock stands for the database's transaction."""

    def __init__(self, store: ContentStore) -> None:
        self.store = store
        self.held: set[Digest] = set()
        self.transaction = anyio.Lock()
        self.removals = 0

    async def roots(self) -> set[Digest]:
        async with self.transaction:
            return set(self.held)

    async def remove(self, digest: Digest) -> int | None:
        self.removals += 1
        async with self.transaction:
            if digest in self.held:
                return None
            return await anyio.to_thread.run_sync(self.store.remove, digest)

    async def lease(self, digest: Digest) -> None:
        async with self.transaction:
            self.held.add(digest)


@pytest.fixture
def leases(store: ContentStore) -> Leases:
    return Leases(store)


async def test_collect(store: ContentStore, leases: Leases) -> None:
    """Blobs that no root names are deleted and counted; the others stay."""
    kept = await store.put(b"kept")
    gone = await store.put(b"gone!")
    leases.held.add(kept)
    report = await collect(store, roots=leases.roots, remove=leases.remove)
    assert (report.removed, report.bytes, report.kept) == ([gone], 5, 1)
    assert await store.digests() == [(kept, 4)]


async def test_dry_run(store: ContentStore, leases: Leases) -> None:
    """A dry run tells what would go and deletes nothing."""
    gone = await store.put(b"gone!")
    report = await collect(store, roots=leases.roots, remove=leases.remove, dry_run=True)
    assert (report.removed, report.bytes) == ([gone], 5)
    assert leases.removals == 0
    assert await store.size(gone) == 5


async def test_lease_during_the_sweep(store: ContentStore, leases: Leases) -> None:
    """A blob leased after the marking is asked for once more and kept."""
    digest = await store.put(b"wanted again")

    async def stale_roots() -> set[Digest]:
        marked = await leases.roots()
        await leases.lease(digest)
        return marked

    report = await collect(store, roots=stale_roots, remove=leases.remove)
    assert (report.removed, report.kept) == ([], 1)
    assert await store.size(digest) is not None


async def test_blob_that_comes_after_the_listing(store: ContentStore, leases: Leases) -> None:
    """A blob that is committed while roots are gathered is not touched, leased or not."""
    arrived: list[Digest] = []

    async def slow_roots() -> set[Digest]:
        arrived.append(await store.put(b"just arrived"))
        return set()

    report = await collect(store, roots=slow_roots, remove=leases.remove)
    assert report.removed == []
    assert await store.size(arrived[0]) is not None


async def test_pulls_and_sweeps_at_once(store: ContentStore, leases: Leases) -> None:
    """Pulls that lease, look, and store what is missing always have their blob afterwards, however sweeps fall."""
    kept = swept = 0

    async def pull(data: bytes) -> None:
        nonlocal kept
        digest = Digest.of(data)
        await leases.lease(digest)
        if await store.size(digest) is None:
            await store.put(data)
        else:
            kept += 1
        await checkpoint()
        assert await store.size(digest) is not None

    async def sweep() -> None:
        nonlocal swept
        while True:
            report = await collect(store, roots=leases.roots, remove=leases.remove)
            swept += len(report.removed)

    async with anyio.create_task_group() as group:
        group.start_soon(sweep)
        with anyio.fail_after(20):
            while not (kept > 4 and swept > 4):
                async with anyio.create_task_group() as pulls:
                    for number in range(3):
                        pulls.start_soon(pull, b"layer %d" % number)
                leases.held.clear()
        group.cancel_scope.cancel()


async def test_one_blob_cannot_be_deleted(store: ContentStore, leases: Leases) -> None:
    """A blob that cannot be deleted is reported and does not keep the others."""
    bad, good = sorted([await store.put(b"a"), await store.put(b"b")])

    async def remove(digest: Digest) -> int | None:
        if digest == bad:
            raise StorageError("delete it", OSError(5, "Input/output error"))
        return await leases.remove(digest)

    report = await collect(store, roots=leases.roots, remove=remove)
    assert (report.removed, report.failed) == ([good], [bad])


async def test_old_partials_go(store: ContentStore, leases: Leases, tmp_path: Path) -> None:
    """A collection also drops ingests that nobody can resume."""
    leftover = tmp_path / "content" / "ingest" / "0" / "data"
    leftover.parent.mkdir()
    leftover.write_bytes(b"x")
    await collect(store, roots=leases.roots, remove=leases.remove, dry_run=True)
    assert leftover.exists()
    await collect(store, roots=leases.roots, remove=leases.remove)
    assert not leftover.parent.exists()


class Gate:
    """Roots that count the runs and hold each until let go."""

    def __init__(self) -> None:
        self.runs = 0
        self.active = 0
        self.begun, self.let_go = anyio.Event(), anyio.Event()
        self.failure: Exception | None = None

    async def roots(self) -> set[Digest]:
        assert self.active == 0, "two collections at once"
        self.runs += 1
        self.active += 1
        self.begun.set()
        try:
            await self.let_go.wait()
        finally:
            self.active -= 1
        if self.failure:
            raise self.failure
        return set()

    async def next(self) -> None:
        """Let the run under way end, and wait until another begins."""
        self.begun, old = anyio.Event(), self.let_go
        self.let_go = anyio.Event()
        old.set()
        with anyio.fail_after(5):
            await self.begun.wait()


async def test_collector_runs_at_start_and_coalesces(store: ContentStore, leases: Leases) -> None:
    """Collections run at start and after triggers; many triggers during a run are one more run."""
    gate = Gate()
    collector = Collector(store, roots=gate.roots, remove=leases.remove)
    async with anyio.create_task_group() as group:
        await group.start(collector.serve)
        await gate.begun.wait()
        for _ in range(100):
            collector.trigger()
        await gate.next()
        assert gate.runs == 2
        gate.let_go.set()
        await anyio.wait_all_tasks_blocked()
        await collector.run_once()
        assert gate.runs == 3, "the hundred triggers were more than one run"
        group.cancel_scope.cancel()


async def test_collector_timer(store: ContentStore, leases: Leases) -> None:
    """Collections also run when nobody asks, every interval."""
    gate = Gate()
    gate.let_go.set()
    collector = Collector(store, roots=gate.roots, remove=leases.remove, interval=0.01)
    async with anyio.create_task_group() as group:
        await group.start(collector.serve)
        with anyio.fail_after(5):
            while gate.runs < 3:
                gate.begun = anyio.Event()
                await gate.begun.wait()
        group.cancel_scope.cancel()


async def test_collector_survives_failure(store: ContentStore, leases: Leases) -> None:
    """A collection that fails is tried again at the next trigger."""
    gate = Gate()
    gate.failure = Internal("no roots")
    collector = Collector(store, roots=gate.roots, remove=leases.remove)
    async with anyio.create_task_group() as group:
        await group.start(collector.serve)
        await gate.begun.wait()
        collector.trigger()
        await gate.next()
        assert gate.runs == 2
        group.cancel_scope.cancel()


async def test_one_collection_at_a_time(store: ContentStore, leases: Leases) -> None:
    """Collections on demand wait for each other."""
    gate = Gate()
    collector = Collector(store, roots=gate.roots, remove=leases.remove)
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(collector.run_once)
        await gate.begun.wait()
        await anyio.wait_all_tasks_blocked()
        assert gate.runs == 1
        gate.let_go.set()
    assert gate.runs == 3
