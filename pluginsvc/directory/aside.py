"""Looks at files that may take for ever: a mount may hang, and a look with many names takes its time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, ParamSpec, TypeVar

import anyio

P = ParamSpec("P")
T = TypeVar("T")


class Aside:
    """Runs what only reads in threads of its own, for which nobody has to wait: not even the end of the process does.

    Args:
        most: threads at once. One that hangs counts as long as it does, also when nobody waits for it any more.
    """

    def __init__(self, most: int) -> None:
        self._slots = anyio.CapacityLimiter(most)

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what a function returns, or raise what it raises; it goes on when we are cancelled."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[T] = loop.create_future()
        slot = object()

        def settle(result: T | None, error: BaseException | None) -> None:
            self._slots.release_on_behalf_of(slot)
            if outcome.done():
                return
            if error is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(result)  # type: ignore[arg-type]  # without an error it is what was returned, None included

        def work() -> None:
            result, error = None, None
            try:
                result = function(*args, **kwargs)
            except BaseException as exc:  # noqa: BLE001 - raised where it is waited for
                error = exc
            # the loop is closed when a hung one comes back after the end
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(settle, result, error)

        await self._slots.acquire_on_behalf_of(slot)
        try:
            threading.Thread(target=work, name="pluginsvc aside", daemon=True).start()
        except BaseException:
            self._slots.release_on_behalf_of(slot)
            raise
        return await outcome


class Shared(Generic[T]):
    """Does something for all who want it: one at a time, and what each gets was begun after he asked.

    Args:
        do: what is done.
    """

    def __init__(self, do: Callable[[], Awaitable[T]]) -> None:
        self._do = do
        self._turn = anyio.Lock()
        self._begun = 0
        self._last: tuple[int, T] | None = None

    async def get(self) -> T:
        """Return what comes of it. Who is cancelled while he does it leaves it to the next, and so does who fails."""
        wanted = self._begun + 1
        async with self._turn:
            if self._last is None or self._last[0] < wanted:
                self._begun = number = self._begun + 1
                self._last = number, await self._do()
            return self._last[1]
