"""Files for engines: what they say, when they come and go, and that nothing else is touched."""

from __future__ import annotations

import os
import stat
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pluginsvc.directory.engine_files import podman_conf, spec_files
from pluginsvc.directory.links import Trouble
from pluginsvc.directory.published import Link

SOCKETS = Path("/run/pluginsvc-of-a-test/plugins")
MARK = f'# Written by pluginsvc for "{SOCKETS}";'
ENDING = "\n \n"


def link(alias: str, *, folder: str = "/pub", volumes: bool = True) -> Link:
    return Link(alias, f"{folder}/{alias}.sock", volumes)


def conf(path: Path, *links: Link) -> list[Trouble]:
    return list(podman_conf(path, SOCKETS, links))


def specs(directory: Path, *links: Link, publish_dir: Path = Path("/pub")) -> list[Trouble]:
    return list(spec_files(directory, publish_dir, SOCKETS, links))


def texts(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


def state(path: Path) -> tuple[int, ...]:
    """Return what tells a file from one in its place; when it was read does not."""
    found = path.lstat()
    return found.st_ino, found.st_mtime_ns, found.st_mode, found.st_nlink


def a_file(path: Path) -> None:
    path.write_text("theirs")


def an_empty_file(path: Path) -> None:
    path.touch()


def a_link_to_what_would_be_ours(path: Path) -> None:
    ours = path.with_name("real")
    ours.write_text(f"{MARK}\n" if path.suffix == ".conf" else f"unix:///pub/a.sock{ENDING}")
    path.symlink_to(ours)


def a_link_that_dangles(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


FOREIGN: list[Callable[[Path], None]] = [
    a_file,
    an_empty_file,
    a_link_to_what_would_be_ours,
    a_link_that_dangles,
    Path.mkdir,
    os.mkfifo,
]
foreign = pytest.mark.parametrize("put", FOREIGN, ids=lambda put: put.__name__)


def test_podman_is_told_of_volume_plugins(tmp_path: Path) -> None:
    """The file names each volume plugin by its alias, in order, and no other plugin; everybody may read it."""
    path = tmp_path / "p.conf"
    before = os.umask(0o077)
    try:
        assert conf(path, link("b"), link("net", volumes=False), link("a-1.0")) == []
    finally:
        os.umask(before)
    first, *rest = path.read_text().splitlines()
    assert first.startswith(MARK)
    assert rest == ["[engine.volume_plugins]", '"a-1.0" = "/pub/a-1.0.sock"', '"b" = "/pub/b.sock"']
    assert path.stat().st_mode & 0o7777 == 0o644


def test_podman_file_is_only_written_when_it_changes(tmp_path: Path) -> None:
    """The same plugins leave the file as it is, others replace it whole, and when there are none it goes."""
    path = tmp_path / "p.conf"
    conf(path, link("a"), link("b"))
    made = state(path)
    assert conf(path, link("b"), link("a")) == []
    assert state(path) == made
    for links in [(link("a"),), (link("a"), link("bc"))]:
        before = path.stat()
        assert conf(path, *links) == []
        assert path.stat().st_ino != before.st_ino
        assert list(tomllib.loads(path.read_text())["engine"]["volume_plugins"]) == [each.alias for each in links]
    assert conf(path, link("net", volumes=False)) == []
    assert list(tmp_path.iterdir()) == []
    assert conf(path) == []


def test_podman_file_of_another_version_is_ours(tmp_path: Path) -> None:
    """What begins with our mark is ours, whatever else it says: it is replaced, and goes when it names nobody."""
    path = tmp_path / "p.conf"
    path.write_text(f"{MARK} in other words")
    assert conf(path, link("a")) == []
    assert tomllib.loads(path.read_text()) == {"engine": {"volume_plugins": {"a": "/pub/a.sock"}}}
    path.write_text(f"{MARK} in other words")
    assert conf(path) == []
    assert not path.exists()


@foreign
def test_podman_file_that_is_not_ours_stays(tmp_path: Path, put: Callable[[Path], None]) -> None:
    """Whatever else is at its place stays, and is told of for as long as there is a plugin to name."""
    path = tmp_path / "p.conf"
    put(path)
    before = state(path), sorted(tmp_path.iterdir())
    (trouble,) = conf(path, link("a"))
    assert trouble.path == str(path)
    assert "not ours" in trouble.why
    assert conf(path) == []
    assert (state(path), sorted(tmp_path.iterdir())) == before


@example('a"\\b\x7f\n')
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_podman_reads_what_we_wrote(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Whatever characters are in a path, TOML gives them back."""
    path = tmp_path_factory.mktemp("t") / "p.conf"
    assert conf(path, Link(text, f"/{text}", volumes=True)) == []
    assert tomllib.loads(path.read_bytes().decode()) == {"engine": {"volume_plugins": {text: f"/{text}"}}}


def test_each_plugin_has_a_spec(tmp_path: Path) -> None:
    """A file has the address of its plugin to the byte, of whatever kind that is; everybody may read it; none lasts."""
    before = os.umask(0o077)
    try:
        assert specs(tmp_path, link("a"), link("net", volumes=False)) == []
    finally:
        os.umask(before)
    assert texts(tmp_path) == {"a.spec": f"unix:///pub/a.sock{ENDING}", "net.spec": f"unix:///pub/net.sock{ENDING}"}
    made = state(tmp_path / "a.spec")
    assert made[2:] == (stat.S_IFREG | 0o644, 1)
    assert specs(tmp_path, link("a")) == []
    assert texts(tmp_path) == {"a.spec": f"unix:///pub/a.sock{ENDING}"}
    assert state(tmp_path / "a.spec") == made
    assert specs(tmp_path) == []
    assert texts(tmp_path) == {}


@foreign
def test_spec_that_is_not_ours_stays(tmp_path: Path, put: Callable[[Path], None]) -> None:
    """Whatever else is at its place, or beside it, stays, and is told of for as long as the place is wanted."""
    put(tmp_path / "a.spec")
    (tmp_path / "c").write_text(f"unix:///pub/c.sock{ENDING}")
    before = sorted((path.name, state(path)) for path in tmp_path.iterdir())
    (trouble,) = specs(tmp_path, link("a"))
    assert trouble.path == str(tmp_path / "a.spec")
    assert "not ours" in trouble.why
    assert "unix:///pub/a.sock" in trouble.why
    assert specs(tmp_path) == []
    assert sorted((path.name, state(path)) for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "text",
    [
        "unix:///pub/a.sock",
        "unix:///pub/a.sock\n",
        f"unix:///pub/a.sock{ENDING}\n",
        f"unix:///pub/b.sock{ENDING}",
        f"unix:///pub/a.soc{ENDING}",
        f"unix:///a.sock{ENDING}",
    ],
)
def test_spec_that_is_nearly_ours_stays(tmp_path: Path, text: str) -> None:
    """A file is ours by its whole text: longer, shorter, other ones stay, and those with the same address."""
    (tmp_path / "a.spec").write_text(text)
    assert specs(tmp_path) == []
    assert len(specs(tmp_path, link("a"))) == 1
    assert texts(tmp_path) == {"a.spec": text}


def test_spec_beside_one_that_cannot_be(tmp_path: Path) -> None:
    """A name that no file can have is told of, the longest that one can have is put, and others are as well."""
    longest, longer = link("a" * 250), link("b" * 251)
    (trouble,) = specs(tmp_path, longer, longest)
    assert trouble.path == f"{tmp_path}/{'b' * 251}.spec"
    assert "File name too long; mend that, or install the plugin with another --alias" in trouble.why
    assert list(texts(tmp_path)) == [f"{'a' * 250}.spec"]


def test_something_comes_between_look_and_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody puts at the place after we have looked there stays, and no half file of ours is left."""
    real = os.link

    def late(source: str, name: str, **options: Any) -> None:
        (tmp_path / name).write_text("theirs")
        real(source, name, **options)

    monkeypatch.setattr(os, "link", late)
    (trouble,) = specs(tmp_path, link("a"))
    assert "not ours" in trouble.why
    assert texts(tmp_path) == {"a.spec": "theirs"}


def test_another_daemon_clears_up_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spec never gets the text of another daemon that works on the directory at once; the next try has its own."""
    real = os.link

    def late(source: str, name: str, **options: Any) -> None:
        (tmp_path / ".pluginsvc").unlink()
        (tmp_path / ".pluginsvc").write_text("unix:///other/b.sock")
        real(source, name, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", late)
        (trouble,) = specs(tmp_path, link("a"))
    assert trouble.path == str(tmp_path / "a.spec")
    assert specs(tmp_path, link("a")) == []
    assert texts(tmp_path) == {"a.spec": f"unix:///pub/a.sock{ENDING}"}


def test_another_daemon_with_the_same_directories(tmp_path: Path) -> None:
    """A spec is deleted with our link or when there is none; that of another daemon, or of who came there, stays."""
    pub = tmp_path / "pub"
    pub.mkdir()
    links = {
        "a": f"{SOCKETS}/{1:064x}/p.sock",
        "theirs": f"/run/other/plugins/{1:064x}/p.sock",
        "beside": f"{SOCKETS}2/{1:064x}/p.sock",
    }
    for name, target in links.items():
        (pub / f"{name}.sock").symlink_to(target)
    (pub / "file.sock").touch()
    both = [link(name, folder=str(pub)) for name in (*links, "file", "none")]
    place = tmp_path / "spec"
    assert specs(place, *both, publish_dir=pub) == []
    before = state(place / "theirs.spec")
    assert specs(place, publish_dir=pub) == []
    assert sorted(texts(place)) == ["beside.spec", "file.spec", "theirs.spec"]
    assert state(place / "theirs.spec") == before


def test_another_daemon_with_the_same_podman_file(tmp_path: Path) -> None:
    """The file of a daemon with other sockets is not ours: it stays, and is told of while there is a plugin to name."""
    path = tmp_path / "p.conf"
    for other in (Path("/run/other/plugins"), Path(f"{SOCKETS};x"), SOCKETS.parent):
        assert list(podman_conf(path, other, [link("b")])) == []
        before = state(path)
        (trouble,) = conf(path, link("a"))
        assert "not ours, move it away, or set another podman-conf" in trouble.why
        assert conf(path) == []
        assert state(path) == before
        assert list(podman_conf(path, other, [])) == []
        assert not path.exists()


def test_name_that_is_no_text(tmp_path: Path) -> None:
    """Beside a name that is not UTF-8 specs come and go."""
    with open(os.fsencode(tmp_path) + b"/\xff.spec", "wb") as file:
        file.write(b"theirs")
    assert specs(tmp_path, link("a")) == []
    assert specs(tmp_path) == []
    assert os.listdir(os.fsencode(tmp_path)) == [b"\xff.spec"]


def test_daemon_was_killed_over_a_podman_file(tmp_path: Path) -> None:
    """A half file of a killed daemon goes, though nothing is to be written; that of one that lives does not."""
    path = tmp_path / "p.conf"
    with subprocess.Popen(["true"]) as gone:
        pass
    stay = [f".p.conf.{os.getppid()}.0123abcd", ".p.conf.1.x", "p.conf.99.0123abcd", f".q.conf.{gone.pid}.0123abcd"]
    for left in (f".p.conf.{gone.pid}.0123abcd", f".p.conf.{os.getpid()}.0123abcd", *stay):
        (tmp_path / left).touch()
    assert conf(path) == []
    assert sorted(os.listdir(tmp_path)) == sorted(stay)


@pytest.mark.parametrize("wanted", [True, False])
def test_daemon_was_killed_over_a_spec(tmp_path: Path, *, wanted: bool) -> None:
    """A half file of a killed daemon is in nobody's way, and goes, whether there is another to put or not."""
    (tmp_path / ".pluginsvc").write_text("uni")
    if not wanted:
        assert specs(tmp_path) == []
        assert texts(tmp_path) == {}
        return
    assert specs(tmp_path, link("a")) == []
    assert texts(tmp_path) == {"a.spec": f"unix:///pub/a.sock{ENDING}"}


def test_directories_are_made_for_the_first(tmp_path: Path) -> None:
    """Directories are made when there is something to put into them, and whoever looks for plugins gets in."""
    before = os.umask(0o077)
    made = [tmp_path / name for name in ("c", "c/conf.d", "d", "d/spec")]
    try:
        for links in [[], [link("a")]]:
            assert conf(tmp_path / "c/conf.d/p.conf", *links) == specs(tmp_path / "d/spec", *links) == []
            assert [path.exists() for path in made] == [bool(links)] * 4
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o7777 for path in made} == {0o755}


def test_directory_that_cannot_be(tmp_path: Path) -> None:
    """A directory that cannot be used is told of, with what to do."""
    (tmp_path / "f").touch()
    (trouble,) = conf(tmp_path / "f" / "p.conf", link("a"))
    assert trouble.path == str(tmp_path / "f" / "p.conf")
    assert "Not a directory" in trouble.why
    assert "podman-conf" in trouble.why
    (trouble,) = specs(tmp_path / "f", link("a"))
    assert trouble.path == str(tmp_path / "f")
    assert "Not a directory" in trouble.why
    assert "spec-dir" in trouble.why


@pytest.mark.root
def test_disk_that_is_read_only(tmp_path: Path) -> None:
    """On a read-only disk each file that cannot be put, replaced or deleted is told of; later all are as wished."""
    conf(tmp_path / "p.conf", link("a"))
    specs(tmp_path, link("a"))
    before = texts(tmp_path)
    subprocess.run(["mount", "--bind", "-o", "ro", tmp_path, tmp_path], check=True)
    try:
        told = [*conf(tmp_path / "p.conf", link("b")), *conf(tmp_path / "p.conf"), *specs(tmp_path, link("b"))]
        assert [os.path.basename(trouble.path) for trouble in told] == ["p.conf", "p.conf", "a.spec", "b.spec"]
        assert all("Read-only file system" in trouble.why for trouble in told)
        assert texts(tmp_path) == before
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert [*conf(tmp_path / "p.conf"), *specs(tmp_path, link("b"))] == []
    assert texts(tmp_path) == {"b.spec": f"unix:///pub/b.sock{ENDING}"}
