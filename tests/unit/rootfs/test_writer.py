import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pluginsvc.rootfs.tar import Entry, Reader
from pluginsvc.rootfs.writer import Writer
from tests.unit.rootfs.archives import END, entries, gnu_tar, header, member, pax, snapshot, source, unpack


def rewrite(archive: bytes) -> bytes:
    """Return what the writer makes of an archive."""
    fd = os.memfd_create("layer")
    writer = Writer(fd)
    reader = Reader(source(archive), marked=True)
    for entry in reader:
        writer.entry(entry)
        for view in reader.read(entry.size):
            writer.data(view)
        writer.pad(entry.size)
    writer.end()
    with open(fd, "rb") as file:
        file.seek(0)
        return file.read()


def entry(**fields: object) -> Entry:
    values: dict[str, object] = {
        "name": b"f", "kind": b"0", "mode": 0o644, "uid": 0, "gid": 0, "mtime_ns": 0, "size": 0, "link": b"",
        "device": (0, 0), "xattrs": {}, "extents": None, "real_size": 0, "offset": 0,
    }  # fmt: skip
    return Entry(**(values | fields))  # type: ignore[arg-type] # the values above have the right types


def test_little_is_held_back() -> None:
    """Entries without data, a million directories say, do not pile up in memory."""
    fd = os.memfd_create("layer")
    writer = Writer(fd)
    for number in range(2000):
        writer.entry(entry(name=b"d%d" % number, kind=b"5"))
    written = os.fstat(fd).st_size
    writer.end()
    assert written > os.fstat(fd).st_size - (1 << 18) - 1024
    os.close(fd)


NAME = st.binary(min_size=1, max_size=250).filter(lambda n: not set(n) & {0, 47} and n not in {b".", b".."})


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.lists(NAME, min_size=1, max_size=4).map(b"/".join),
    kind=st.sampled_from([b"0", b"1", b"2", b"3", b"4", b"5", b"6"]),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 2),
    gid=st.integers(0, 2**32 - 2),
    mtime_ns=st.integers(-(10**19), 10**20),
    device=st.tuples(st.integers(0, 4095), st.integers(0, 2**20 - 1)),
    xattrs=st.dictionaries(st.just(b"user.") | st.just(b"security.capability"), st.binary(max_size=300)),
)
def test_reads_back_what_it_wrote(name: bytes, kind: bytes, xattrs: dict[bytes, bytes], **numbers: object) -> None:
    """Whatever an entry holds is in the header that is written for it."""
    link = name if kind in {b"1", b"2"} else b""
    if kind not in {b"3", b"4"}:
        numbers["device"] = (0, 0)
    wanted = entry(name=name, kind=kind, link=link, xattrs=xattrs, **numbers)
    fd = os.memfd_create("layer")
    writer = Writer(fd)
    writer.entry(wanted)
    writer.end()
    with open(fd, "rb") as file:
        file.seek(0)
        assert entries(file.read()) == [entry(name=name, kind=kind, link=link, xattrs=xattrs, **numbers)]


def test_equal_content_gives_equal_bytes() -> None:
    """The layer does not depend on the dialect of the archive it came in, nor on what the header says besides."""
    plain = member(b"a/f", b"data", mtime=b"00000000007\0") + member(b"l", kind=b"2", link=b"t")
    others = [
        member(b"./a//f", b"data", mtime=b"00000000007\0", magic=b"ustar  \0", tail={265: b"root", 297: b"wheel"})
        + header(b"l", b"2", link=b"t", size=99),
        pax([(b"path", b"a/f"), (b"mtime", b"7.0"), (b"comment", b"x")]) + member(b"x", b"data")
        + pax([(b"linkpath", b"t")]) + member(b"l", kind=b"2", link=b"wrong"),
        member(b"f", b"data", prefix=b"a", mtime=b"\x80" + bytes(10) + b"\7") + member(b"l", kind=b"2", link=b"t"),
    ]  # fmt: skip
    assert {rewrite(other + END) for other in others} == {rewrite(plain + END)}


def test_tarfile_reads_it() -> None:
    """Python's tarfile reads long names, attributes and large numbers out of the layer."""
    long = b"d/" + b"n" * 200
    archive = pax([(b"path", long), (b"mtime", b"1.25"), (b"uid", b"4000000000"), (b"SCHILY.xattr.user.a", b"v")])
    with tarfile.open(fileobj=io.BytesIO(rewrite(archive + member(b"x", b"data") + END))) as layer:
        (info,) = layer.getmembers()
        assert (info.name.encode(), info.size, info.mtime, info.uid) == (long, 4, 1.25, 4_000_000_000)
        assert info.pax_headers["SCHILY.xattr.user.a"] == "v"
        file = layer.extractfile(info)
        assert file is not None
        assert file.read() == b"data"


@pytest.mark.root
def test_gnu_tar_reads_it(tmp_path: Path) -> None:
    """GNU tar unpacks the layer to the very tree that was packed, with sparse files, odd names and attributes."""
    top = tmp_path / "in"
    (top / ("long" * 30)).mkdir(parents=True)
    (top / ("long" * 30) / "f").write_bytes(os.urandom(700_000))
    with (top / "sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"data")
        file.truncate(3 << 20)
    os.setxattr(top / "sparse", "user.a", b"\n=\0")
    Path(os.fsdecode(os.fsencode(top) + b"/\xff" + b"\n" * 120)).write_text("odd")
    os.mknod(top / "device", 0o20600, os.makedev(5, 1))
    os.symlink("t" * 150, top / "link")
    os.utime(top / "sparse", ns=(0, -1_500_000_000))
    os.lchown(top / "link", 2**31, 2**31)
    layer = rewrite(gnu_tar("--format=pax", "-S", "--xattrs", "--numeric-owner", "-C", top, "-c", "."))
    (tmp_path / "out").mkdir()
    gnu_tar("--numeric-owner", "--xattrs", "--xattrs-include=*", "-p", "-C", tmp_path / "out", "-x", input=layer)
    assert snapshot(tmp_path / "out") == snapshot(top)
    assert (tmp_path / "out/sparse").stat().st_blocks < 100
    (tmp_path / "ours").mkdir()
    unpack(layer, tmp_path / "ours")
    assert snapshot(tmp_path / "ours") == snapshot(top)
    assert rewrite(layer) == layer


def test_large_data_passes_in_order() -> None:
    """Data around the sizes at which the writer changes its ways comes out in order, through a slow pipe."""
    sizes = [1, 65_535, 65_536, 65_537, 262_144, 1_048_577, 511, 0]
    archive = b"".join(member(b"f%d" % n, os.urandom(size)) for n, size in enumerate(sizes)) + END
    assert rewrite(archive) == archive
