"""Links to propagated mounts: for which plugins, in which directories, and that nothing else is touched."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluginsvc.directory.links import Trouble
from pluginsvc.directory.mount_links import mount_links
from pluginsvc.directory.published import Link

PLUGINS = Path("/var/lib/pluginsvc-of-a-test/plugins")


def link(mount: Path | str, number: int = 1, *, volumes: bool = True) -> Link:
    return Link(f"p{number}", f"/pub/p{number}.sock", volumes, f"{number:064x}", str(mount))


def target(number: int = 1, *, plugins: Path = PLUGINS) -> str:
    return f"{plugins}/{number:064x}/propagated-mount"


def keep(directory: Path, *links: Link) -> list[Trouble]:
    return list(mount_links([directory], PLUGINS, links))


def found(directory: Path) -> dict[str, str]:
    return {path.name: os.readlink(path) for path in directory.iterdir() if path.is_symlink()}


def test_comes_and_goes_with_its_plugin(tmp_path: Path) -> None:
    """A link is there as long as its plugin is published, the same all the time; for another it leads elsewhere."""
    assert keep(tmp_path) == []
    assert found(tmp_path) == {}
    assert keep(tmp_path, link(tmp_path / "state")) == []
    assert found(tmp_path) == {"state": target()}
    made = (tmp_path / "state").lstat()
    assert keep(tmp_path, link(tmp_path / "state")) == []
    assert (tmp_path / "state").lstat() == made
    assert keep(tmp_path, link(tmp_path / "state", 2)) == []
    assert found(tmp_path) == {"state": target(2)}
    assert keep(tmp_path) == []
    assert found(tmp_path) == {}


def test_what_a_volume_is_found_by(tmp_path: Path) -> None:
    """By the path that the plugin tells, an engine gets at what is in the propagated mount on the host."""
    volume = tmp_path / "plugins" / f"{1:064x}" / "propagated-mount" / "data"
    volume.mkdir(parents=True)
    (tmp_path / "mnt").mkdir()
    assert list(mount_links([tmp_path / "mnt"], tmp_path / "plugins", [link(tmp_path / "mnt" / "state")])) == []
    assert (tmp_path / "mnt" / "state" / "data").samefile(volume)


@pytest.mark.parametrize(
    ("wanted", "made"),
    [
        ("{}/state", "state"),
        ("{}/state/", "state"),
        ("/{}/state", "state"),
        ("//{}//state//", "state"),
        ("{}/./state/.", "state"),
        ("{}/..state", "..state"),
        ("", ""),
        ("/", ""),
        ("{}", ""),
        ("{}/", ""),
        ("{}/a/b", ""),
        ("{}2/state", ""),
        ("{}/..", ""),
        ("{}/../state", ""),
        ("{}/a/../state", ""),
        ("x{}/state", ""),
        ("/elsewhere/state", ""),
    ],
)
def test_only_what_is_directly_there(tmp_path: Path, wanted: str, made: str) -> None:
    """By components a path is compared: one that is directly in the directory gets a link, and no other is told of."""
    directory = tmp_path / "mnt"
    directory.mkdir()
    before = sorted(tmp_path.rglob("*"))
    for spelled in (directory, Path(f"/{directory}")):
        assert keep(spelled, link(wanted.format(directory))) == []
        assert found(directory) == ({made: target()} if made else {})
        assert sorted(tmp_path.rglob("*")) == sorted([*before, directory / made] if made else before)


@given(st.lists(st.sampled_from(["", ".", "..", "mnt", "a", "b"]), max_size=6).map("/".join))
def test_no_link_is_anywhere_else(tmp_path_factory: pytest.TempPathFactory, tail: str) -> None:
    """Whatever a plugin's author writes, a link is in the directory, and at the very path that was written."""
    top = tmp_path_factory.mktemp("t")
    directory = top / "mnt"
    directory.mkdir()
    wanted = f"{top}/{tail}"
    assert keep(directory, link(wanted)) == []
    made = [path for path in top.rglob("*") if path.is_symlink()]
    assert made in ([], [Path(os.path.normpath(wanted))])
    assert all(path.parent == directory for path in made)


def test_only_volume_plugins(tmp_path: Path) -> None:
    """Other plugins have no volumes for engines, and get no link."""
    assert keep(tmp_path, link(tmp_path / "a", volumes=False), link(tmp_path / "b", 2)) == []
    assert found(tmp_path) == {"b": target(2)}


def test_several_directories(tmp_path: Path) -> None:
    """Each directory has the links of its own plugins; one that cannot be used is in nobody's way, and not made."""
    directories = [tmp_path / name for name in ("a", "none", "fifo", "b")]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "fifo")
    links = [link(directory / "state", number) for number, directory in enumerate(directories, 1)]
    for present in (links, []):
        none, fifo = mount_links(directories, PLUGINS, present)
        assert (none.path, fifo.path) == (str(tmp_path / "none"), str(tmp_path / "fifo"))
        assert "No such file or directory; mend that, or take it out of publish-mounts" in none.why
        assert "Not a directory" in fifo.why
        assert not (tmp_path / "none").exists()
        assert found(tmp_path / "a") == ({"state": target(1)} if present else {})
        assert found(tmp_path / "b") == ({"state": target(4)} if present else {})


def a_file(path: Path) -> None:
    path.write_text("theirs")


def a_link_of_an_operator(path: Path) -> None:
    path.symlink_to("/srv")


def a_link_of_another_daemon(path: Path) -> None:
    path.symlink_to(target(plugins=Path("/var/lib/other/plugins")))


def a_link_to_one_volume(path: Path) -> None:
    path.symlink_to(f"{target()}/data")


def a_link_to_no_plugin(path: Path) -> None:
    path.symlink_to(f"{PLUGINS}/../propagated-mount")


FOREIGN: list[Callable[[Path], None]] = [
    a_file,
    Path.mkdir,
    a_link_of_an_operator,
    a_link_of_another_daemon,
    a_link_to_one_volume,
    a_link_to_no_plugin,
]


@pytest.mark.parametrize("put", FOREIGN, ids=lambda put: put.__name__)
def test_what_is_not_ours_stays(tmp_path: Path, put: Callable[[Path], None]) -> None:
    """Whatever else is at a link's place, or beside it, stays as it is, and is told of while it is in the way."""
    for name in ("state", "other"):
        put(tmp_path / name)
    before = [(tmp_path / name).lstat() for name in ("state", "other")]
    (trouble,) = keep(tmp_path, link(tmp_path / "state"))
    assert trouble.path == str(tmp_path / "state")
    assert "plugin p1 has no link there: what is there is not ours, move it away" in trouble.why
    assert target() in trouble.why
    assert keep(tmp_path) == []
    assert [(tmp_path / name).lstat() for name in ("state", "other")] == before


def test_stale_links_go(tmp_path: Path) -> None:
    """Links into our propagated mounts that nobody wishes, left by an earlier daemon, go, whatever their names are."""
    for name in ("gone", "state", "mount.sock"):
        (tmp_path / name).symlink_to(target(7))
    assert keep(tmp_path, link(tmp_path / "state")) == []
    assert found(tmp_path) == {"state": target()}


def test_one_path_for_two(tmp_path: Path) -> None:
    """Of two plugins with one propagatedMount the one with the link keeps it until it goes; else the first has it."""
    one, two = link(tmp_path / "state", 1), link(f"{tmp_path}//state/", 2)
    assert keep(tmp_path, two) == []
    (trouble,) = keep(tmp_path, one, two)
    assert trouble.path == str(tmp_path / "state")
    assert "plugin p1 has no link there: p2 has that name; with one propagatedMount" in trouble.why
    assert found(tmp_path) == {"state": target(2)}
    assert keep(tmp_path, one) == []
    assert found(tmp_path) == {"state": target(1)}
    assert keep(tmp_path) == []
    assert len(keep(tmp_path, one, two)) == 1
    assert found(tmp_path) == {"state": target(1)}


@pytest.mark.root
def test_disk_that_is_read_only(tmp_path: Path) -> None:
    """On a read-only disk each link that cannot be put or deleted is told of, in a directory of its own."""
    keep(tmp_path, link(tmp_path / "old", 7))
    subprocess.run(["mount", "--bind", "-o", "ro", tmp_path, tmp_path], check=True)
    try:
        told = keep(tmp_path, link(tmp_path / "new"))
        assert [os.path.basename(trouble.path) for trouble in told] == ["old", "new"]
        assert all("Read-only file system" in trouble.why for trouble in told)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert keep(tmp_path, link(tmp_path / "new")) == []
    assert found(tmp_path) == {"new": target()}
