import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pluginsvc.fsutil import mounts_below
from pluginsvc.rootfs.mounts import MountFailed, make_shared, unmount, unmount_below

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
