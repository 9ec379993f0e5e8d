import gzip
import hashlib
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from backports import zstd

from pluginsvc.model.manifest import MAX_MANIFEST
from pluginsvc.rootfs.child import DiskFull
from pluginsvc.rootfs.confinement import Confinement
from pluginsvc.rootfs.ingest import Archive
from pluginsvc.rootfs.source import InvalidArchive
from tests.unit.rootfs.archives import END, body, gnu_tar, header, member, pax, snapshot

pytestmark = [pytest.mark.anyio, pytest.mark.root]

CONFIG = member(b"config.json", b'{"description": "x"}')
ROOTFS = member(b"rootfs", kind=b"5", mode=b"0000755\0") + member(b"rootfs/f", b"data")


class Plugin:
    """Ingests archives, each into a place of its own, and keeps what came of the last."""

    def __init__(self, confinement: Confinement, top: Path) -> None:
        self._confinement = confinement
        self._top = top
        self._count = 0

    @property
    def staging(self) -> Path:
        return self._top / f"staging{self._count}"

    @property
    def blob(self) -> Path:
        return self._top / f"blob{self._count}"

    async def ingest(self, data: bytes | AsyncIterator[bytes]) -> Archive:
        self._count += 1
        self.staging.mkdir()
        chunks = body(data) if isinstance(data, bytes) else data
        with self.blob.open("wb") as blob:
            return await self._confinement.ingest(chunks, self.staging, blob.fileno(), level=1)

    def layer(self) -> str:
        """Return GNU tar's list of the layer."""
        return gnu_tar(
            "-tvzf", self.blob, "--numeric-owner", "--full-time", env={"TZ": "UTC", "PATH": os.environ["PATH"]}
        ).decode()


@pytest.fixture
def plugin(confinement: Confinement, tmp_path: Path) -> Plugin:
    return Plugin(confinement, tmp_path)


@pytest.mark.parametrize(
    "archive",
    [
        CONFIG + ROOTFS + END,
        ROOTFS + CONFIG + END,
        member(b"config.json", b"old") + ROOTFS + CONFIG + END,
        CONFIG + ROOTFS + bytes(10240),
        gzip.compress(CONFIG + ROOTFS + END),
        gzip.compress(CONFIG) + gzip.compress(ROOTFS + END),
        zstd.compress(CONFIG + ROOTFS + END),
        member(b"./config.json", b'{"description": "x"}') + member(b"./rootfs", kind=b"5", mode=b"0000755\0")
        + member(b"./rootfs/f", b"data") + END,
        member(b"/config.json", b'{"description": "x"}') + member(b"/rootfs/", kind=b"5", mode=b"0000755\0")
        + member(b"/rootfs//f", b"data") + END,
        member(b"README", b"dropped") + CONFIG + member(b"etc/passwd", b"dropped") + ROOTFS + member(b"rootfs2/x")
        + END,
    ],
    ids=["first", "last", "last config", "padded", "gzip", "gzip members", "zstd", "dots", "absolute", "others"],
)  # fmt: skip
async def test_splits_the_archive(plugin: Plugin, archive: bytes) -> None:
    """However it is written and compressed, the archive gives its config, its rootfs and one and the same layer."""
    found = await plugin.ingest(archive)
    assert found.config == b'{"description": "x"}'
    assert found.rootfs
    assert {path.name for path in plugin.staging.rglob("*")} == {"f"}
    packed = plugin.blob.read_bytes()
    assert (found.size, found.digest) == (len(packed), f"sha256:{hashlib.sha256(packed).hexdigest()}")
    assert found.diff_id == f"sha256:{hashlib.sha256(gzip.decompress(packed)).hexdigest()}"
    assert found.diff_id == "sha256:" + hashlib.sha256(
        member(b"./", kind=b"5", mode=b"0000755\0") + member(b"f", b"data") + END
    ).hexdigest()  # fmt: skip


async def test_an_empty_rootfs_counts(plugin: Plugin) -> None:
    """A rootfs directory with nothing in it is a rootfs, and gives a layer that can be read."""
    found = await plugin.ingest(CONFIG + member(b"rootfs/", kind=b"5", mode=b"0000755\0") + END)
    assert found.rootfs
    assert list(plugin.staging.iterdir()) == []
    assert plugin.layer().split()[-1] == "./"


async def test_says_what_is_missing(plugin: Plugin) -> None:
    """A missing config or rootfs is reported, for the caller to judge."""
    assert (await plugin.ingest(CONFIG + END)).rootfs is False
    assert (await plugin.ingest(ROOTFS + END)).config is None
    empty = await plugin.ingest(END)
    assert (empty.config, empty.rootfs) == (None, False)


@pytest.mark.parametrize("target", [b"rootfs/f", b"./rootfs/f", b"/rootfs/f", b"f"])
async def test_hard_links(plugin: Plugin, target: bytes) -> None:
    """A hard link's target loses its `rootfs/`, with or without a dot before it, in the tree and in the layer."""
    await plugin.ingest(CONFIG + ROOTFS + member(b"rootfs/d/h", kind=b"1", link=target) + END)
    assert (plugin.staging / "d/h").samefile(plugin.staging / "f")
    assert plugin.layer().endswith("d/h link to f\n")


@pytest.mark.parametrize(
    ("archive", "says"),
    [
        (b"", "empty"),
        (b"x" * 2000, "not a tar"),
        ((CONFIG + ROOTFS)[:-100], "cut off"),
        (CONFIG + ROOTFS, "end marker"),
        (gzip.compress(CONFIG + ROOTFS + END)[:-3], "cut off"),
        (gzip.compress(CONFIG + ROOTFS + END) + b"garbage", "behind"),
        (CONFIG + member(b"rootfs/../../x") + END, "'..'"),
        (CONFIG + member(b"../x") + END, "'..'"),
        (CONFIG + member(b"rootfs/l", kind=b"2", link=b"/") + member(b"rootfs/l/x") + END, "not a directory"),
        (CONFIG + member(b"rootfs/h", kind=b"1", link=b"rootfs/none") + END, "does not exist"),
        (CONFIG + member(b"rootfs", b"a file") + END, "not a directory"),
        (CONFIG + member(b"rootfs", kind=b"2", link=b"/") + END, "not a directory"),
        (CONFIG + member(b"rootfs/a/.wh.b") + END, "deletion"),
        (member(b"config.json", bytes(MAX_MANIFEST + 1)) + ROOTFS + END, "at most"),
        (header(b"config.json", size=1 << 40) + END, "at most"),
        (member(b"config.json", kind=b"2", link=b"/etc/passwd") + ROOTFS + END, "not a plain file"),
        (member(b"config.json", kind=b"5") + ROOTFS + END, "not a plain file"),
        (zstd.compress(bytes(512) + b"x" * 1000), "zeros"),
    ],
)
async def test_refuses(plugin: Plugin, archive: bytes, says: str) -> None:
    """Bad archives are the caller's fault, with a reason; nothing is left of the child."""
    with pytest.raises(InvalidArchive, match=says) as caught:
        await plugin.ingest(archive)
    assert caught.value.status == 400


async def test_the_largest_config(plugin: Plugin) -> None:
    """A config of exactly the limit passes whole."""
    config = os.urandom(MAX_MANIFEST)
    assert (await plugin.ingest(member(b"config.json", config) + ROOTFS + END)).config == config


async def test_memory_is_bounded(plugin: Plugin) -> None:
    """An archive made to fill the memory of its reader is refused, and the daemon lives."""

    async def bomb() -> AsyncIterator[bytes]:
        entry = pax(
            [(b"path", b"rootfs/" + b"/".join([b"n" * 200] * 18)), (b"SCHILY.xattr.user.x", b"x" * 900_000)], b"g"
        )
        for _ in range(3):
            yield entry

    with pytest.raises(InvalidArchive, match="global"):
        await plugin.ingest(bomb())


async def test_a_real_tree(plugin: Plugin, tmp_path: Path) -> None:
    """A tree packed by GNU tar comes out unchanged in staging, and again out of the layer by GNU tar."""
    top = tmp_path / "in"
    (top / "rootfs/bin").mkdir(parents=True)
    (top / "rootfs").chmod(0o755)
    (top / "config.json").write_text("{}")
    for number in range(300):
        (top / f"rootfs/bin/f{number}").write_bytes(os.urandom(number * 100))
    (top / "rootfs/big").write_bytes(os.urandom(3_000_000))
    (top / "rootfs/bin/f7").chmod(0o4755)
    os.mknod(top / "rootfs/tty", 0o20620, os.makedev(5, 0))
    os.link(top / "rootfs/big", top / "rootfs/bin/big")
    with (top / "rootfs/sparse").open("wb") as file:
        file.seek(50 << 20)
        file.write(b"end")
    archive = gnu_tar("--format=pax", "-S", "-C", top, "-c", ".")
    found = await plugin.ingest(archive)
    assert snapshot(plugin.staging) == snapshot(top / "rootfs")
    assert (plugin.staging / "sparse").stat().st_blocks < 1000
    (tmp_path / "out").mkdir()
    gnu_tar("-xpzf", plugin.blob, "-C", tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(top / "rootfs")
    again = await plugin.ingest(gzip.compress(archive))
    assert (again.digest, again.diff_id) == (found.digest, found.diff_id)


@pytest.mark.parametrize("where", ["staging", "blob"])
async def test_a_full_disk(confinement: Confinement, tmp_path: Path, where: str) -> None:
    """A full disk, below the rootfs or below the layer, is our trouble and not the archive's, and says so."""
    (tmp_path / "small").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path / "small"], check=True)
    try:
        staging = tmp_path / ("small" if where == "staging" else "") / "staging"
        staging.mkdir()
        place = tmp_path / ("small" if where == "blob" else "") / "blob"
        archive = CONFIG + member(b"rootfs/f", os.urandom(3 << 20)) + END
        with place.open("wb") as blob, pytest.raises(DiskFull, match="free some space"):
            await confinement.ingest(body(archive), staging, blob.fileno(), level=1)
    finally:
        subprocess.run(["umount", tmp_path / "small"], check=True)


async def test_a_slow_client_holds_nobody_up(plugin: Plugin, confinement: Confinement, tmp_path: Path) -> None:
    """While one client dawdles in the middle of its archive, another's is done."""
    go = anyio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield CONFIG
        await go.wait()
        yield ROOTFS + END

    async with anyio.create_task_group() as group:
        group.start_soon(plugin.ingest, slow())
        other = Plugin(confinement, tmp_path / "other")
        (tmp_path / "other").mkdir()
        assert (await other.ingest(CONFIG + ROOTFS + END)).rootfs
        go.set()
    assert (plugin.staging / "f").read_text() == "data"
