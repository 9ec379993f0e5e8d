"""The file sink."""

import json
import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluginsvc.events.delivery import SinkFailed
from pluginsvc.events.file_sink import FileSink
from pluginsvc.events.forms import native_message
from pluginsvc.model.event import Event, Gap
from tests.support.records import event

pytestmark = pytest.mark.anyio
LARGE = 10**9


def events(first: int, last: int, *, began: int = 0) -> list[Event | Gap]:
    """Return events of a journal that began at some time."""
    return [event(n, seq=n, time_ns=began + n) for n in range(first, last + 1)]


def lines(items: Sequence[Event | Gap]) -> bytes:
    return b"".join(native_message(item) + b"\n" for item in items)


def numbers(*paths: Path) -> list[int]:
    return [json.loads(line)["seq"] for path in paths for line in path.read_bytes().splitlines()]


def sink_of(path: Path, *, size: int = LARGE, files: int = 3) -> FileSink:
    return FileSink(path, size=size, files=files)


async def test_one_line_per_event_and_gap(tmp_path: Path) -> None:
    """The file is for root alone and has a line for each item, in our own form."""
    path = tmp_path / "events"
    items = [Gap(0, 3), *events(3, 5)]
    sink = sink_of(path)
    await sink.send(items)
    await sink.send(events(6, 6))
    await sink.close()
    assert path.read_bytes() == lines([*items, *events(6, 6)])
    assert path.stat().st_mode & 0o777 == 0o600


async def test_an_existing_file_keeps_its_mode(tmp_path: Path) -> None:
    """An operator may let others read the file by making it first."""
    path = tmp_path / "events"
    path.touch(0o644)
    path.chmod(0o644)
    await sink_of(path).send(events(1, 1))
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("again", [False, True], ids=["restarted", "running"])
async def test_what_is_there_is_not_written_again(tmp_path: Path, *, again: bool) -> None:
    """A batch that comes again, with more after it, is written once, by the same sink and by the next one."""
    path = tmp_path / "events"
    first = sink_of(path)
    await first.send(events(1, 5))
    await (first if again else sink_of(path)).send(events(1, 9))
    assert numbers(path) == list(range(1, 10))


async def test_a_gap_is_not_written_again(tmp_path: Path) -> None:
    """A crash right after a gap's line does not double it."""
    path = tmp_path / "events"
    await sink_of(path).send([Gap(2, 5)])
    await sink_of(path).send([Gap(2, 5), *events(5, 6)])
    assert path.read_bytes() == lines([Gap(2, 5), *events(5, 6)])


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 1_000_000), zeros=st.integers(0, 3), before=st.integers(0, 3))
async def test_whatever_a_crash_leaves_of_a_batch_is_completed(
    tmp_path_factory: pytest.TempPathFactory, cut: int, zeros: int, before: int
) -> None:
    """A file cut off within a batch at any byte, perhaps with zeros after it, ends up with each event once."""
    path = tmp_path_factory.mktemp("cut") / "events"
    old, batch = events(1, before), events(before + 1, before + 4)
    data = lines(batch)
    path.write_bytes(lines(old) + data[: cut % (len(data) + 1)] + b"\0" * zeros)
    await sink_of(path).send(batch)
    assert path.read_bytes() == lines(old) + data


async def test_a_hole_within_a_batch_is_written_again(tmp_path: Path) -> None:
    """Where the disk lost a block in the middle of what was written last, all from there on is written again."""
    path = tmp_path / "events"
    data = bytearray(lines(events(1, 9)))
    data[300:400] = bytes(100)
    path.write_bytes(data)
    await sink_of(path).send(events(1, 9))
    assert path.read_bytes() == lines(events(1, 9))


@pytest.mark.parametrize("emptied", [False, True], ids=["missing", "empty"])
async def test_a_crash_after_rotation_doubles_nothing(tmp_path: Path, *, emptied: bool) -> None:
    """When the file was renamed and none was begun, the last line is looked for in the renamed one."""
    path = tmp_path / "events"
    await sink_of(path, size=1).send(events(1, 5))
    assert not path.exists()
    if emptied:
        path.touch()
    await sink_of(path).send(events(1, 7))
    assert numbers(tmp_path / "events.1", path) == list(range(1, 8))


@pytest.mark.parametrize("began", [10**6, -(10**6)], ids=["later", "clock set back"])
async def test_a_file_of_another_journal_swallows_nothing(tmp_path: Path, began: int) -> None:
    """A journal that began anew counts lower than the file it continues; all its events are written."""
    path = tmp_path / "events"
    await sink_of(path).send(events(1, 50))
    await sink_of(path).send(events(1, 50, began=10**7 + began))
    assert numbers(path) == [*range(1, 51), *range(1, 51)]


async def test_rotation_keeps_as_many_files_as_wanted(tmp_path: Path) -> None:
    """A file that is too large after a batch is renamed, the newest to .1; the oldest goes when there are too many."""
    path = tmp_path / "events"
    sink = sink_of(path, size=len(lines(events(1, 9))))
    for n in range(1, 51):
        await sink.send(events(n, n))
    found = sorted(tmp_path.iterdir())
    assert [file.name for file in found] == ["events", "events.1", "events.2"]
    # 10 small lines are more than 9
    assert numbers(*reversed(found)) == list(range(numbers(found[-1])[0], 51))
    assert len(numbers(*found)) > 2 * 8


async def test_rotation_that_was_interrupted_loses_no_file(tmp_path: Path) -> None:
    """With a name free in the middle, as a crash between two renames leaves it, no file is overwritten."""
    path = tmp_path / "events"
    for name, items in (("events.3", events(1, 2)), ("events.1", events(3, 4)), ("events", events(5, 6))):
        (tmp_path / name).write_bytes(lines(items))
    await sink_of(path, size=1, files=4).send(events(7, 7))
    assert numbers(*(tmp_path / f"events.{n}" for n in (3, 2, 1))) == list(range(1, 8))
    assert not path.exists()


async def test_a_file_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    """After logrotate has renamed the file the next batch begins a new one, and repeats nothing."""
    path = tmp_path / "events"
    sink = sink_of(path)
    await sink.send(events(1, 3))
    path.rename(tmp_path / "moved")
    await sink.send(events(1, 5))
    assert numbers(tmp_path / "moved", path) == [1, 2, 3, 4, 5]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow over a size, as a disk that gets full: what still fits is written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    """A batch that does not fit leaves the file as it was, is refused with path and advice, and is taken later."""
    path = tmp_path / "events"
    sink = sink_of(path)
    await sink.send(events(1, 600))
    before = path.read_bytes()
    with largest_file(len(before) + 300), pytest.raises(SinkFailed, match=rf"{path}: File too large; "):
        await sink.send(events(601, 603))
    assert path.read_bytes() == before
    await sink.send(events(601, 604))
    assert numbers(path) == list(range(1, 605))


async def test_a_cut_that_fails_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When what was half written cannot be cut off at once it is cut off before the next batch."""
    path = tmp_path / "events"
    sink = sink_of(path)
    await sink.send(events(1, 600))

    def fails(fd: int, size: int) -> None:
        raise OSError(5, "scripted")

    with monkeypatch.context() as patch, largest_file(path.stat().st_size + 300):
        patch.setattr(os, "ftruncate", fails)
        with pytest.raises(SinkFailed):
            await sink.send(events(601, 603))
    assert not path.read_bytes().endswith(b"\n")
    await sink.send(events(601, 603))
    assert numbers(path) == list(range(1, 604))


async def test_a_directory_that_is_gone_and_comes_back(tmp_path: Path) -> None:
    """Without its directory the sink fails and says so; with it, it goes on."""
    path = tmp_path / "logs" / "events"
    sink = sink_of(path)
    with pytest.raises(SinkFailed, match=rf"{path}: No such file or directory; make its directory"):
        await sink.send(events(1, 2))
    path.parent.mkdir()
    await sink.send(events(1, 2))
    assert numbers(path) == [1, 2]


async def test_a_rotation_that_fails_is_tried_again(tmp_path: Path) -> None:
    """When files cannot be renamed the batch is refused, and later is neither lost nor doubled."""
    path = tmp_path / "events"
    sink = sink_of(path, size=1, files=2)
    (tmp_path / "events.1" / "in the way").mkdir(parents=True)
    for _ in range(2):
        with pytest.raises(SinkFailed, match="Is a directory"):
            await sink.send(events(1, 2))
    (tmp_path / "events.1" / "in the way").rmdir()
    (tmp_path / "events.1").rmdir()
    await sink.send(events(1, 2))
    assert numbers(tmp_path / "events.1") == [1, 2]


@pytest.mark.parametrize("kind", ["link", "fifo", "device", "directory"])
async def test_only_a_regular_file_is_written(tmp_path: Path, kind: str) -> None:
    """A symbolic link is not followed; a FIFO, device or directory is refused at once."""
    path, target = tmp_path / "events", tmp_path / "target"
    if kind == "link":
        path.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path = Path("/dev/null")
    with anyio.fail_after(10), pytest.raises(SinkFailed, match=r"link|regular|directory"):
        await sink_of(path).send(events(1, 1))
    assert not target.exists()


@pytest.mark.parametrize(
    "content", [b'{"settings": 1}', b"root:x:0:0\n", b"a\nb", b"\x7fELF\0\0\n", b"{}" * 600_000, b'{"seq":1}\nfoo']
)
async def test_a_file_of_another_program_is_left_alone(tmp_path: Path, content: bytes) -> None:
    """A file that does not end as ours do is neither cut nor appended to."""
    path = tmp_path / "events"
    path.write_bytes(content)
    with pytest.raises(SinkFailed, match="another program"):
        await sink_of(path).send(events(1, 1))
    assert path.read_bytes() == content
