"""The progress of a transfer: a table that the work updates, and the ticker that writes what changed in it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import anyio

from pluginsvc.errors import first_leaf
from pluginsvc.model.progress import Line
from pluginsvc.tasks import every

Sink = Callable[[Line], Awaitable[None]]
INTERVAL: Final = 0.1
"""Seconds between two looks at the table (REF 4.4, 4.5)."""
_LAST_WORDS: Final = 5.0
"""Seconds that the last rows may take when the work has failed or was cancelled."""


class Row:
    """The progress of one item; made by ``Board.row``."""

    __slots__ = ("_changed", "_item", "_last", "_pending")

    def __init__(self, item: str, changed: dict[Row, None]) -> None:
        self._item, self._changed = item, changed
        self._pending: deque[Line] = deque()
        self._last: Line | None = None

    def set(self, status: str, current: int = 0, total: int = 0) -> None:
        """Say where the item stands; never waits.

        Each status is written once at least, in the order given; of the figures of one status the latest counts.

        Args:
            status: one of the words of REF 4.4 and 4.5.
            current: bytes done.
            total: bytes in all.
        """
        line = Line.step(status, self._item, current=current, total=total)
        if line == self._last:
            return
        if self._pending and self._pending[-1].status == status:
            self._pending.pop()
        self._pending.append(line)
        self._last = line
        self._changed[self] = None

    async def write_to(self, sink: Sink) -> None:
        """Write what waits now; a line that the sink did not take stays."""
        for _ in range(len(self._pending)):
            line = self._pending[0]
            await sink(line)
            # it may have been overtaken by newer figures meanwhile
            if self._pending[0] is line:
                self._pending.popleft()
        if not self._pending:
            del self._changed[self]


class Board:
    """The table of one transfer. Only the event loop's thread may touch it."""

    def __init__(self) -> None:
        self._changed: dict[Row, None] = {}

    def row(self, item: str) -> Row:
        """Add an item, by the ID that its lines carry."""
        return Row(item, self._changed)

    async def write_to(self, sink: Sink) -> None:
        """Write every row that changed, each in the order of its changes."""
        for row in list(self._changed):
            await row.write_to(sink)


@asynccontextmanager
async def report(board: Board, sink: Sink, *, interval: float = INTERVAL) -> AsyncIterator[None]:
    """Write the board's changes by the clock while the block runs, and the last row of every item when it ends.

    The ticker ends with the block, however that ends. What the block raises comes out alone, never in a group.

    Args:
        board: what the block updates.
        sink: takes the lines; what it raises ends the block.
        interval: seconds between two looks.
    """
    writing = anyio.Lock()

    async def tick() -> None:
        async for _ in every(interval):
            async with writing:
                await board.write_to(sink)

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(tick, name="progress")
            yield
            async with writing:  # a line under way is written once
                group.cancel_scope.cancel()
    except BaseException as exc:
        # of two failures the first is the one to tell, so that of the sink is not
        with anyio.move_on_after(_LAST_WORDS, shield=True), suppress(Exception):
            await board.write_to(sink)
        if isinstance(exc, BaseExceptionGroup):
            leaf = first_leaf(exc)
            raise leaf from leaf.__cause__
        raise
    await board.write_to(sink)
