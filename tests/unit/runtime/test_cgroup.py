"""What a machine's cgroups can do, and what the kernel counts in them."""

from pathlib import Path

import pytest

from pluginsvc.runtime import cgroup

V1 = "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n"
V2 = "low 0\nhigh 0\nmax 31\noom 1\noom_kill {}\noom_group_kill 0\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give an empty directory that stands for /sys/fs/cgroup."""
    monkeypatch.setattr(cgroup, "_ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "text"), [("memory/name/memory.oom_control", V1), ("name/memory.events", V2), ("unified/name/x", V2)]
)
@pytest.mark.parametrize("count", [0, 1, 12])
def test_kills_are_read_from_v1_and_v2(root: Path, file: str, text: str, count: int) -> None:
    """A process killed for want of memory is found in the file of either version, and nowhere else."""
    (root / file).parent.mkdir(parents=True)
    (root / file).write_text(text.format(count))
    assert cgroup.ran_out_of_memory("name") == (count > 0 and not file.endswith("x"))
    assert not cgroup.ran_out_of_memory("other")


def test_old_kernels_count_no_kills(root: Path) -> None:
    """Before Linux 4.13 there was no count, which then says nothing."""
    (root / "memory" / "name").mkdir(parents=True)
    (root / "memory" / "name" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\n")
    assert not cgroup.ran_out_of_memory("name")


def test_versions_are_told_apart(root: Path) -> None:
    """Hybrid counts as v1; in both versions limiting swap may have been switched off."""
    (root / "unified").mkdir()
    (root / "unified" / "cgroup.controllers").touch()
    (root / "memory").mkdir()
    assert (cgroup.pure_v2(), cgroup.counts_swap()) == (False, False)
    (root / "memory" / "memory.memsw.limit_in_bytes").touch()
    assert (cgroup.pure_v2(), cgroup.counts_swap()) == (False, True)
    (root / "cgroup.controllers").touch()
    assert (cgroup.pure_v2(), cgroup.counts_swap()) == (True, False)
    (root / "system.slice").mkdir()
    (root / "system.slice" / "memory.swap.max").touch()
    assert (cgroup.pure_v2(), cgroup.counts_swap()) == (True, True)
