import pytest

from pluginsvc.rootfs.source import InvalidArchive
from tests.unit.rootfs.archives import END, entries, header, member, pax


def v1(numbers: bytes, real: bytes = b"1000", data: bytes = b"") -> bytes:
    """Format 1.0: the map stands before the data."""
    table = numbers + bytes(-len(numbers) % 512)
    records = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", real)]
    return pax(records) + member(b"f", table + data) + END


def v01(numbers: bytes, real: bytes = b"1000", data: bytes = b"") -> bytes:
    """Format 0.1: the map stands in the pax header."""
    return pax([(b"GNU.sparse.size", real), (b"GNU.sparse.map", numbers)]) + member(b"f", data) + END


def old(*extents: tuple[int, int], real: int = 1000, data: bytes = b"", more: bytes = b"") -> bytes:
    """Old GNU: the map stands in the header, and goes on in blocks of its own."""
    table = b"".join(b"%011o\0%011o\0" % extent for extent in extents)
    tail = {386: table, 482: bytes([bool(more)]), 483: b"%011o\0" % real}
    return (
        header(b"f", b"S", size=len(data), magic=b"ustar  \0", tail=tail) + more + data + bytes(-len(data) % 512) + END
    )


@pytest.mark.parametrize(
    "archive",
    [
        v1(b"2\n0\n2\n500\n3\n", data=b"abcde"),
        v1(b"3\n0\n2\n500\n3\n1000\n0\n", data=b"abcde"),
        v01(b"0,2,500,3", data=b"abcde"),
        pax([(b"GNU.sparse.size", b"1000"), (b"GNU.sparse.numblocks", b"2"), (b"GNU.sparse.offset", b"0"),
             (b"GNU.sparse.numbytes", b"2"), (b"GNU.sparse.offset", b"500"), (b"GNU.sparse.numbytes", b"3")])
        + member(b"f", b"abcde") + END,
        old((0, 2), (500, 3), data=b"abcde"),
        old((0, 2), data=b"abcde", more=(b"%011o\0%011o\0" % (500, 3)).ljust(512, b"\0")),
    ],
    ids=["1.0", "1.0 with end", "0.1", "0.0", "old", "old extended"],
)  # fmt: skip
def test_formats(archive: bytes) -> None:
    """Each of the five ways to write a sparse map gives the same extents."""
    (entry,) = entries(archive)
    assert (entry.extents, entry.size, entry.real_size) == ([(0, 2), (500, 3)], 5, 1000)


@pytest.mark.parametrize(
    "archive",
    [
        v1(b"", data=b""),
        v1(b"2\n0\n2\n", data=b"ab"),
        v1(b"-1\n0\n2\n", data=b"ab"),
        v1(b"x\n"),
        v1(b"9" * 1000),
        v1(b"1\n0\n" + b"0" * 600 + b"2\n", data=b"ab"),
        v1(b"99999999\n0\n2\n", data=b"ab"),
        v1(b"1\n0\n2\n", data=b"abc"),
        v1(b"1\n0\n3\n", data=b"ab"),
        v1(b"1\n999\n2\n", data=b"ab"),
        v1(b"2\n10\n2\n5\n2\n", data=b"abcd"),
        v1(b"2\n10\n2\n11\n2\n", data=b"abcd"),
        v1(b"1\n0\n2\n", real=b"", data=b"ab"),
        v1(b"1\n0\n2\n", real=b"99999999999999999999", data=b"ab"),
        v1(b"1\n99999999999999999999\n2\n", data=b"ab"),
        v01(b"0,2,500", data=b"ab"),
        v01(b"0,,2", data=b"ab"),
        v01(b"0,-2", data=b"ab"),
        v01(b"0,2", real=b"1", data=b"ab"),
        pax([(b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0")]) + member(b"f") + END,
        pax([(b"GNU.sparse.offset", b"0"), (b"GNU.sparse.offset", b"0")]) + member(b"f") + END,
        pax([(b"GNU.sparse.map", b"0,0")]) + member(b"f") + END,
        old((500, 2), (0, 3), data=b"abcde"),
        old((0, 2), real=1, data=b"ab"),
        old((0, 5), data=b"ab"),
    ],
)
def test_refuses_maps_that_do_not_hold_together(archive: bytes) -> None:
    """Extents that overlap, go backwards, pass the end or do not add up to the data are refused."""
    with pytest.raises(InvalidArchive):
        entries(archive)


def test_refuses_maps_without_end() -> None:
    """A map that claims or has far too many extents is refused before it fills the memory."""
    block = (b"%011o\0%011o\0" % (0, 0)) * 21 + b"\1" + bytes(7)
    with pytest.raises(InvalidArchive, match="too long"):
        entries(old((0, 0), more=block * 4000))
    with pytest.raises(InvalidArchive, match="too long"):
        entries(v1(b"70000\n"))
