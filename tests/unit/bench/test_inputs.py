"""The layers that the bench keeps from run to run."""

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

from tests.bench.inputs import layer
from tests.bench.workload import Tiny

TREE = Tiny("top", 250)


def test_a_layer_is_what_it_says(tmp_path: Path) -> None:
    """Digest, diff ID, size and entries are those of the file; tiny files are tiny, a hundred in a folder."""
    found, file = layer(TREE, tmp_path)
    packed = file.read_bytes()
    plain = gzip.decompress(packed)
    assert found.size == len(packed)
    assert found.digest == f"sha256:{hashlib.sha256(packed).hexdigest()}"
    assert found.diff_id == f"sha256:{hashlib.sha256(plain).hexdigest()}"
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        members = tar.getmembers()
    assert found.entries == len(members) == 250 + 3 + 1
    assert max(member.size for member in members) < 2048


def test_a_layer_is_kept_and_a_damaged_one_made_anew(tmp_path: Path) -> None:
    """The same file serves again; one flipped byte is noticed; files of other code are thrown out."""
    found, file = layer(TREE, tmp_path)
    made = file.stat().st_mtime_ns
    assert layer(TREE, tmp_path) == (found, file)
    assert file.stat().st_mtime_ns == made
    data = file.read_bytes()
    file.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    (tmp_path / "older").mkdir()
    assert layer(TREE, tmp_path) == (found, file)
    assert file.read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == [file.parent.name]
