"""A plugin's output from its log files."""

import datetime as dt
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluginsvc.model.output import Stream, Wanted
from pluginsvc.runtime.history import History, Piece, follow, piece_of

START = 1_790_000_000_000_000_000


def record(text: bytes, at_ns: int = START, stream: str = "stdout", flag: str = "F", offset: int = 0) -> bytes:
    seconds, rest = divmod(at_ns, 10**9)
    zone = dt.timezone(dt.timedelta(hours=offset))
    clock = dt.datetime.fromtimestamp(seconds, zone).isoformat()
    return f"{clock[:19]}.{rest:09}{clock[19:]} {stream} {flag} ".encode() + text + b"\n"


def raw(_at_ns: int, _stream: Stream, data: bytes) -> bytes:
    return data


def full(at_ns: int, stream: Stream, data: bytes) -> bytes:
    return b"%d %s " % (at_ns - START, stream.encode()) + data


def drain(history: History) -> bytes:
    found = b""
    while True:
        found += history.read()
        if not history.more:
            return found


class Log:
    """A plugin's log files, written as conmon and the forwarder do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[bytes] = []

    def print(self, *texts: str, at_ns: int | None = None, stream: str = "stdout", flag: str = "F") -> None:
        with (self.folder / "plugin.log").open("ab") as file:
            for text in texts:
                file.write(record(text.encode(), at_ns or START + len(self.lines), stream, flag))
                self.lines.append(text.encode() + (b"\n" if flag == "F" else b""))

    def rotate(self, count: int = 3) -> None:
        for number in range(count - 1, 0, -1):
            newer = self.folder / (f"plugin.log.{number - 1}" if number > 1 else "plugin.log")
            if newer.exists():
                newer.rename(self.folder / f"plugin.log.{number}")
        (self.folder / "plugin.log").touch()

    def read(self, **wanted: Any) -> bytes:
        return drain(History(self.folder, Wanted(**wanted), raw))


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (record(b"a  b "), Piece(START, "stdout", b"a  b \n")),
        (record(b"\xff\x1b[2J\r", START + 7, "stderr"), Piece(START + 7, "stderr", b"\xff\x1b[2J\r\n")),
        (record(b"be", flag="P"), Piece(START, "stdout", b"be")),
        (record(b"east", offset=2), Piece(START, "stdout", b"east\n")),
        (record(b"", offset=-7), Piece(START, "stdout", b"\n")),
        (record(b"").rstrip() + b"\n", Piece(START, "stdout", b"\n")),
        (b"garbage\n", None),
        (b"2026-99-22T14:50:20.126316140+00:00 stdout F x\n", None),
        (b"2026-11-22T14:50:20.126316140+00:00 stdlog F x\n", None),
        (b"2026-11-22T14:50:20.126316140+00:00 stdout Q x\n", None),
        (b"\n", None),
    ],
)
def test_lines_of_conmon_are_read(line: bytes, expected: Piece | None) -> None:
    """Time, whatever its offset, stream and bytes of a line come out as they went in; what is no line is nothing."""
    assert piece_of(line[:-1]) == expected


@given(st.binary())
def test_any_line_is_read_or_not(line: bytes) -> None:
    """No bytes make it fail."""
    piece_of(line)
    piece_of(record(b"")[:35] + line)


def test_all_files_oldest_first(log: Log) -> None:
    """The past is told in order over all files, pieces and bytes as they are."""
    log.print("1", "2")
    log.rotate()
    log.print("3", flag="P")
    log.print("e", stream="stderr")
    log.rotate()
    log.print("4")
    assert log.read() == b"1\n2\n3e\n4\n"
    assert drain(History(log.folder, Wanted(), full)).splitlines()[-1] == b"4 stdout 4"
    assert log.read(stdout=False) == b"e\n"
    assert log.read(stderr=False) == b"1\n2\n34\n"


def test_bounds_are_included(log: Log) -> None:
    """``since`` and ``until`` are the first and the last moment, to the nanosecond."""
    log.print(*map(str, range(10)))
    assert log.read(since_ns=START + 3, until_ns=START + 5) == b"3\n4\n5\n"
    assert log.read(since_ns=START + 9) == b"9\n"
    assert log.read(since_ns=START + 10) == b""
    assert log.read(until_ns=START) == b"0\n"


def test_much_that_is_too_old_is_passed_over(log: Log) -> None:
    """Blocks before ``since`` are read and not looked at, and nothing after it is missed."""
    log.print(*(f"line {number:050}" for number in range(6000)))
    assert log.read(since_ns=START + 5500).count(b"\n") == 500
    history = History(log.folder, Wanted(until_ns=START + 10), raw)
    assert history.read().count(b"\n") == 11
    assert history.ended


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    tail=st.integers(0, 100),
    since=st.integers(0, 100),
    until=st.integers(0, 130),
    stdout=st.booleans(),
    width=st.sampled_from([1, 5000]),
)
def test_tail_is_the_end_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    tail: int,
    since: int,
    until: int,
    width: int,
    *,
    stdout: bool,
) -> None:
    """The last lines are the last of those between the bounds on the wanted streams, over all files and blocks."""
    log = Log(tmp_path_factory.mktemp("logs"))
    for size in sizes:
        for _ in range(size):
            number = len(log.lines)
            log.print(f"{number}".ljust(width), stream="stderr" if number % 3 else "stdout")
        log.rotate()
    bounds = {"since_ns": START + since, "until_ns": START + until, "stdout": stdout}
    lines = log.read(**bounds).splitlines()
    assert log.read(**bounds, tail=tail).splitlines() == lines[max(0, len(lines) - tail) :]


def test_short_tail_reads_little(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last lines of large files are found from the end."""
    log.print(*("x" * 100 for _ in range(20_000)), "last")
    read = 0
    real = History.__init__.__globals__["os"].pread

    def counting(fd: int, size: int, offset: int) -> bytes:
        nonlocal read
        data: bytes = real(fd, size, offset)
        read += len(data)
        return data

    monkeypatch.setattr("os.pread", counting)
    assert log.read(tail=1) == b"last\n"
    assert read < 1_000_000


@settings(max_examples=80, deadline=None)
@given(steps=st.lists(st.sampled_from(["print", "rotate", "read", "cut"]), max_size=40))
def test_reading_on_misses_nothing(tmp_path_factory: pytest.TempPathFactory, steps: list[str]) -> None:
    """However files grow and are renamed between two reads, each line comes once, in order, or its loss is told."""
    log = Log(tmp_path_factory.mktemp("logs"))
    log.print("first")
    history = History(log.folder, Wanted(), raw)
    found = drain(history)
    for number, step in enumerate(steps):
        if step == "print":
            log.print(f"line {number}")
        elif step == "rotate":
            # a file is renamed because it is large
            if (log.folder / "plugin.log").stat().st_size:
                log.rotate()
        elif step == "cut":
            with (log.folder / "plugin.log").open("ab") as file:
                whole = record(b"cut %d" % number, START + len(log.lines))
                file.write(whole[:20])
                file.flush()
                found += drain(history)
                file.write(whole[20:])
            log.lines.append(b"cut %d\n" % number)
        else:
            found += drain(history)
    found += drain(history)
    lines = found.splitlines(keepends=True)
    told = [line for line in lines if line.startswith(b"pluginsvc: output may be missing")]
    if told:
        assert [line for line in log.lines if line in lines] == [line for line in lines if line not in told]
    else:
        assert found == b"".join(log.lines)


def test_loss_is_told_on_stderr(log: Log) -> None:
    """Whoever reads so slowly that files are dropped unread is told so, and goes on with what is left."""
    log.print("read")
    history = History(log.folder, Wanted(), full)
    assert drain(history) == b"0 stdout read\n"
    for number in range(4):
        log.rotate()
        log.print(f"line {number}")
    lost, *rest = drain(history).splitlines()
    assert lost == (b"0 stderr pluginsvc: output may be missing here: its log file was dropped before it was read")
    assert rest == [b"2 stdout line 1", b"3 stdout line 2", b"4 stdout line 3"]


def test_inode_that_is_used_again_is_another_file(log: Log) -> None:
    """A new file with the inode of one that was read is read from its beginning."""
    log.print("a" * 100, "b" * 100)
    history = History(log.folder, Wanted(), raw)
    drain(history)
    path = log.folder / "plugin.log"
    inode = path.stat().st_ino
    path.unlink()
    log.print("new", at_ns=START + 50)
    if path.stat().st_ino != inode:
        pytest.skip("this file system does not give an inode away again at once")
    assert drain(history).endswith(b"new\n")


def test_monitor_that_began_anew_doubles_nothing(log: Log) -> None:
    """When the monitor has replaced the newest file by an empty one, older files are not read a second time."""
    log.print("old")
    log.rotate()
    log.print("newer")
    history = History(log.folder, Wanted(), raw)
    assert drain(history) == b"old\nnewer\n"
    time.sleep(0.02)  # files are told apart by times that the kernel counts in ticks of up to 10 ms
    (log.folder / "plugin.log.tmp").touch()
    (log.folder / "plugin.log.tmp").rename(log.folder / "plugin.log")
    log.print("newest", at_ns=START + 50)
    assert drain(history).splitlines()[1:] == [b"newest"]


def test_nothing_there(tmp_path: Path) -> None:
    """A plugin that was never started has printed nothing; and a tail is of the past, not of what comes then."""
    history = History(tmp_path / "logs", Wanted(tail=1), raw)
    assert (history.read(), history.more) == (b"", False)
    (tmp_path / "logs").mkdir()
    Log(tmp_path / "logs").print("1", "2")
    assert drain(history) == b"1\n2\n"


class Follower:
    """Collects what ``follow`` yields."""

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.going = True
        self.data = b""
        self.ended = anyio.Event()
        self._grown = anyio.Event()

    def news(self) -> None:
        event, self.event = self.event, anyio.Event()
        event.set()

    async def run(self, folder: Path, wanted: Wanted) -> None:
        stream = follow(folder, wanted, raw, printed=lambda: self.event, going=lambda: self.going)
        async with aclosing(stream):
            async for data in stream:
                self.data += data
                self._grown.set()
        self.ended.set()

    async def until(self, end: bytes) -> None:
        with anyio.fail_after(5):
            while not self.data.endswith(end):
                await self._grown.wait()
                self._grown = anyio.Event()


@asynccontextmanager
async def followed(folder: Path, **wanted: Any) -> AsyncIterator[Follower]:
    follower = Follower()
    async with anyio.create_task_group() as group:
        group.start_soon(follower.run, folder, Wanted(follow=True, **wanted))
        yield follower
        group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_follower_goes_on_until_the_plugin_may_not(log: Log) -> None:
    """A follower gives the past, then what comes, over rotation; it ends after the last line of a stopped plugin."""
    log.print("1", "2")
    async with followed(log.folder, tail=1) as follower:
        await follower.until(b"2\n")
        log.print("3")
        follower.news()
        await follower.until(b"3\n")
        log.rotate()
        log.print("4")
        follower.news()
        await follower.until(b"4\n")
        log.print("5")
        follower.going = False
        follower.news()
        with anyio.fail_after(5):
            await follower.ended.wait()
        assert follower.data == b"2\n3\n4\n5\n"


@pytest.mark.anyio
async def test_follower_sees_the_end_without_news(log: Log) -> None:
    """A plugin that was disabled, or a moment that has passed, ends it within a second though nothing is printed."""
    log.print("1")
    bounds: list[dict[str, int]] = [{}, {"until_ns": time.time_ns() + 200_000_000}]
    for wanted in bounds:
        async with followed(log.folder, **wanted) as follower:
            await follower.until(b"1\n")
            follower.going = bool(wanted)
            with anyio.fail_after(2):
                await follower.ended.wait()
        assert not wanted or time.time_ns() > wanted["until_ns"]
