"""A plugin's folder as a tar."""

import io
import os
import socket
import struct
import subprocess
import tarfile
from pathlib import Path

import pytest

from pluginsvc.client.archive import UnreadableFolder, write_plugin


class Collector(io.RawIOBase):
    def __init__(self) -> None:
        self.data = bytearray()

    def tell(self) -> int:
        return 0

    def write(self, data: bytes, /) -> int:  # type: ignore[override]  # narrower on purpose: tarfile writes bytes
        self.data += data
        return len(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give the folder of a plugin with next to nothing in it."""
    found = tmp_path / "plugin"
    (found / "rootfs").mkdir(parents=True)
    (found / "config.json").write_text("{}")
    return found


def members(folder: Path) -> list[tarfile.TarInfo]:
    out = Collector()
    write_plugin(folder, out)
    with tarfile.open(fileobj=io.BytesIO(out.data), errors="surrogateescape") as tar:
        return tar.getmembers()


def test_what_is_sent(folder: Path) -> None:
    """The configuration comes first, then the root with every kind of entry; what else is there is not sent."""
    root = folder / "rootfs"
    (root / "bin").mkdir()
    (root / "bin" / "tool").write_bytes(b"tool")
    (root / "bin" / "tool").chmod(0o4755)
    os.utime(root / "bin" / "tool", ns=(1_700_000_000_123_456_789,) * 2)
    (root / "bin" / "zlink").hardlink_to(root / "bin" / "tool")
    (root / "etc").symlink_to("/bin")
    os.mkfifo(root / "fifo")
    (root / os.fsdecode(b"\xff\n")).write_bytes(b"")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(root / "left.sock"))
    (folder / "README").write_text("not sent")
    found = {member.name: member for member in members(folder)}
    assert list(found) == [
        "config.json",
        "rootfs",
        "rootfs/bin",
        "rootfs/bin/tool",
        "rootfs/bin/zlink",
        "rootfs/etc",
        "rootfs/fifo",
        "rootfs/" + os.fsdecode(b"\xff\n"),
    ]
    tool = found["rootfs/bin/tool"]
    assert (tool.mode, tool.size, tool.mtime, tool.uid, tool.uname) == (0o4755, 4, 1_700_000_000, os.getuid(), "")
    assert (found["rootfs/bin/zlink"].islnk(), found["rootfs/bin/zlink"].linkname) == (True, "rootfs/bin/tool")
    assert found["rootfs/etc"].linkname == "/bin"
    assert found["rootfs/fifo"].isfifo()


def test_links_at_the_top(folder: Path, tmp_path: Path) -> None:
    """A root and a configuration that are symbolic links are followed."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("x")
    (folder / "rootfs").rmdir()
    (folder / "rootfs").symlink_to(tmp_path / "elsewhere")
    assert [(member.name, member.isdir()) for member in members(folder)][1:] == [
        ("rootfs", True),
        ("rootfs/file", False),
    ]


@pytest.mark.root
def test_file_capabilities(folder: Path) -> None:
    """A file capability goes along, byte for byte."""
    tool = folder / "rootfs" / "tool"
    tool.write_bytes(b"tool")
    value = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
    os.setxattr(tool, "security.capability", value)
    found = members(folder)[-1].pax_headers["SCHILY.xattr.security.capability"]
    assert found.encode("utf-8", "surrogateescape") == value


def test_deep_tree(folder: Path) -> None:
    """A tree as deep as a path can be is walked."""
    here = os.open(folder / "rootfs", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        assert len(members(folder)) == 1502
    finally:
        # deeper than the recursion with which pytest clears its folders away
        subprocess.run(["rm", "-rf", folder], check=True)


def test_file_that_ends_early(folder: Path) -> None:
    """A file with less in it than its size says is named, and the tar gets no end."""
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/sys/kernel/uevent_seqnum")
    out = Collector()
    with pytest.raises(UnreadableFolder, match="uevent_seqnum: unexpected end of data: nothing was created"):
        write_plugin(folder, out)
    assert not out.data.endswith(bytes(1024))


def test_file_that_is_gone(tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(UnreadableFolder, match=r"config\.json: No such file"):
        write_plugin(tmp_path, Collector())
