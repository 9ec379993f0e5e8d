"""The reporter: every status once at least and in order, only changes, by the clock, a last row always."""

import anyio
import pytest
from anyio.lowlevel import checkpoint

from pluginsvc.errors import Internal
from pluginsvc.model.progress import Line
from pluginsvc.transfer.progress import Board, report

pytestmark = pytest.mark.anyio
FAST = 0.005


class Sink:
    """Takes lines; can be waited for."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._more = anyio.Event()

    async def __call__(self, line: Line) -> None:
        await checkpoint()
        self.lines.append(line)
        self._more.set()

    async def wait_for(self, count: int) -> None:
        with anyio.fail_after(5):
            while len(self.lines) < count:
                self._more = anyio.Event()
                await self._more.wait()

    def statuses(self, item: str) -> list[str]:
        return [line.status for line in self.lines if line.id == item]


async def test_every_status_in_order() -> None:
    """Statuses that came and went between two looks are all written, in the order of their item."""
    board, sink = Board(), Sink()
    one, two = board.row("one"), board.row("two")
    async with report(board, sink):
        for status in ("Waiting", "Downloading", "Download complete"):
            one.set(status)
            two.set(status)
        one.set("Complete")
    assert sink.statuses("one") == ["Waiting", "Downloading", "Download complete", "Complete"]
    assert sink.statuses("two") == ["Waiting", "Downloading", "Download complete"]


async def test_latest_figures() -> None:
    """Of many figures between two looks only the latest is written."""
    board, sink = Board(), Sink()
    row = board.row("layer")
    async with report(board, sink):
        for count in range(1000):
            row.set("Downloading", count, 1000)
    assert sink.lines == [Line.step("Downloading", "layer", current=999, total=1000)]


async def test_only_changes() -> None:
    """A row that did not change is not written again, however often it is set and looked at."""
    board, sink = Board(), Sink()
    still, moving = board.row("still"), board.row("moving")
    still.set("Pushing", 1, 10)
    async with report(board, sink, interval=FAST):
        for count in range(1, 6):
            still.set("Pushing", 1, 10)
            moving.set("Pushing", count, 10)
            await sink.wait_for(1 + count)
    assert sink.statuses("still") == ["Pushing"]
    assert len(sink.statuses("moving")) == 5


async def test_written_while_the_work_runs() -> None:
    """Changes are written at the next tick, not when the work ends."""
    board, sink = Board(), Sink()
    async with report(board, sink, interval=FAST):
        board.row("layer").set("Waiting")
        await sink.wait_for(1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Give the reporter a clock that jumps to each deadline; the list holds the deadlines, the last is now."""
    deadlines = [0.0]

    async def sleep_until(deadline: float) -> None:
        await checkpoint()
        deadlines.append(max(deadline, deadlines[-1]))

    monkeypatch.setattr(anyio, "current_time", lambda: deadlines[-1])
    monkeypatch.setattr(anyio, "sleep_until", sleep_until)
    return deadlines


async def test_by_the_clock(clock: list[float]) -> None:
    """Ticks fall on multiples of the interval although writing takes time; what was missed is skipped."""
    board = Board()
    row = board.row("layer")
    looks: list[float] = []
    done = anyio.Event()

    async def slow(line: Line) -> None:
        looks.append(round(clock[-1], 3))
        clock.append(clock[-1] + (0.03 if len(looks) < 4 else 0.25))
        if len(looks) == 6:
            done.set()
            await anyio.sleep_forever()
        row.set("Downloading", len(looks), 100)

    row.set("Downloading", 0, 100)
    with anyio.CancelScope() as scope:
        async with report(board, slow, interval=0.1):
            await done.wait()
            clock[:] = [0.0]
            scope.cancel()
    assert looks[:6] == [0.1, 0.2, 0.3, 0.4, 0.7, 1.0]


async def test_last_row_after_failure() -> None:
    """When the work fails its last row is written all the same, and the error comes out as it was, in no group."""
    board, sink = Board(), Sink()

    async def work() -> None:
        async with report(board, sink), anyio.create_task_group() as group:
            board.row("layer").set("Downloading", 5, 10)

            async def fail() -> None:
                await checkpoint()
                raise Internal("broken") from OSError("why")

            group.start_soon(fail)
            await anyio.sleep_forever()

    with pytest.raises(Internal, match="broken") as caught:
        await work()
    assert isinstance(caught.value.__cause__, OSError)
    assert sink.statuses("layer") == ["Downloading"]


async def test_last_row_after_cancellation() -> None:
    """When the work is cancelled its last row is written all the same."""
    board, sink = Board(), Sink()
    with anyio.CancelScope() as scope:
        async with report(board, sink):
            board.row("layer").set("Downloading", 5, 10)
            scope.cancel()
            await checkpoint()
    assert scope.cancelled_caught
    assert sink.lines == [Line.step("Downloading", "layer", current=5, total=10)]


async def test_dies_with_its_work() -> None:
    """After the block nothing is written any more."""
    board, sink = Board(), Sink()
    row = board.row("layer")
    async with report(board, sink, interval=FAST):
        row.set("Pushing", 1, 2)
        await sink.wait_for(1)
    row.set("Pushing", 2, 2)
    with anyio.move_on_after(10 * FAST):
        await sink.wait_for(2)
    assert len(sink.lines) == 1


async def test_sink_gone() -> None:
    """A sink that fails ends the work with its error."""
    board = Board()

    async def gone(line: Line) -> None:
        await checkpoint()
        raise ConnectionResetError("client went away")

    async def work() -> None:
        async with report(board, gone, interval=FAST):
            board.row("layer").set("Waiting")
            await anyio.sleep_forever()

    with anyio.fail_after(5), pytest.raises(ConnectionResetError):
        await work()


async def test_sink_gone_hides_nothing() -> None:
    """A sink that fails while the last rows are written does not hide why the work failed."""
    board = Board()

    async def gone(line: Line) -> None:
        await checkpoint()
        raise ConnectionResetError("client went away")

    async def work() -> None:
        async with report(board, gone):
            board.row("layer").set("Waiting")
            raise Internal("broken")

    with pytest.raises(Internal, match="broken"):
        await work()


async def test_no_line_twice_at_the_end() -> None:
    """A block that ends while the sink is slow to take a line lets it, and does not write the line again."""
    board = Board()
    lines: list[Line] = []
    writing, go_on = anyio.Event(), anyio.Event()

    async def slow(line: Line) -> None:
        lines.append(line)
        writing.set()
        await go_on.wait()

    async with anyio.create_task_group() as group, report(board, slow, interval=FAST):
        board.row("layer").set("Waiting")
        await writing.wait()
        group.start_soon(_set_later, go_on)
    assert [line.status for line in lines] == ["Waiting"]


async def _set_later(event: anyio.Event) -> None:
    await anyio.wait_all_tasks_blocked()
    event.set()
