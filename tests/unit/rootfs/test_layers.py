import gzip
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from backports import zstd

from pluginsvc.model.digest import Digest
from pluginsvc.model.manifest import Descriptor
from pluginsvc.rootfs.child import ChildFailed
from pluginsvc.rootfs.confinement import Confinement
from pluginsvc.rootfs.layers import LayerDamaged
from pluginsvc.rootfs.source import InvalidArchive
from tests.support.procs import wait_until
from tests.unit.rootfs.archives import END, member, pax

pytestmark = [pytest.mark.anyio, pytest.mark.root]


@contextmanager
def opened(path: Path) -> Iterator[int]:
    blob = os.open(path, os.O_RDONLY)
    try:
        yield blob
    finally:
        os.close(blob)


def directory(name: bytes, **fields: bytes) -> bytes:
    return member(name, kind=b"5", mode=b"0000755\0", **fields)


async def pull(confinement: Confinement, top: Path, *layers: bytes) -> Path:
    """Apply layers in order and return the rootfs."""
    root = top / "root"
    root.mkdir()
    async with confinement.unpack(root) as unpacker:
        for number, layer in enumerate(layers):
            path = top / f"layer{number}"
            path.write_bytes(layer)
            seen: list[int] = []
            descriptor = Descriptor(media_type="x", digest=Digest.of(layer), size=len(layer))
            with opened(path) as blob:
                await unpacker.apply(blob, descriptor, seen.append, None)
            assert seen == sorted(seen)
            assert seen[-1] == len(layer)
    return root


def names(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


BASE = directory(b"a") + member(b"a/f", b"1") + directory(b"a/d") + member(b"a/d/g", b"1") + member(b"b", b"1") + END


@pytest.mark.parametrize(
    ("upper", "left"),
    [
        (member(b".wh.b"), {"a", "a/f", "a/d", "a/d/g"}),
        (member(b"a/.wh.f"), {"a", "a/d", "a/d/g", "b"}),
        (member(b"a/.wh.d"), {"a", "a/f", "b"}),
        (member(b".wh.a"), {"b"}),
        (member(b"./.wh.a") + member(b"/.wh.b"), set()),
        (member(b"a/.wh..wh..opq"), {"a", "b"}),
        (member(b".wh..wh..opq"), set()),
        (member(b".wh.none") + member(b"none/.wh.none") + member(b"none/.wh..wh..opq"),
         {"a", "a/f", "a/d", "a/d/g", "b"}),
        (member(b"a/new") + member(b"a/.wh..wh..opq"), {"a", "a/new", "b"}),
        (member(b"a/.wh..wh..opq") + member(b"a/new"), {"a", "a/new", "b"}),
        (member(b"a/d/new") + member(b"a/.wh..wh..opq"), {"a", "a/d", "a/d/new", "b"}),
        (member(b"a/new") + member(b".wh.a"), {"a", "a/new", "b"}),
        (member(b".wh.a") + member(b"a/new"), {"a", "a/new", "b"}),
        (member(b"b", b"2") + member(b".wh.b"), {"a", "a/f", "a/d", "a/d/g", "b"}),
        (member(b"a", b"a file"), {"a", "b"}),
        (directory(b"b") + member(b"b/x"), {"a", "a/f", "a/d", "a/d/g", "b", "b/x"}),
        (member(b".wh..wh.plnk", kind=b"5") + member(b".wh..wh.plnk/1.2", b"x") + member(b".wh..wh.aufs"),
         {"a", "a/f", "a/d", "a/d/g", "b"}),
        (member(b"a/.wh.f/", kind=b"5"), {"a", "a/d", "a/d/g", "b"}),
    ],
)  # fmt: skip
async def test_whiteouts(confinement: Confinement, tmp_path: Path, upper: bytes, left: set[str]) -> None:
    """Whiteouts remove what lower layers brought, in whatever order they come, and never what their layer brings."""
    assert names(await pull(confinement, tmp_path, BASE, upper + END)) == left


@pytest.mark.parametrize(
    "upper",
    [
        member(b".wh."),
        member(b".wh.."),
        member(b".wh..."),
        member(b"a/.wh..."),
        member(b"../.wh.outside"),
        member(b"a/../.wh.b"),
        member(b"l/.wh.outside"),
        member(b"l/.wh..wh..opq"),
        member(b".wh.l/x"),
        member(b"b/.wh.x"),
    ],
)
async def test_whiteouts_stay_inside(confinement: Confinement, tmp_path: Path, upper: bytes) -> None:
    """A whiteout that names no plain file of its directory, or goes through a link, is refused and deletes nothing."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/kept").write_text("kept")
    base = BASE[:-1024] + member(b"l", kind=b"2", link=b"..") + END
    with pytest.raises(InvalidArchive, match="layer"):
        await pull(confinement, tmp_path, base, upper + END)
    assert (tmp_path / "outside/kept").read_text() == "kept"
    assert {"a/f", "a/d/g", "b"} <= names(tmp_path / "root")


async def test_layers_apply_in_order(confinement: Confinement, tmp_path: Path) -> None:
    """A later layer wins, plain, gzip and zstd alike; an empty one changes nothing."""
    root = await pull(
        confinement,
        tmp_path,
        zstd.compress(BASE),
        gzip.compress(member(b"a/f", b"2" * 2_000_000) + member(b"b", b"2") + END),
        member(b"b", b"3") + member(b"h", kind=b"1", link=b"a/f"),
        END,
        gzip.compress(END),
    )
    assert (root / "b").read_text() == "3"
    assert (root / "a/f").stat().st_size == 2_000_000
    assert (root / "h").samefile(root / "a/f")


async def test_directory_times(confinement: Confinement, tmp_path: Path) -> None:
    """A directory keeps the time that its last entry gave, though later layers put things into it."""
    root = await pull(
        confinement,
        tmp_path,
        directory(b"a", mtime=b"00000000012\0") + member(b"a/f") + directory(b"b", mtime=b"00000000013\0") + END,
        member(b"a/g") + directory(b"b", mtime=b"00000000014\0") + member(b"b/h") + END,
    )
    assert [(root / name).stat().st_mtime for name in "ab"] == [0o12, 0o14]


async def test_a_directory_that_comes_back(confinement: Confinement, tmp_path: Path) -> None:
    """A directory that was deleted and comes back unmentioned does not get the time of the deleted one."""
    root = await pull(
        confinement,
        tmp_path,
        directory(b"a", mtime=b"00000000012\0") + END,
        member(b".wh.a") + END,
        member(b"a/f") + END,
    )
    assert (root / "a").stat().st_mtime > 1e9


async def test_deepest_path(confinement: Confinement, tmp_path: Path) -> None:
    """A path as long as can be is made, has its time set, can be linked to and can be deleted."""
    deep = b"/".join([b"d"] * 2000)
    layer = pax([(b"path", deep)]) + directory(b"x") + pax([(b"path", deep + b"/f")]) + member(b"x") + member(b"other")
    layer += pax([(b"linkpath", deep + b"/f")]) + member(b"link", kind=b"1")
    root = await pull(confinement, tmp_path, layer + END, member(b".wh.d") + END)
    assert names(root) == {"other", "link"}


async def test_set_id_and_capabilities(confinement: Confinement, tmp_path: Path) -> None:
    """Set-id bits survive the change of owner, file capabilities survive both, though mounts are nosuid in there."""
    capability = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
    layer = pax([(b"SCHILY.xattr.security.capability", capability), (b"SCHILY.xattr.trusted.overlay.opaque", b"y")])
    root = await pull(
        confinement, tmp_path, layer + member(b"f", b"x" * 100, mode=b"0006755\0", uid=b"0000007\0") + END
    )
    info = (root / "f").stat()
    assert (info.st_mode & 0o7777, info.st_uid) == (0o6755, 7)
    assert os.getxattr(root / "f", "security.capability") == capability
    assert os.listxattr(root / "f") == ["security.capability"]


async def test_a_bad_layer_ends_the_pull(confinement: Confinement, tmp_path: Path) -> None:
    """The error names the layer and the entry; even a caller that passes over it cannot end the pull well."""
    layer = member(b"ok") + member(b"../evil") + END
    (tmp_path / "root").mkdir()
    (tmp_path / "layer").write_bytes(layer)
    descriptor = Descriptor(media_type="x", digest=Digest.of(layer), size=len(layer))
    unpacking = confinement.unpack(tmp_path / "root")
    unpacker = await unpacking.__aenter__()
    with opened(tmp_path / "layer") as blob:
        with pytest.raises(InvalidArchive, match=descriptor.digest.short) as caught:
            await unpacker.apply(blob, descriptor, lambda _: None, None)
        assert caught.value.entry == b"../evil"
        with pytest.raises(ChildFailed):
            await unpacker.apply(blob, descriptor, lambda _: None, None)
    with pytest.raises(ChildFailed):
        await unpacking.__aexit__(None, None, None)


async def test_the_block_fails(confinement: Confinement, tmp_path: Path) -> None:
    """An error of the caller's block comes out as it is."""
    with pytest.raises(KeyError):
        async with confinement.unpack(tmp_path):
            raise KeyError("x")


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress])
async def test_a_layer_that_the_disk_has_changed(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """A stored layer that still unpacks but is not what its digest says fails the pull."""
    meant, found = pack(member(b"a", b"1") + END), pack(member(b"a", b"2") + END)
    (tmp_path / "root").mkdir()
    (tmp_path / "layer").write_bytes(found)
    descriptor = Descriptor(media_type="x", digest=Digest.of(meant), size=len(meant))
    async with Confinement() as confinement:
        with opened(tmp_path / "layer") as blob, pytest.raises(LayerDamaged, match="is damaged"):
            async with confinement.unpack(tmp_path / "root") as unpacker:
                await unpacker.apply(blob, descriptor, lambda _: None, None)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress])
async def test_a_layer_that_is_still_arriving(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """A layer is unpacked as it arrives; nothing is read before it is counted in."""
    layer = pack(member(b"a", os.urandom(3_000_000)) + member(b"b", os.urandom(3_000_000)) + END)
    descriptor = Descriptor(media_type="x", digest=Digest.of(layer), size=len(layer))
    half = len(layer) // 2 + 200_000
    root = tmp_path / "root"
    root.mkdir()
    # what is not there yet is wrong in the file as well
    (tmp_path / "layer").write_bytes(layer[:half] + bytes(len(layer) - half))
    seen: list[int] = []
    counter = os.eventfd(0)
    async with Confinement() as confinement:
        with opened(tmp_path / "layer") as blob:
            async with confinement.unpack(root) as unpacker, anyio.create_task_group() as group:
                group.start_soon(unpacker.apply, blob, descriptor, seen.append, counter)
                os.eventfd_write(counter, 100)
                os.eventfd_write(counter, half - 100)
                with anyio.fail_after(10):
                    await anyio.to_thread.run_sync(wait_until, (root / "b").exists)
                assert max(seen) <= half
                with (tmp_path / "layer").open("r+b") as file:
                    file.seek(half)
                    file.write(layer[half:])
                os.eventfd_write(counter, len(layer) - half)
    os.close(counter)
    assert names(root) == {"a", "b"}
    assert seen[-1] == len(layer)
