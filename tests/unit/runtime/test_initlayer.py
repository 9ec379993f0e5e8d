"""Files that every rootfs has before a start, against a rootfs that sets traps."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pluginsvc.runtime.initlayer import write_init_layer

pytestmark = pytest.mark.root

DIRECTORIES = ("dev/pts", "dev/shm", "proc", "sys")
FILES = (".dockerenv", "etc/resolv.conf", "etc/hosts", "etc/hostname", "dev/console")


def complete(rootfs: Path) -> None:
    for name in DIRECTORIES:
        facts = (rootfs / name).lstat()
        assert stat.S_ISDIR(facts.st_mode)
    for name in FILES:
        facts = (rootfs / name).lstat()
        assert stat.S_ISREG(facts.st_mode)
        assert (facts.st_size, stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid) == (0, 0o755, 0, 0)
    assert os.readlink(rootfs / "etc/mtab") == "/proc/mounts"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0])
def test_made_from_nothing_and_again(tmp_path: Path, umask: int) -> None:
    """An empty rootfs gets everything, whatever the umask, and a second time changes nothing."""
    before = os.umask(umask)
    try:
        write_init_layer(tmp_path)
        write_init_layer(tmp_path)
    finally:
        os.umask(before)
    complete(tmp_path)
    assert {stat.S_IMODE((tmp_path / name).lstat().st_mode) for name in ("dev", *DIRECTORIES)} == {0o755}


def _link(path: str, target: str) -> Callable[[Path, Path], None]:
    def work(rootfs: Path, outside: Path) -> None:
        place = rootfs / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target.format(outside=outside))

    return work


def _fifo(rootfs: Path, outside: Path) -> None:
    os.mkfifo(rootfs / "dev")
    (rootfs / "etc").mkdir()
    os.mkfifo(rootfs / "etc" / "hosts")


def _device(rootfs: Path, outside: Path) -> None:
    (rootfs / "dev").mkdir()
    os.mknod(rootfs / "dev" / "console", stat.S_IFCHR | 0o600, os.makedev(1, 3))


@pytest.mark.parametrize(
    "trap",
    [
        _link("etc", "{outside}"),
        _link("dev", "/"),
        _link("etc", "etc"),
        _link("etc/hosts", "{outside}/victim"),
        _link("etc/resolv.conf", "../../../../{outside}/victim"),
        _link("etc/mtab", "{outside}/victim"),
        _link(".dockerenv", "{outside}/new"),
        _link("dev/shm", "{outside}"),
        _fifo,
        _device,
    ],
)
def test_traps_reach_nothing_outside(tmp_path: Path, trap: Callable[[Path, Path], None]) -> None:
    """Links and special files in the rootfs are replaced, and nothing outside changes."""
    rootfs, outside = tmp_path / "rootfs", tmp_path / "outside"
    rootfs.mkdir()
    outside.mkdir()
    (outside / "victim").write_text("precious")
    trap(rootfs, outside)
    write_init_layer(rootfs)
    complete(rootfs)
    assert [path.name for path in outside.iterdir()] == ["victim"]
    assert (outside / "victim").read_text() == "precious"


def test_directories_stay_with_their_contents(tmp_path: Path) -> None:
    """A directory that has the name of a file or of a link stays, and so do owner and mode of what exists."""
    (tmp_path / "etc" / "hosts" / "deep").mkdir(parents=True)
    (tmp_path / "etc" / "mtab").mkdir()
    (tmp_path / "etc").chmod(0o711)
    (tmp_path / "proc").mkdir()
    os.chown(tmp_path / "proc", 7, 7)
    write_init_layer(tmp_path)
    assert (tmp_path / "etc" / "hosts" / "deep").is_dir()
    assert (tmp_path / "etc" / "mtab").is_dir()
    assert stat.S_IMODE((tmp_path / "etc").stat().st_mode) == 0o711
    assert (tmp_path / "proc").stat().st_uid == 7


def test_rootfs_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """The rootfs itself is not reached through a link either."""
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        write_init_layer(tmp_path / "link")
