"""The trees that the bench measures with."""

import hashlib
import io
import os
import subprocess
import tarfile

import pytest

from tests.bench import probes
from tests.bench.workload import Mixed, body, head

MB = 1024 * 1024


@pytest.fixture(scope="module")
def archive() -> bytes:
    out = io.BytesIO()
    Mixed("rootfs/tree", 300, 8 * MB).write(out)
    return out.getvalue()


def test_a_tree_has_the_entries_and_the_size_it_was_asked_for(archive: bytes) -> None:
    """Both come to their end together: not much more of one to reach the other."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = tar.getmembers()
    assert 300 <= len(members) < 450
    assert 8 * MB <= sum(member.size for member in members) < 13 * MB
    folders = {member.name for member in members if member.isdir()}
    assert all(member.name.rpartition("/")[0] in folders | {""} for member in members)


def test_the_same_tree_is_the_same_bytes_and_an_offset_makes_another(archive: bytes) -> None:
    """Rounds and runs compare like with like."""
    again, other = io.BytesIO(), io.BytesIO()
    Mixed("rootfs/tree", 300, 8 * MB).write(again)
    Mixed("rootfs/tree", 300, 8 * MB, offset=5).write(other)
    assert hashlib.sha256(again.getvalue()).digest() == hashlib.sha256(archive).digest()
    assert other.getvalue() != archive


def test_a_create_body_is_one_archive_with_its_config_first() -> None:
    """The salt makes each one of its kind."""
    with tarfile.open(fileobj=io.BytesIO(b"".join(body(head("7", files=[("run", 0o755, b"#!")]))))) as tar:
        assert tar.getnames() == ["config.json", "rootfs", "rootfs/salt", "rootfs/run"]
        salt = tar.extractfile("rootfs/salt")
        assert salt
        assert salt.read() == b"7"


def test_cost_counts_the_processes_that_were_waited_for() -> None:
    """CPU seconds of a child that has ended stay in its parent's account."""
    count = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"
    found = probes.cost(lambda: subprocess.run(["sh", "-c", count], check=True, timeout=30), lambda: [os.getpid()])
    assert found.cpu > 0.02
    assert found.peak > MB
