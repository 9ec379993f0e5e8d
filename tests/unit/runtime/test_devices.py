"""Device nodes of the host."""

import os
import stat
from pathlib import Path

import pytest

from pluginsvc.runtime.devices import NotADevice, nodes_at


def test_node_has_the_hosts_numbers_and_mode() -> None:
    """A device is described as the host has it."""
    (node,) = nodes_at("/dev/null")
    assert node.spec() == {
        "path": "/dev/null",
        "type": "c",
        "major": 1,
        "minor": 3,
        "fileMode": stat.S_IMODE(os.stat("/dev/null").st_mode),
        "uid": 0,
        "gid": 0,
    }


def test_link_keeps_its_own_path(tmp_path: Path) -> None:
    """A link is resolved, and the node appears under the name that was asked for."""
    link = tmp_path / "link"
    link.symlink_to("/dev/zero")
    (node,) = nodes_at(str(link))
    assert (node.path, node.major, node.minor) == (str(link), 1, 5)


@pytest.mark.root
def test_directory_stands_for_all_devices_below(tmp_path: Path) -> None:
    """All nodes below a directory are given, sorted, with other files and links left out."""
    real = tmp_path / "real"
    (real / "deep").mkdir(parents=True)
    os.mknod(real / "deep" / "b", stat.S_IFBLK | 0o600, os.makedev(7, 1))
    os.mknod(real / "a", stat.S_IFCHR | 0o620, os.makedev(1, 3))
    (real / "a").chmod(0o620)
    (real / "file").touch()
    (real / "link").symlink_to("/dev/zero")
    alias = tmp_path / "alias"
    alias.symlink_to(real)
    found = nodes_at(str(alias))
    assert [(node.path, node.type, node.mode) for node in found] == [
        (f"{alias}/a", "c", 0o620),
        (f"{alias}/deep/b", "b", 0o600),
    ]


def test_what_is_no_device_is_refused(tmp_path: Path) -> None:
    """A file, an empty directory and nothing at all are errors."""
    file = tmp_path / "file"
    file.touch()
    for path in (file, tmp_path):
        with pytest.raises(NotADevice):
            nodes_at(str(path))
    with pytest.raises(FileNotFoundError):
        nodes_at(str(tmp_path / "nothing"))
