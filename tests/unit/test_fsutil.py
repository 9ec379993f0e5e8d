"""Durable writes and safe removal, with real trees, real mounts and real SIGKILLs."""

import ctypes
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pluginsvc.fsutil import StillMounted, atomic_write, boot_id, mounts_below, remove_tree, sync_dir

WRITER = """
import sys
from pathlib import Path
from pluginsvc.fsutil import atomic_write
number = 0
while True:
    number += 1
    atomic_write(Path(sys.argv[1]), b"%d\\n" % number * 5000)
    if number % 5 == 0:
        print(number, flush=True)
"""


def test_atomic_write_replaces_with_the_mode(tmp_path: Path) -> None:
    """The file has the new bytes and the mode, whatever it was before, and nothing else is left."""
    path = tmp_path / "f"
    path.write_bytes(b"old")
    path.chmod(0o644)
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = os.umask(0o077)
    try:
        atomic_write(path, b"", mode=0o640)
    finally:
        os.umask(before)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"", 0o640)
    assert os.listdir(tmp_path) == ["f"]


def test_atomic_write_replaces_a_link_and_not_its_target(tmp_path: Path) -> None:
    """A symbolic link in the file's place is replaced; what it points to is untouched."""
    target, path = tmp_path / "target", tmp_path / "f"
    target.write_bytes(b"kept")
    path.symlink_to(target)
    atomic_write(path, b"new")
    assert target.read_bytes() == b"kept"
    assert not path.is_symlink()


@pytest.mark.parametrize("step", ["fsync", "replace", "write"])
def test_atomic_write_that_fails_keeps_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Whatever step fails, the old bytes stay and no temporary file is left."""
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if step == "fsync":
            patch.setattr(os, "fsync", fail)
        elif step == "replace":
            patch.setattr(Path, "replace", fail)
        with pytest.raises((OSError, TypeError)):
            atomic_write(path, "no bytes" if step == "write" else b"new")  # type: ignore[arg-type]  # fails the write
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_killed_writer_leaves_whole_files(tmp_path: Path) -> None:
    """After SIGKILL at any moment the file holds all of one write, at least as new as the last that returned."""
    path = tmp_path / "f"
    for lines in (1, 3, 6):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        acknowledged = 0
        for _ in range(lines):
            acknowledged = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        acknowledged = int(rest[-1]) if rest else acknowledged
        process.wait()
        process.stdout.close()
        content = path.read_bytes()
        number = int(content.split(b"\n", 1)[0])
        assert content == b"%d\n" % number * 5000
        assert number >= acknowledged


def test_remove_tree_of_every_kind(tmp_path: Path) -> None:
    """Files, links, sockets, FIFOs and odd names go, with all below; what links point to stays."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"x")
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "b" / "file").touch()
    (top / "a" / "readonly").mkdir()
    (top / "a" / "readonly" / "file").touch()
    (top / "a" / "readonly").chmod(0o500)
    (top / "dirlink").symlink_to(outside)
    (top / "a" / "filelink").symlink_to(outside / "kept")
    (top / "dangling").symlink_to("nowhere")
    (top / "..." / "\n").mkdir(parents=True)
    (top / "-rf").touch()
    os.mkfifo(top / "fifo")
    Path(os.fsdecode(os.fsencode(top) + b"/\xff\xfe")).mkdir()
    remove_tree(top)
    assert sorted(os.listdir(tmp_path)) == ["outside"]
    assert (outside / "kept").read_bytes() == b"x"


def test_remove_tree_of_what_is_no_tree(tmp_path: Path) -> None:
    """A missing path is fine; a file goes; a link goes and its target stays."""
    remove_tree(tmp_path / "missing")
    file, target, link = tmp_path / "file", tmp_path / "target", tmp_path / "link"
    file.touch()
    (target / "kept").mkdir(parents=True)
    link.symlink_to(target)
    remove_tree(file)
    remove_tree(link)
    assert os.listdir(tmp_path) == ["target"]
    assert (target / "kept").is_dir()


def test_remove_tree_deeper_than_any_path(tmp_path: Path) -> None:
    """A tree far deeper than PATH_MAX and than the limits on recursion and descriptors is removed."""
    top = tmp_path / "top"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(2500):
        os.mkdir("directory-name", dir_fd=fd)
        os.mkdir("sibling", dir_fd=fd)
        deeper = os.open("directory-name", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    before = set(os.listdir("/proc/self/fd"))
    remove_tree(top)
    assert os.listdir(tmp_path) == []
    assert set(os.listdir("/proc/self/fd")) == before


def test_remove_tree_again_after_an_interruption(tmp_path: Path) -> None:
    """What an interrupted removal left, under whatever names, a second one removes."""
    top = tmp_path / "top"
    for name in ("deep/er/est", ".rm-00000000-1/x", ".rm-00000000-2"):
        (top / name).mkdir(parents=True)
    remove_tree(top)
    assert not top.exists()


@contextmanager
def tmpfs(path: Path) -> Iterator[None]:
    """Mount a tmpfs; take it away at the end."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", os.fsencode(path), b"tmpfs", 0, None) != 0:
        raise OSError(ctypes.get_errno(), f"mount {path}")
    try:
        yield
    finally:
        libc.umount2(os.fsencode(path), 2)


@pytest.mark.root
@pytest.mark.parametrize("below", ["", "a", "a/b c"])
def test_remove_tree_refuses_mounts(tmp_path: Path, below: str) -> None:
    """With something mounted at or below it a tree is left whole, and so is what is mounted."""
    top = tmp_path / "top"
    (top / "a" / "b c").mkdir(parents=True)
    (top / "first").touch()
    with tmpfs(top / below):
        (top / below / "inside").touch()
        with pytest.raises(StillMounted, match="unmount it first") as caught:
            remove_tree(top)
        assert caught.value.mounts == [str(top / below)]
        assert (top / below / "inside").exists()
    assert (top / "first").exists()
    remove_tree(top)
    assert not top.exists()


@pytest.mark.root
@pytest.mark.parametrize(
    "name", ["a b", "tab\t", "line\n", "back\\slash", "\\040", "\\x41", "é", "#", os.fsdecode(b"\xff")]
)
def test_mounts_below_with_odd_names(tmp_path: Path, name: str) -> None:
    """Mount points are found whatever is in their names."""
    point = tmp_path / "top" / name
    point.mkdir(parents=True)
    with tmpfs(point):
        assert mounts_below(tmp_path / "top") == [str(point)]


@pytest.mark.root
def test_mounts_below_by_component_deepest_first(tmp_path: Path) -> None:
    """A sibling whose name starts the same is not below; nested mounts come deepest first; links are resolved."""
    for name in ("top", "topper"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("top")
    with tmpfs(tmp_path / "top"), tmpfs(tmp_path / "topper"):
        (tmp_path / "top" / "in").mkdir()
        with tmpfs(tmp_path / "top" / "in"):
            expected = [str(tmp_path / "top" / "in"), str(tmp_path / "top")]
            assert mounts_below(tmp_path / "top") == expected
            assert mounts_below(tmp_path / "link") == expected


@pytest.mark.root
def test_remove_tree_of_a_link_to_a_mount(tmp_path: Path) -> None:
    """A link to a place with mounts is only a link: it goes, and the mount stays."""
    target, link = tmp_path / "target", tmp_path / "link"
    target.mkdir()
    link.symlink_to(target)
    with tmpfs(target):
        (target / "kept").touch()
        remove_tree(link)
        assert not os.path.lexists(link)
        assert (target / "kept").exists()


def test_sync_dir_wants_a_directory(tmp_path: Path) -> None:
    """Syncing works on directories and fails on anything else."""
    sync_dir(tmp_path)
    (tmp_path / "f").touch()
    with pytest.raises(NotADirectoryError):
        sync_dir(tmp_path / "f")


def test_boot_id_is_stable() -> None:
    """The boot's ID is the same each time."""
    assert boot_id() == boot_id()
    assert len(boot_id()) == 36
