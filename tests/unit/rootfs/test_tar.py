import io
import tarfile
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pluginsvc.rootfs.source import InvalidArchive
from tests.unit.rootfs.archives import END, entries, header, member, pax

LONG = b"/".join([b"part%d" % n * 5 for n in range(60)])


def longname(name: bytes, kind: bytes = b"L") -> bytes:
    return member(b"././@LongLink", name + b"\0", kind, magic=b"ustar  \0")


@pytest.mark.parametrize(
    "archive",
    [
        member(b"a", b"data"),
        member(b"a", b"data", b"\0", magic=b"\0" * 8),
        member(b"a", b"data", b"7"),
        member(b"./a", b"data", magic=b"ustar  \0"),
        member(b"/a", b"data"),
        pax([(b"path", b"a")]) + member(b"wrong", b"data"),
        pax([(b"path", b"x")]) + pax([(b"path", b"a")]) + member(b"wrong", b"data"),
        longname(b"a") + member(b"wrong", b"data"),
        longname(b"wrong") + pax([(b"path", b"a")]) + member(b"wrong", b"data"),
        pax([(b"size", b"4")]) + header(b"a", size=0) + b"data" + bytes(508),
        header(b"a", size_field=b"\x80" + bytes(10) + b"\x04") + b"data" + bytes(508),
        member(b"V", b"", b"V", magic=b"ustar  \0") + member(b"a", b"data"),
        pax([(b"comment", b"hello")], b"g") + member(b"a", b"data"),
        pax([(b"path", b"a")], b"X") + member(b"wrong", b"data"),
    ],
    ids=[
        "ustar", "v7", "contiguous", "gnu, dot", "absolute", "pax", "pax twice", "gnu long", "pax over gnu", "pax size",
        "base 256", "label", "global", "solaris",
    ],
)  # fmt: skip
def test_dialects(archive: bytes) -> None:
    """Every dialect gives the same entry."""
    (entry,) = entries(archive + END)
    assert (entry.name, entry.kind, entry.size, entry.mode) == (b"a", b"0", 4, 0o644)


def test_an_owner_in_records_alone() -> None:
    """Owners that a pax header gives need not be readable in the header behind it."""
    (found,) = entries(pax([(b"uid", b"70000"), (b"gid", b"7")]) + member(b"a", uid=b"no body", gid=b"n group") + END)
    assert (found.uid, found.gid) == (70000, 7)


def test_prefix() -> None:
    """The prefix of ustar comes before the name; GNU keeps times in its place, and star some behind it."""
    assert entries(member(b"b", prefix=b"a/x") + END)[0].name == b"a/x/b"
    assert entries(member(b"b", prefix=b"00000000001", magic=b"ustar  \0") + END)[0].name == b"b"
    star = member(b"b", prefix=b"a", tail={476: b"00000000001\0", 508: b"tar\0"})
    assert entries(star + END)[0].name == b"a/b"


def test_old_directory() -> None:
    """A file whose name ends in a slash is a directory, from before there was a type for it."""
    assert entries(member(b"a/", b"data", b"\0") + member(b"b") + END)[0].kind == b"5"


def test_signed_checksum() -> None:
    """A checksum made of signed bytes, as some old programs made it, is right too."""
    block = bytearray(header(b"\xff\xfe"))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(b - 256 if b > 127 else b for b in block)
    assert entries(bytes(block) + END)[0].name == b"\xff\xfe"


def test_global_headers_hold_until_taken_back() -> None:
    """A global header applies to all that follow; an entry's own header overrides it, an empty value removes it."""
    archive = pax([(b"uid", b"7"), (b"mtime", b"1.5")], b"g") + member(b"a", uid=b"0000001\0")
    archive += pax([(b"uid", b"8")]) + member(b"b") + pax([(b"uid", b"")]) + member(b"c", uid=b"0000001\0")
    found = entries(archive + END)
    assert [entry.uid for entry in found] == [7, 8, 1]
    assert {entry.mtime_ns for entry in found} == {1_500_000_000}


def test_links_carry_no_data() -> None:
    """The size of a link or directory does not count, as in Go: what follows is the next header."""
    archive = b"".join(header(b"l", kind, size=512, link=b"x") for kind in b"1 2 3 4 5 6".split()) + member(
        b"z", b"data"
    )
    assert [entry.size for entry in entries(archive + END)] == [0] * 6 + [4]


def test_only_some_attributes_are_kept() -> None:
    """File capabilities and user attributes pass; those that steer overlays, policies or access lists do not."""
    names = [
        b"security.capability",
        b"user.a",
        b"trusted.overlay.opaque",
        b"security.selinux",
        b"system.posix_acl_access",
    ]
    archive = pax([(b"SCHILY.xattr." + name, b"\0v=\n") for name in names]) + member(b"a")
    assert entries(archive + END)[0].xattrs == {b"security.capability": b"\0v=\n", b"user.a": b"\0v=\n"}


@pytest.mark.parametrize(
    ("archive", "says"),
    [
        (b"", "empty"),
        (b"this is not a tar at all" * 50, "not a tar"),
        (b"short", "cut off"),
        (member(b"a", b"data"), "end marker"),
        (member(b"a", b"data")[:700], "cut off"),
        (header(b"a", size=10_000) + bytes(512), "cut off"),
        (member(b"a")[:300], "cut off"),
        (pax([(b"path", b"a")]) + END, "extended header"),
        (longname(b"a") + END, "extended header"),
        (member(b"a") + bytes(512) + member(b"b") + END, "zeros"),
        (member(b"a") + b"x" * 512 + END, "checksum"),
        (member(b"../a") + END, "'..'"),
        (member(b"a/../../b") + END, "'..'"),
        (pax([(b"path", b"/../a")]) + member(b"b") + END, "'..'"),
        (longname(b"../a") + member(b"b") + END, "'..'"),
        (pax([(b"path", b"a\0b")]) + member(b"b") + END, "NUL"),
        (pax([(b"linkpath", b"a\0b")]) + member(b"b", kind=b"2") + END, "NUL"),
        (pax([(b"path", b"x" * 256)]) + member(b"b") + END, "longer than"),
        (longname(b"a/" * 2100) + member(b"b") + END, "longer than"),
        (pax([(b"linkpath", b"x" * 5000)]) + member(b"b", kind=b"2") + END, "too long"),
        (member(b"l", kind=b"1", link=b"../x") + END, "'..'"),
        (member(b"l", kind=b"1") + END, "link target"),
        (member(b"l", kind=b"2") + END, "link target"),
        (header(b"a", size_field=b"\xff" * 12) + END, "size"),
        (header(b"a", size_field=b"\x80" + b"\xff" * 11) + END, "size"),
        (header(b"x", b"x", size_field=b"\xff" * 12) + END, "too large"),
        (header(b"x", b"L", size_field=b"77777777777\0") + END, "too large"),
        (header(b"x", b"x", size_field=b"77777777777\0") + END, "too large"),
        (header(b"a", size_field=b"hello\0") + END, "not a number"),
        (pax([(b"size", b"-1")]) + member(b"a") + END, "decimal"),
        (pax([(b"size", b"1" * 30)]) + member(b"a") + END, "decimal"),
        (member(b"a", uid=b"\xff" * 8) + END, "owner"),
        (pax([(b"uid", b"4294967295")]) + member(b"a") + END, "owner"),
        (pax([(b"gid", b"99999999999")]) + member(b"a") + END, "owner"),
        (member(b"a", mtime=b"\x80" + b"\xff" * 11) + END, "mtime"),
        (pax([(b"mtime", b"1e9")]) + member(b"a") + END, "mtime"),
        (member(b"a", kind=b"3", device=(0o7777777, 0)) + END, "device number"),
        (member(b"a", kind=b"4", device=(0, 0o7777777)) + END, "device number"),
        (member(b"a", kind=b"M") + END, "type"),
        (member(b"a", kind=b"Q") + END, "type"),
        (member(b"x", b"12 path=a=b", b"x") + member(b"a") + END, "malformed"),
        (pax([(b"path", b"a")], b"g") + member(b"b") + END, "global"),
        (pax([(b"size", b"1")], b"g") + member(b"b") + END, "global"),
        (pax([(b"k%d" % n, b"x" * 900_000) for n in range(1)], b"g") * 2 + member(b"b") + END, None),
        (b"".join(pax([(b"k%d" % n, b"x" * 900_000)], b"g") for n in range(2)) + member(b"b") + END, "global"),
    ],
)  # fmt: skip
def test_refuses(archive: bytes, says: str | None) -> None:
    """What is cut, lies about itself or is too large is refused, with a reason."""
    if says is None:
        assert entries(archive)
        return
    with pytest.raises(InvalidArchive, match=says):
        entries(archive)


def test_errors_say_where() -> None:
    """An error names the entry at fault, in printable form, and the place in the stream."""
    with pytest.raises(InvalidArchive) as caught:
        entries(member(b"ok", b"data") + member(b"evil\n/../x") + END)
    assert (caught.value.entry, caught.value.offset) == (b"evil\n/../x", 1024)
    assert "'evil\\n/../x'" in str(caught.value)


def test_an_end_marker_is_not_asked_of_verified_layers() -> None:
    """Without `marked`, an archive may end after an entry, but not inside one."""
    assert len(entries(member(b"a"), marked=False)) == 1
    with pytest.raises(InvalidArchive, match="cut off"):
        entries(member(b"a", b"data")[:-1], marked=False)


def test_a_lone_block_of_zeros_ends_the_archive() -> None:
    """One block of zeros right before the end of the data is an end marker, as for Go and GNU tar."""
    assert len(entries(member(b"a") + bytes(512))) == 1


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_damage_is_refused_or_read(data: st.DataObject) -> None:
    """Whatever byte of an archive is changed, the reader ends, well or with a refusal."""
    archive = bytearray(pax([(b"path", LONG[:90]), (b"mtime", b"1.5")]) + member(b"a", b"x" * 600) + longname(LONG)
                        + member(b"l", kind=b"2", link=b"t") + END)  # fmt: skip
    for _ in range(data.draw(st.integers(1, 4))):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    with suppress(InvalidArchive):
        entries(bytes(archive))


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.text("abc é", min_size=1, max_size=120).filter(lambda t: t.strip("/ ") == t),
            st.binary(max_size=1500),
            st.integers(0, 0o7777),
            st.integers(0, 2**32 - 2),
            st.integers(-(10**12), 10**13).map(lambda ms: ms / 1000),
        ),
        max_size=5,
    ),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_reads_what_tarfile_writes(members: list[tuple[str, bytes, int, int, float]], form: int) -> None:
    """Names, modes, owners and sizes come out as Python's tarfile wrote them, in pax and in GNU format."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data, mode, uid, mtime in members:
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uid, info.gid, info.mtime = len(data), mode, uid, uid // 2, mtime
            archive.addfile(info, io.BytesIO(data))
    found = [(e.name.decode(), e.size, e.mode, e.uid, e.gid) for e in entries(buffer.getvalue())]
    assert found == [(name, len(data), mode, uid, uid // 2) for name, data, mode, uid, _ in members]
