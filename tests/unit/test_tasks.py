"""Owned jobs with a commit point, locks by key, and the ticker."""

import asyncio

import anyio
import pytest
import structlog
from anyio.lowlevel import checkpoint

from pluginsvc.errors import Unavailable
from pluginsvc.tasks import Job, JobGroup, KeyedLock, ShuttingDown, every

pytestmark = pytest.mark.anyio


class Steps:
    """A job that stops where the test says: before its commit, inside it, and after it."""

    def __init__(self) -> None:
        self.trace: list[str] = []
        self.reached = {name: anyio.Event() for name in ("before", "inside", "after")}
        self.go_on = {name: anyio.Event() for name in ("before", "inside", "after")}

    async def _stop(self, name: str) -> None:
        self.reached[name].set()
        await self.go_on[name].wait()
        self.trace.append(name)

    async def __call__(self, job: Job) -> str:
        try:
            await self._stop("before")
            with job.commit():
                await self._stop("inside")
            await self._stop("after")
        except asyncio.CancelledError:
            self.trace.append("cancelled")
            raise
        return "result"

    async def until(self, name: str) -> None:
        """Let the job run into the stop ``name``."""
        for earlier in self.go_on:
            if earlier == name:
                break
            self.go_on[earlier].set()
        with anyio.fail_after(5):
            await self.reached[name].wait()

    def release(self) -> None:
        for event in self.go_on.values():
            event.set()


async def settle() -> None:
    for _ in range(10):
        await checkpoint()


async def test_result_and_error_reach_the_caller() -> None:
    """The caller gets what its job returns or raises; a failing job ends no sibling."""

    async def fails(job: Job) -> None:
        raise KeyError("mine")

    steps = Steps()
    async with JobGroup().opened() as jobs, anyio.create_task_group() as group:
        results: list[str] = []

        async def sibling() -> None:
            results.append(await jobs.run("sibling", steps))

        group.start_soon(sibling)
        await steps.until("before")
        with pytest.raises(KeyError, match="mine"):
            await jobs.run("fails", fails)
        steps.release()
    assert results == ["result"]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    ("moment", "trace"),
    [
        ("before", ["cancelled"]),
        ("inside", ["before", "inside", "after"]),
        ("after", ["before", "inside", "after"]),
    ],
)
async def test_caller_goes_away(moment: str, trace: list[str], *, native: bool) -> None:
    """A caller that goes away takes its job along before the commit, and only itself afterwards."""
    steps = Steps()
    async with JobGroup().opened() as jobs:
        scope = anyio.CancelScope()

        async def caller() -> None:
            with scope:
                await jobs.run("job", steps)

        task = asyncio.create_task(caller())
        await steps.until(moment)
        if native:
            task.cancel()
        else:
            scope.cancel()
        # the caller itself never waits for the job
        await asyncio.wait([task], timeout=5)
        assert task.done()
        await settle()
        steps.release()
        await settle()
        assert steps.trace == trace


async def test_failure_after_the_caller_left_is_logged() -> None:
    """A committed job that fails with nobody waiting leaves a line in the log."""

    async def fails(job: Job) -> None:
        with job.commit():
            await gate.wait()
        raise KeyError("late")

    gate = anyio.Event()
    with structlog.testing.capture_logs() as logs:
        async with JobGroup().opened() as jobs:
            task = asyncio.create_task(jobs.run("job", fails))
            await settle()
            task.cancel()
            await asyncio.wait([task])
            gate.set()
    assert [(line["event"], line["job"]) for line in logs] == [("job.failed_unwatched", "job")]


@pytest.mark.parametrize(
    ("moment", "trace", "outcome"),
    [
        ("before", ["cancelled"], None),
        ("inside", ["before", "inside", "after"], "result"),
        ("after", ["before", "inside", "after"], "result"),
    ],
)
async def test_shutdown(moment: str, trace: list[str], outcome: str | None) -> None:
    """Draining cancels what is not committed, and waits for what is, to its very end and with its result."""
    steps = Steps()
    async with JobGroup().opened() as jobs:
        task = asyncio.create_task(jobs.run("job", steps))
        await steps.until(moment)
        async with anyio.create_task_group() as group:
            group.start_soon(jobs.drain, 0)
            await settle()
            steps.release()
        if outcome is None:
            with pytest.raises(ShuttingDown) as caught:
                await task
            assert isinstance(caught.value, Unavailable)
        else:
            assert await task == outcome
        with pytest.raises(ShuttingDown):
            await jobs.run("late", steps)
    assert steps.trace == trace


async def test_drain_gives_jobs_their_grace() -> None:
    """Within the grace an uncommitted job may finish."""
    steps = Steps()
    async with JobGroup().opened() as jobs:
        task = asyncio.create_task(jobs.run("job", steps))
        await steps.until("before")
        async with anyio.create_task_group() as group:
            group.start_soon(jobs.drain, 5)
            await settle()
            steps.release()
        assert await task == "result"


async def test_cancelling_the_owner_spares_what_is_inside_its_commit() -> None:
    """When the task that owns the group is cancelled, a job inside its commit still finishes that."""
    steps = Steps()
    scope = anyio.CancelScope()
    opened = anyio.Event()
    owned: list[JobGroup] = []

    async def own() -> None:
        with scope:
            async with JobGroup().opened() as jobs:
                owned.append(jobs)
                opened.set()
                await anyio.sleep_forever()

    owner = asyncio.create_task(own())
    await opened.wait()
    caller = asyncio.create_task(owned[0].run("job", steps))
    await steps.until("inside")
    scope.cancel()
    await settle()
    steps.release()
    with anyio.fail_after(5):
        await owner
        with pytest.raises(ShuttingDown):
            await caller
    assert steps.trace == ["before", "inside", "cancelled"]


async def test_leaving_by_an_error_drains_too() -> None:
    """When the block fails, committed jobs are still finished before the error goes on."""
    steps = Steps()

    async def fail() -> None:
        async with JobGroup().opened() as jobs:
            tasks.append(asyncio.create_task(jobs.run("job", steps)))
            await steps.until("inside")
            asyncio.get_running_loop().call_soon(steps.release)
            raise KeyError

    tasks: list[asyncio.Task[str]] = []
    with pytest.raises(ExceptionGroup) as caught:
        await fail()
    assert caught.group_contains(KeyError)
    assert await tasks[0] == "result"
    assert steps.trace == ["before", "inside", "after"]


async def test_not_opened_takes_no_jobs() -> None:
    """A group that is not open refuses jobs."""
    with pytest.raises(ShuttingDown):
        await JobGroup().run("job", Steps())


async def test_keyed_lock_excludes_by_key_only() -> None:
    """Holders of one key take turns, holders of different keys do not wait, and nothing is kept afterwards."""
    lock = KeyedLock()
    inside: dict[str, int] = {"a": 0, "b": 0}
    most: dict[str, int] = {"a": 0, "b": 0}
    together = 0

    async def hold(key: str) -> None:
        nonlocal together
        async with lock(key):
            inside[key] += 1
            most[key] = max(most[key], inside[key])
            for _ in range(3):
                await checkpoint()
            together = max(together, sum(inside.values()))
            inside[key] -= 1

    async with anyio.create_task_group() as group:
        for number in range(10):
            group.start_soon(hold, "ab"[number % 2])
    assert most == {"a": 1, "b": 1}
    assert together == 2
    assert len(lock) == 0


async def test_keyed_lock_survives_cancellation_and_failure() -> None:
    """A waiter that is cancelled and a holder that fails leave the key free."""
    lock = KeyedLock()

    async def wait(scope: anyio.CancelScope) -> None:
        with scope:
            async with lock("k"):
                raise AssertionError

    async def fail() -> None:
        async with lock("k"):
            group.start_soon(wait, scope)
            await settle()
            scope.cancel()
            await settle()
            raise KeyError

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as group:
        with pytest.raises(KeyError):
            await fail()
    assert len(lock) == 0
    with anyio.fail_after(1):
        async with lock("k"):
            assert len(lock) == 1


async def test_every_keeps_to_the_clock() -> None:
    """Ticks come at multiples of the interval from the start; those that pass during slow work are skipped."""
    interval = 0.05
    start = anyio.current_time()
    ticks = []
    async for _ in every(interval):
        ticks.append((anyio.current_time() - start) / interval)
        if len(ticks) == 2:
            # busy for two and a half intervals: the next tick is the sixth, not a burst
            await anyio.sleep_until(start + 4.5 * interval)
        if len(ticks) == 4:
            break
    # uvloop's clock has whole milliseconds: a tick may seem to come that much too early
    assert [int(tick + 0.1) for tick in ticks] == [1, 2, 5, 6]


async def test_detached() -> None:
    """A detached job goes on without its caller, and ends with its group."""
    steps = Steps()

    async def detached(job: Job) -> None:
        job.detached = True
        await steps(Job("inner"))

    async with JobGroup().opened() as jobs:
        async with anyio.create_task_group() as group:
            group.start_soon(jobs.run, "detached", detached)
            await steps.until("before")
            group.cancel_scope.cancel()
        await settle()
        assert steps.trace == []
    assert steps.trace == ["cancelled"]
