from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluginsvc.rootfs.fields import checksum, clean, nanoseconds, number, parse_pax
from pluginsvc.rootfs.source import InvalidArchive


@given(st.binary(min_size=512, max_size=512))
def test_checksum_is_the_sum(block: bytes) -> None:
    """The quick checksum is the sum of the bytes."""
    assert checksum(block) == sum(block)


def test_checksum_of_the_largest_bytes() -> None:
    """It does not wrap around for a block of 0xff."""
    assert checksum(b"\xff" * 512) == 512 * 255


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b"   644 \0", 0o644),
        (b"644\0junk", 0o644),
        (b"\0" * 8, 0),
        (b" " * 8, 0),
        (b"77777777", 0o77777777),
        (b"\x80" + bytes(10) + b"\x05", 5),
        (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", (1 << 64) - 1),
        (b"\xff" * 12, -1),
        (b"\xff" * 11 + b"\x00", -256),
    ],
)
def test_decodes_numbers(field: bytes, value: int) -> None:
    """Octal as all the old programs wrote it, and GNU's base-256 with its sign."""
    assert number(field, "size") == value


@pytest.mark.parametrize("field", [b"00000o17", b"0000_644", b"-0000644", b"+0000644", b"0000689\0", b"hello\0\0\0"])
def test_refuses_what_is_no_number(field: bytes) -> None:
    """What Python would accept as a number and tar does not is refused."""
    with pytest.raises(InvalidArchive, match="not a number"):
        number(field, "size")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"a/b", b"a/b"),
        (b"./a", b"a"),
        (b"/a//b/", b"a/b"),
        (b"././/./a/.", b"a"),
        (b".", b""),
        (b"/", b""),
        (b"", b""),
        (b"..a/b..", b"..a/b.."),
        (b"a\nb/\xff", b"a\nb/\xff"),
        (b"x" * 255, b"x" * 255),
    ],
)
def test_cleans_paths(name: bytes, path: bytes) -> None:
    """Leading slashes, empty and dot components go; everything else stays, byte for byte."""
    assert clean(name) == path


@pytest.mark.parametrize(
    "name",
    [b"..", b"../a", b"a/..", b"a/../b", b"/..", b"a\0b", b"x" * 256, b"a/" + b"x" * 256, b"a/" * 2048 + b"b"],
)
def test_refuses_paths(name: bytes) -> None:
    """Paths that lead out, or that no file system takes, are refused."""
    with pytest.raises(InvalidArchive, match="path"):
        clean(name)


@given(st.binary())
def test_cleaned_paths_stay_inside(name: bytes) -> None:
    """A cleaned path has only components that name something below the root."""
    try:
        path = clean(name)
    except InvalidArchive:
        return
    assert not path or all(part not in {b"", b".", b".."} and b"\0" not in part for part in path.split(b"/"))


@given(st.integers(-(10**28), 10**28))
def test_times_are_exact(value: int) -> None:
    """A pax time keeps its nanoseconds, before the epoch as well."""
    seconds, fraction = divmod(abs(value), 10**9)
    assert nanoseconds(b"%b%d.%09d" % (b"-" * (value < 0), seconds, fraction)) == value


@pytest.mark.parametrize("text", [b"", b"-", b".", b"1e5", b"1.x", b"--1", b" 1", b"1_0", b"9" * 21])
def test_refuses_what_is_no_time(text: bytes) -> None:
    """A malformed pax time is refused."""
    with pytest.raises(InvalidArchive, match="mtime"):
        nanoseconds(text)


def test_pax_records() -> None:
    """Records are taken by their length, so that values may hold anything; the last of a keyword counts."""
    data = b"12 path=a=b\n" + b"16 comment=\nx=y\n" + b"10 path=c\n"
    assert parse_pax(data) == {b"path": b"c", b"comment": b"\nx=y"}


@pytest.mark.parametrize(
    "data",
    [
        b"12 path=a=b",
        b"99 path=a=b\n",
        b"0 path=a\n",
        b"-5 path=a\n",
        b"x path=a\n",
        b"9 pathab\n",
        b"5 =a\n",
        b"99999999999999999999 path=a\n",
        b"1 a=b\n",
        b"26 GNU.sparse.numbytes=12\n",
    ],
)
def test_refuses_malformed_pax_records(data: bytes) -> None:
    """A record whose length or form is wrong is refused."""
    with pytest.raises(InvalidArchive, match="malformed"):
        parse_pax(data)


@given(st.binary(max_size=200))
def test_pax_parser_ends_well(data: bytes) -> None:
    """Any bytes either parse or are refused."""
    with suppress(InvalidArchive):
        parse_pax(data)
