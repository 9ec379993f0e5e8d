import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pluginsvc.fsutil import mounts_below
from pluginsvc.rootfs.mounts import MountFailed, below, family, make_shared, take_off, unmount, unmount_below

pytestmark = pytest.mark.root


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Path]:
    """Give a directory below which nothing stays mounted."""
    yield tmp_path
    unmount_below(tmp_path, lazy=True)


def tmpfs(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", path], check=True)
    return path


def propagation(path: Path) -> str:
    words: list[str | Path] = ["findmnt", "-n", "-o", "PROPAGATION", "--mountpoint", path]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def test_a_shared_mount_propagates(top: Path) -> None:
    """What is mounted below a shared directory in another mount namespace shows up in this one."""
    shared = top / "shared"
    (shared / "volume").mkdir(parents=True)
    make_shared(shared)
    assert propagation(shared) == "shared"
    subprocess.run(
        ["unshare", "--mount", "--propagation", "unchanged", "mount", "-t", "tmpfs", "tmpfs", shared / "volume"],
        check=True,
    )
    assert mounts_below(shared) == [str(shared / "volume"), str(shared)]


def test_making_it_shared_again_stacks_nothing(top: Path) -> None:
    """A second call, as after a restart of the daemon, leaves one mount."""
    (top / "a").mkdir()
    make_shared(top / "a")
    make_shared(top / "a")
    assert mounts_below(top) == [str(top / "a")]


def test_unmounts_deepest_first_and_no_sibling(top: Path) -> None:
    """Everything at and below the path goes, stacked mounts too; a sibling that shares its prefix stays."""
    tmpfs(top / "a")
    tmpfs(top / "a")
    tmpfs(top / "a/b/c d")
    sibling = tmpfs(top / "ab")
    unmount_below(top / "a")
    assert mounts_below(top) == [str(sibling)]


def test_unmounting_nothing_is_fine(top: Path) -> None:
    """A path that is no mount point, or not there, is no error."""
    unmount(top)
    unmount(top / "missing")
    unmount_below(top / "missing")


def test_a_busy_mount(top: Path) -> None:
    """A mount in use is refused with its path, unless it is detached lazily."""
    busy = tmpfs(top / "busy")
    fd = os.open(busy, os.O_RDONLY)
    try:
        with pytest.raises(MountFailed, match=r"busy.*lazily"):
            unmount(busy)
        unmount(busy, lazy=True)
        assert mounts_below(top) == []
    finally:
        os.close(fd)


def test_a_link_is_not_followed(top: Path) -> None:
    """Unmounting a symbolic link does not unmount what it points to."""
    mounted = tmpfs(top / "mounted")
    (top / "link").symlink_to(mounted)
    unmount(top / "link")
    assert mounts_below(top) == [str(mounted)]


def test_a_missing_directory(top: Path) -> None:
    """What cannot be mounted is an error that says what and why."""
    with pytest.raises(MountFailed, match="missing"):
        make_shared(top / "missing")


def test_below_tells_what_lies_on_what(top: Path) -> None:
    """Each mount comes before the one it lies on, whatever their names, and a family is one mount with its own."""
    tmpfs(top / "a")
    tmpfs(top / "a")
    tmpfs(top / "a" / "b")
    tmpfs(top / "b")
    found = below(top)
    order = [mount.id for mount in found]
    assert all(order.index(mount.id) < order.index(mount.parent) for mount in found if mount.parent in order)
    upper = next(mount for mount in found if mount.point == str(top / "a"))
    assert [mount.point for mount in family(found, {upper.id})] == [str(top / "a" / "b"), str(top / "a")]
    for mount in found:
        assert take_off(mount) is False
    assert mounts_below(top) == []


def test_a_thousand_mounts_on_each_other(top: Path) -> None:
    """However high a plugin stacks its mounts, they are found, and taken off from above."""
    tmpfs(top / "a")
    libc = ctypes.CDLL(None)  # a thousand runs of mount(8) would take their time
    for _ in range(1100):
        assert libc.mount(b"tmpfs", os.fsencode(top / "a"), b"tmpfs", 0, None) == 0
    found = below(top)
    assert len(found) == 1101
    for mount in found:
        take_off(mount)
    assert mounts_below(top) == []


def test_take_off_means_that_very_mount(top: Path) -> None:
    """A mount that is gone is fine, one that came to its place stays, and a hidden one is refused."""
    # as the daemon's own: two file systems in memory may look the same, number and device included
    (top / "a").mkdir(exist_ok=True)
    make_shared(top / "a")
    (first,) = below(top)
    unmount(top / "a")
    tmpfs(top / "a")
    assert take_off(first) is False
    assert len(mounts_below(top)) == 1
    (second,) = below(top)
    tmpfs(top / "a")
    with pytest.raises(MountFailed, match="another mount hides it"):
        take_off(second)
    assert len(mounts_below(top)) == 2


def test_take_off_what_is_in_use(top: Path) -> None:
    """A busy mount is detached, and that is told."""
    tmpfs(top / "a")
    (mount,) = below(top)
    with (top / "a" / "file").open("w"):
        assert take_off(mount) is True
        assert mounts_below(top) == []
