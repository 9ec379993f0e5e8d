"""Owned jobs, locks by key, and a ticker that keeps to the clock (anchors §3)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import anyio
import anyio.abc
import structlog

from pluginsvc.errors import Unavailable

T = TypeVar("T")
_log = structlog.get_logger()


class ShuttingDown(Unavailable):
    """The daemon is stopping and takes no more work."""

    def __init__(self) -> None:
        super().__init__("the daemon is shutting down: try again when it is back")


class Job:
    """One mutation under way, with its commit point (design D8).

    Attributes:
        name: what it does, for the log.
        committed: whether the point of no return is passed.
        detached: whether it goes on without its caller, for as long as jobs may.
        scope, done, error: for the group that runs it.
    """

    __slots__ = ("committed", "detached", "done", "error", "name", "scope")

    def __init__(self, name: str) -> None:
        self.name = name
        self.committed = False
        self.detached = False
        self.scope = anyio.CancelScope()
        self.done = anyio.Event()
        self.error: BaseException | None = None

    @contextmanager
    def commit(self) -> Iterator[None]:
        """Mark the point of no return and run the block shielded from cancellation."""
        self.committed = True
        with anyio.CancelScope(shield=True):
            yield


class JobGroup:
    """Runs jobs in a task group of its own, so that a caller who goes away does not take them along.

    Open it with ``async with``; leaving waits for what is committed and cancels the rest.
    """

    def __init__(self) -> None:
        self._group: anyio.abc.TaskGroup | None = None
        self._jobs: set[Job] = set()
        self._closing = False

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[JobGroup]:
        """Own the jobs that are started inside the block; on the way out ``drain`` them at once."""
        async with anyio.create_task_group() as group:
            self._group = group
            try:
                yield self
            finally:
                with anyio.CancelScope(shield=True):
                    await self.drain(0)

    async def run(self, name: str, work: Callable[[Job], Awaitable[T]]) -> T:
        """Run ``work`` to its end and return its result.

        A caller that is cancelled cancels the job, unless the job has committed or is detached.

        Args:
            name: for the log.
            work: gets its ``Job``, to mark the commit.

        Raises:
            ShuttingDown: no new jobs are taken.
            BaseException: whatever ``work`` raises.
        """
        if self._group is None or self._closing:
            raise ShuttingDown
        job = Job(name)
        result: list[T] = []

        async def body() -> None:
            try:
                with job.scope:
                    result.append(await work(job))
            except Exception as exc:  # noqa: BLE001 - a job keeps its own outcome: it must not end its siblings
                job.error = exc
                if waiters_gone:
                    _log.warning("job.failed_unwatched", job=name, error=str(exc))
            finally:
                self._jobs.discard(job)
                job.done.set()

        waiters_gone = False
        self._jobs.add(job)
        self._group.start_soon(body, name=name)
        try:
            await job.done.wait()
        except BaseException:
            waiters_gone = True
            if not (job.committed or job.detached):
                job.scope.cancel()
            raise
        if job.error is not None:
            raise job.error
        if not result:
            raise ShuttingDown
        return result[0]

    async def drain(self, grace: float) -> None:
        """Take no new jobs, wait up to ``grace`` seconds for those under way, then cancel the uncommitted."""
        self._closing = True
        with anyio.move_on_after(grace):
            for job in list(self._jobs):
                await job.done.wait()
        for job in list(self._jobs):
            if not job.committed:
                job.scope.cancel()
        for job in list(self._jobs):
            await job.done.wait()


class KeyedLock:
    """One lock per key, kept only while somebody holds or waits for it (design D9)."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, tuple[anyio.Lock, int]] = {}

    @asynccontextmanager
    async def __call__(self, key: Hashable) -> AsyncIterator[None]:
        """Hold the lock of ``key`` inside the block."""
        lock, users = self._locks.get(key, (anyio.Lock(), 0))
        self._locks[key] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = lock, users - 1

    def __len__(self) -> int:
        return len(self._locks)


async def every(interval: float) -> AsyncIterator[None]:
    """Yield once per ``interval`` seconds, by the clock: slow work between two ticks does not shift the next.

    Ticks that passed while the consumer was busy are skipped, not caught up.
    """
    start = anyio.current_time()
    number = 0
    while True:
        number = max(number + 1, int((anyio.current_time() - start) / interval) + 1)
        await anyio.sleep_until(start + number * interval)
        yield
