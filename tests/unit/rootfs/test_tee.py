import gzip
import hashlib
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pluginsvc.rootfs.tee import Teed, tee


def through(data: bytes, blob: int, *, step: int = 1 << 16, level: int = 1) -> Teed:
    reader, writer = os.pipe()

    def feed() -> None:
        with open(writer, "wb", buffering=0) as pipe:
            pipe.writelines(data[at : at + step] for at in range(0, len(data), step))

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        return tee(reader, blob, level=level)
    finally:
        os.close(reader)
        thread.join()


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=5000), st.sampled_from([1, 7, 300]), st.integers(1, 200), st.integers(0, 3))
def test_blob_and_digests(data: bytes, step: int, times: int, level: int) -> None:
    """The blob unpacks to what went in, and digests and size are those of the blob and of the plain bytes."""
    data *= times
    fd = os.memfd_create("blob")
    with open(fd, "w+b") as blob:
        found = through(data, fd, step=step * 100, level=level)
        blob.seek(0)
        packed = blob.read()
    assert gzip.decompress(packed) == data
    assert found == Teed(hashlib.sha256(packed).hexdigest(), hashlib.sha256(data).hexdigest(), len(packed))


def test_equal_input_gives_equal_blobs(tmp_path: Path) -> None:
    """Neither the clock nor the sizes of the pieces show in the blob."""
    data = os.urandom(100_000) * 20
    blobs = set()
    for step in (1000, 65_536, 1 << 20):
        with (tmp_path / "blob").open("w+b") as blob:
            through(data, blob.fileno(), step=step)
        blobs.add((tmp_path / "blob").read_bytes())
    assert len(blobs) == 1
    assert blobs.pop()[4:8] == bytes(4)


def test_a_full_disk_is_an_error() -> None:
    """What cannot be written is an error, not a shorter blob."""
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        through(os.urandom(1000), full.fileno())
