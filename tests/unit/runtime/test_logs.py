"""Log files as conmon writes them, read back."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluginsvc.runtime.bundle import Mark
from pluginsvc.runtime.logs import Reader, clean, files, now, parse, tail

TIME = b"2026-11-22T14:50:20.126316140+00:00"


def record(text: str, stream: str = "stdout", flag: str = "F") -> bytes:
    return b"%s %s %s %s\n" % (TIME, stream.encode(), flag.encode(), text.encode())


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (record("one") + record("two", "stderr"), [("stdout", "one"), ("stderr", "two")]),
        (record("be", flag="P") + record("x", "stderr") + record("gun"), [("stderr", "x"), ("stdout", "begun")]),
        (record("open", flag="P"), [("stdout", "open")]),
        (record(""), [("stdout", "")]),
        (b"garbage\n\n" + record("kept") + TIME, [("stdout", "kept")]),
        (record("a b  c "), [("stdout", "a b  c ")]),
        (record("\x1b[2J\ttab\r"), [("stdout", "\\x1b[2J\ttab")]),
        (TIME + b" stdout F \xff\xfe\n", [("stdout", "\\xff\\xfe")]),
    ],
)
def test_lines_are_parsed(data: bytes, expected: list[tuple[str, str]]) -> None:
    """Pieces of a line are joined by stream, what is no line is left out, and what could harm a terminal is escaped."""
    assert list(parse(data)) == expected


@given(st.binary())
def test_any_bytes_parse(data: bytes) -> None:
    """No content of a log makes parsing fail, and no control character but tab gets through."""
    for _, line in parse(record("") + data):
        assert line.isprintable() or all(c.isprintable() or c == "\t" or ord(c) > 0x9F for c in line)


def test_endless_line_is_cut() -> None:
    """A line without end is not gathered without end."""
    found = [line for _, line in parse(record("x" * 8000, flag="P") * 100)]
    assert max(map(len, found)) <= 24_000
    assert sum(map(len, found)) == 800_000


def test_clean_keeps_line_ends_and_drops_the_last() -> None:
    """A tool's message keeps its lines, without the newline at its end."""
    assert clean(b"a\nb\x07\r\n") == "a\nb\\x07"


def write(folder: Path, name: str, *texts: str) -> None:
    with (folder / name).open("ab") as file:
        for text in texts:
            file.write(record(text))


def test_tail_begins_at_the_mark(tmp_path: Path) -> None:
    """Only what came after the mark is shown, the last lines of it, across a renamed file."""
    write(tmp_path, "plugin.log", "old")
    mark = now(tmp_path)
    assert tail(tmp_path, mark, 5) == []
    write(tmp_path, "plugin.log", "new 1", "new 2")
    assert tail(tmp_path, mark, 5) == ["new 1", "new 2"]
    assert tail(tmp_path, mark, 1) == ["new 2"]
    (tmp_path / "plugin.log").rename(tmp_path / "plugin.log.1")
    write(tmp_path, "plugin.log", "new 3")
    assert tail(tmp_path, mark, 5) == ["new 1", "new 2", "new 3"]
    assert tail(tmp_path, mark, 2) == ["new 2", "new 3"]


def test_tail_of_nothing(tmp_path: Path) -> None:
    """Logs that are not there are empty."""
    assert now(tmp_path) == Mark(0, 0)
    assert tail(tmp_path, Mark(0, 0), 5) == []
    assert tail(tmp_path / "missing", Mark(1, 1), 5) == []


def test_tail_of_much_reads_little(tmp_path: Path) -> None:
    """Of a large log only its end is looked at, and a line cut by that is left out."""
    write(tmp_path, "plugin.log", *(f"line {number:06}" for number in range(5000)))
    found = tail(tmp_path, Mark(0, 0), 10_000)
    assert 500 < len(found) < 5000
    assert found == [f"line {number:06}" for number in range(5000 - len(found), 5000)]


def test_only_our_files_count(tmp_path: Path) -> None:
    """Files that merely begin alike are left out, the others are newest first."""
    for name in ("plugin.log.2", "plugin.log", "plugin.log.10", "plugin.log.tmp", "plugin.log.x", "oom"):
        (tmp_path / name).touch()
    assert [path.name for path in files(tmp_path)] == ["plugin.log", "plugin.log.2", "plugin.log.10"]


def drain(reader: Reader, limit: int = 4096) -> list[str]:
    found = []
    while True:
        batch = reader.read(limit)
        found += [line for _, line in batch.lines]
        if not batch.more:
            return found


def test_reader_follows_through_rotations(tmp_path: Path) -> None:
    """Each line is read once, in order, however the files are renamed between two reads."""
    write(tmp_path, "plugin.log", "1", "2")
    reader = Reader(tmp_path, Mark(0, 0))
    assert drain(reader) == ["1", "2"]
    write(tmp_path, "plugin.log", "3")
    (tmp_path / "plugin.log").rename(tmp_path / "plugin.log.1")
    # the monitor has not reopened yet and still writes to the old file
    assert drain(reader) == ["3"]
    write(tmp_path, "plugin.log.1", "4")
    write(tmp_path, "plugin.log", "5")
    assert drain(reader) == ["4", "5"]
    (tmp_path / "plugin.log.1").rename(tmp_path / "plugin.log.2")
    (tmp_path / "plugin.log").rename(tmp_path / "plugin.log.1")
    write(tmp_path, "plugin.log", "6")
    assert drain(reader) == ["6"]
    assert drain(Reader(tmp_path, reader.position)) == []


def test_reader_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    """A line that is being written is left for the next time."""
    reader = Reader(tmp_path, Mark(0, 0))
    whole = record("slow")
    (tmp_path / "plugin.log").write_bytes(whole[:20])
    assert drain(reader) == []
    with (tmp_path / "plugin.log").open("ab") as file:
        file.write(whole[20:])
    assert drain(reader) == ["slow"]


def test_reader_goes_on_where_its_file_is_gone(tmp_path: Path) -> None:
    """When the file of its mark is gone it goes on with the newest: the older ones may have been read already."""
    write(tmp_path, "plugin.log.1", "a")
    write(tmp_path, "plugin.log", "b")
    assert drain(Reader(tmp_path, Mark(999_999_999, 5))) == ["b"]
    assert drain(Reader(tmp_path, Mark(0, 0))) == ["a", "b"]


def test_inode_that_is_used_again_is_another_file(tmp_path: Path) -> None:
    """A mark behind the end of its file was set in another file of the same inode, so it is read from its beginning."""
    write(tmp_path, "plugin.log", "new")
    mark = Mark(now(tmp_path).inode, 10_000)
    assert drain(Reader(tmp_path, mark)) == ["new"]
    assert tail(tmp_path, mark, 5) == ["new"]


def test_reader_skips_a_backlog(tmp_path: Path) -> None:
    """What has piled up beyond 1 MiB is passed over, told in bytes, and the end of it is read."""
    write(tmp_path, "plugin.log", *("x" * 100 for _ in range(10_000)), "last")
    batch = Reader(tmp_path, Mark(0, 0)).read(4096)
    assert batch.skipped > 1_000_000
    assert batch.lines[-1] == ("stdout", "last")
    assert len(batch.lines) < 40


def test_reader_is_bounded(tmp_path: Path) -> None:
    """One read gives no more than was asked for, says that there is more, and the rest follows."""
    write(tmp_path, "plugin.log", *(str(number) for number in range(300)))
    reader = Reader(tmp_path, Mark(0, 0))
    batch = reader.read(1024)
    assert batch.more
    assert len(batch.lines) < 30
    assert len(batch.lines) + len(drain(reader)) == 300
