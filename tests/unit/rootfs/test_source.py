import gzip
import os
import zlib

import pytest
from backports import zstd

from pluginsvc.rootfs.source import InvalidArchive, Source, printable
from tests.unit.rootfs.archives import source

DATA = os.urandom(100_000) + bytes(3_000_000)


def whole(data: bytes) -> bytes:
    stream = source(data)
    out = b""
    while not stream.at_end():
        out += stream.take(1)
        left = len(stream._view) - stream._pos
        out += b"".join(map(bytes, stream.chunks(left)))
    return out


@pytest.mark.parametrize(
    "packed",
    [
        DATA,
        gzip.compress(DATA),
        gzip.compress(DATA[:1000]) + gzip.compress(DATA[1000:]),
        gzip.compress(DATA) + gzip.compress(b""),
        gzip.compress(DATA) + bytes(1000),
        zstd.compress(DATA),
        zstd.compress(DATA[:70_000]) + zstd.compress(DATA[70_000:]),
    ],
    ids=["plain", "gzip", "gzip members", "empty member", "gzip padded", "zstd", "zstd frames"],
)
def test_decompresses_by_magic(packed: bytes) -> None:
    """Plain, gzip of several members and zstd of several frames all give the same bytes."""
    assert whole(packed) == DATA


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
@pytest.mark.parametrize("cut", [1, 8, 9, 1000])
def test_refuses_a_cut_stream(kind: str, cut: int) -> None:
    """A compressed stream that lacks its end is refused, however little is missing."""
    packed = gzip.compress(DATA) if kind == "gzip" else zstd.compress(DATA)
    with pytest.raises(InvalidArchive, match="cut off"):
        whole(packed[:-cut])


def flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


@pytest.mark.parametrize(
    "packed",
    [
        flipped(gzip.compress(DATA), -6),
        flipped(gzip.compress(DATA), -2),
        flipped(gzip.compress(DATA), 5000),
        flipped(zstd.compress(DATA, options={zstd.CompressionParameter.checksum_flag: 1}), -1),
        b"\x1f\x8bnot gzip at all",
        b"\x28\xb5\x2f\xfdnot zstd at all",
    ],
    ids=["crc", "length", "middle", "zstd checksum", "gzip header", "zstd header"],
)
def test_refuses_corrupt_data(packed: bytes) -> None:
    """A wrong checksum or a damaged stream is refused, not passed on as data."""
    with pytest.raises(InvalidArchive, match=r"corrupt|cut off"):
        whole(packed)


@pytest.mark.parametrize("packed", [gzip.compress(b"x"), zstd.compress(b"x")])
def test_refuses_garbage_behind_the_end(packed: bytes) -> None:
    """Bytes behind the compressed data that are not compressed data are refused."""
    with pytest.raises(InvalidArchive, match="behind"):
        whole(packed + b"garbage")


def test_reads_small_pieces() -> None:
    """The magic is found and the data whole though the pipe gives one byte at a time."""
    reader, writer = os.pipe()
    packed = zlib.compress(b"hello", wbits=31)
    from threading import Thread  # noqa: PLC0415 - only here

    def feed() -> None:
        for at in range(len(packed)):
            os.write(writer, packed[at : at + 1])
        os.close(writer)

    thread = Thread(target=feed)
    thread.start()
    stream = Source(reader)
    assert stream.take(5) == b"hello"
    assert stream.at_end()
    thread.join()
    os.close(reader)


def test_counts_what_it_read() -> None:
    """Compressed bytes read are reported as they are read, up to all of them."""
    packed = gzip.compress(os.urandom(1_000_000))
    fd = os.memfd_create("x")
    os.write(fd, packed)
    os.lseek(fd, 0, os.SEEK_SET)
    seen: list[int] = []
    stream = Source(fd, seen.append)
    stream.drain()
    assert seen == sorted(seen)
    assert seen[-1] == stream.consumed == len(packed)
    assert stream.offset == 1_000_000
    os.close(fd)


@pytest.mark.parametrize("name", [b"a\nb", b"\xff\xfe", b"\x1b[31m", b"x" * 5000])
def test_prints_names_safely(name: bytes) -> None:
    """A name in a message has no control characters and a bounded length."""
    text = printable(name)
    assert text.isprintable()
    assert len(text) < 300
