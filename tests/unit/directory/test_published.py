"""Published sockets: which links there are, and that nothing else is touched."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from anyio import to_thread
from hypothesis import given, settings
from hypothesis import strategies as st

from pluginsvc.directory.links import Trouble
from pluginsvc.directory.published import Link, Published, Wish, alias, linked, reconcile

RUN = Path("/run/pluginsvc-of-a-test/plugins")


def wish(name: str, number: int = 1, *, up: bool = True) -> Wish:
    return Wish(name if ":" in name else f"{name}:latest", f"{number:064x}", "p.sock", up)


def target(number: int = 1, *, sockets: Path = RUN) -> str:
    return f"{sockets}/{number:064x}/p.sock"


def links(directory: Path) -> dict[str, str]:
    return {path.name: os.readlink(path) for path in directory.iterdir() if path.is_symlink()}


@pytest.mark.parametrize(
    ("name", "called"),
    [
        ("sshfs:latest", "sshfs"),
        ("vieux/sshfs:latest", "vieux-sshfs"),
        ("vieux/sshfs:1.0", "vieux-sshfs-1.0"),
        ("localhost:5000/a/b:v2", "localhost-5000-a-b-v2"),
        ("registry.test/a:latest", "registry.test-a"),
        ("[::1]:5000/a:latest", "[--1]-5000-a"),
        ("a@sha256:0123", "a-sha256-0123"),
        ("a:latest-1", "a-latest-1"),
        ("latest:latest", "latest"),
    ],
)
def test_alias(name: str, called: str) -> None:
    """A plugin is called by its familiar name, without ``:latest`` and with dashes for what no file should be named."""
    assert alias(name) == called


def test_comes_when_it_is_up_and_goes_when_it_is_not_wished(tmp_path: Path) -> None:
    """A link is put when its plugin is up, stays when it is down, and goes when nobody wishes it."""
    assert reconcile(RUN, tmp_path, [wish("a/b", up=False)]) == frozenset()
    assert links(tmp_path) == {}
    assert reconcile(RUN, tmp_path, [wish("a/b")]) == frozenset()
    assert links(tmp_path) == {"a-b.sock": target()}
    made = (tmp_path / "a-b.sock").lstat()
    for up in (False, True):
        reconcile(RUN, tmp_path, [wish("a/b", up=up)])
        assert (tmp_path / "a-b.sock").lstat() == made
    reconcile(RUN, tmp_path, [])
    assert links(tmp_path) == {}


def test_reinstalled(tmp_path: Path) -> None:
    """A plugin that was removed and installed again has its link lead to the new one."""
    reconcile(RUN, tmp_path, [wish("a", 1)])
    assert reconcile(RUN, tmp_path, [wish("a", 2)]) == frozenset()
    assert links(tmp_path) == {"a.sock": target(2)}


def test_directory_is_made_for_the_first(tmp_path: Path) -> None:
    """The directory and its parents are made for the first plugin that is up, and whoever looks for plugins gets in."""
    directory = tmp_path / "docker" / "plugins"
    before = os.umask(0o077)
    try:
        assert reconcile(RUN, directory, [wish("a", up=False)]) == frozenset()
        assert not directory.parent.exists()
        assert reconcile(RUN, directory, [wish("a")]) == frozenset()
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o7777 for path in (directory, directory.parent)] == [0o755, 0o755]
    assert links(directory) == {"a.sock": target()}


def test_directory_that_is_a_link(tmp_path: Path) -> None:
    """A directory reached by a link is used, and keeps its mode."""
    real = tmp_path / "real"
    real.mkdir(0o700)
    (tmp_path / "link").symlink_to(real)
    assert reconcile(RUN, tmp_path / "link", [wish("a")]) == frozenset()
    assert links(real) == {"a.sock": target()}
    assert real.stat().st_mode & 0o7777 == 0o700


def a_file(path: Path) -> None:
    path.write_text("theirs")


def a_link_of_another_daemon(path: Path) -> None:
    path.symlink_to(target(1, sockets=Path("/run/other/plugins")))


def a_link_that_leads_out(path: Path) -> None:
    path.symlink_to(f"{RUN}/../p.sock")


def a_link_that_looks_alike(path: Path) -> None:
    path.symlink_to(f"{RUN}2/{1:064x}/p.sock")


FOREIGN: list[Callable[[Path], None]] = [
    a_file,
    Path.mkdir,
    os.mkfifo,
    a_link_of_another_daemon,
    a_link_that_leads_out,
    a_link_that_looks_alike,
]


@pytest.mark.parametrize("put", FOREIGN, ids=lambda put: put.__name__)
def test_what_is_not_ours_stays(tmp_path: Path, put: Callable[[Path], None]) -> None:
    """Whatever else is at a link's place, or beside it, stays as it is, and the plugin is told of as not published."""
    for name in ("a.sock", "b.sock"):
        put(tmp_path / name)
    before = [(tmp_path / name).lstat() for name in ("a.sock", "b.sock")]
    (trouble,) = reconcile(RUN, tmp_path, [wish("a")])
    assert trouble.path == str(tmp_path / "a.sock")
    assert "plugin a:latest has no link there: what is there is not ours" in trouble.why
    assert target() in trouble.why
    assert reconcile(RUN, tmp_path, []) == frozenset()
    assert [(tmp_path / name).lstat() for name in ("a.sock", "b.sock")] == before


def test_stale_links_go(tmp_path: Path) -> None:
    """Links into our RUN that nobody wishes, left by an earlier daemon, go; one of another ending is not looked at."""
    for name in ("gone.sock", "a.sock", "note"):
        (tmp_path / name).symlink_to(target(7))
    assert reconcile(RUN, tmp_path, [wish("a", 1)]) == frozenset()
    assert links(tmp_path) == {"a.sock": target(1), "note": target(7)}


def test_one_alias_for_two(tmp_path: Path) -> None:
    """Of two plugins with one alias the one that has it keeps it, up or not, until it goes; else the first has it."""
    one, two = wish("a/b", 1), wish("a-b", 2)
    down = one._replace(up=False)
    assert reconcile(RUN, tmp_path, [down, two])
    assert links(tmp_path) == {}
    reconcile(RUN, tmp_path, [two])
    for present in ([one, two], [one, two._replace(up=False)]):
        (trouble,) = reconcile(RUN, tmp_path, present)
        assert "plugin a/b:latest has no link there: a-b:latest has that name" in trouble.why
        assert links(tmp_path) == {"a-b.sock": target(2)}
    assert reconcile(RUN, tmp_path, [down, two]) == frozenset()
    assert reconcile(RUN, tmp_path, [one]) == frozenset()
    assert links(tmp_path) == {"a-b.sock": target(1)}


def test_only_links_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no link is never looked at, as it may be the mount point of a server that is gone."""
    for name in ("a.sock", "b.sock"):
        (tmp_path / name).mkdir()
    (tmp_path / "c.sock").symlink_to(target(7))
    looked = []
    readlink = os.readlink

    def watched(name: str, **options: Any) -> str:
        looked.append(name)
        return readlink(name, **options)

    monkeypatch.setattr(os, "readlink", watched)
    assert len(reconcile(RUN, tmp_path, [wish("a")])) == 1
    assert set(looked) == {"c.sock"}


def test_too_long_a_name(tmp_path: Path) -> None:
    """A name that no file can have is told of, the longest that one can have is published, and others are as well."""
    longest, longer = wish("a" * 250, 1), wish("b" * 251, 2)
    (trouble,) = reconcile(RUN, tmp_path, [longer, longest])
    assert "File name too long" in trouble.why
    assert links(tmp_path) == {f"{'a' * 250}.sock": target(1)}


def test_something_comes_between_look_and_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody puts at the place after we have looked there stays."""
    symlink = os.symlink

    def late(source: str, name: str, **options: Any) -> None:
        (tmp_path / name).write_text("theirs")
        symlink(source, name, **options)

    monkeypatch.setattr(os, "symlink", late)
    (trouble,) = reconcile(RUN, tmp_path, [wish("a")])
    assert "not ours" in trouble.why
    assert (tmp_path / "a.sock").read_text() == "theirs"


def test_something_comes_in_place_of_a_stale_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody has put in place of a stale link after we have looked there stays."""
    (tmp_path / "a.sock").symlink_to(target(7))
    readlink = os.readlink

    def late(name: str, **options: Any) -> str:
        found = readlink(name, **options)
        (tmp_path / name).unlink()
        (tmp_path / name).write_text("theirs")
        return found

    monkeypatch.setattr(os, "readlink", late)
    assert reconcile(RUN, tmp_path, []) == frozenset()
    assert (tmp_path / "a.sock").read_text() == "theirs"


def test_published_are_those_with_a_link(tmp_path: Path) -> None:
    """Plugins are published whose own link is there, up or not; of two with one alias the one that has it is."""
    one, two = wish("a/b", 1)._replace(volumes=True, mount="/mnt/a"), wish("a-b", 2)
    taken, down = wish("taken", 3), wish("down", 4, up=False)
    (tmp_path / "taken.sock").touch()
    reconcile(RUN, tmp_path, [one, two, taken, down])
    links = [Link("a-b", f"{tmp_path}/a-b.sock", volumes=True, plugin_id=f"{1:064x}", mount="/mnt/a")]
    assert linked(RUN, tmp_path, [two, one._replace(up=False), taken, down]) == links
    assert linked(RUN, tmp_path, [two, taken, down]) == []
    assert linked(RUN, tmp_path / "nowhere", [one]) == []


@pytest.mark.parametrize("place", ["file", "dangling"])
def test_directory_that_cannot_be(tmp_path: Path, place: str) -> None:
    """A directory that cannot be used is told of, with what to do, when there is something to publish."""
    directory = tmp_path / place
    if place == "file":
        directory.touch()
    else:
        directory.symlink_to(tmp_path / "nowhere")
    (trouble,) = reconcile(RUN, directory, [wish("a")])
    assert trouble.path == str(directory)
    assert "publish-dir" in trouble.why


@contextmanager
def disk(path: Path, *options: str) -> Iterator[None]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", *options, "none", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.mark.root
def test_disk_that_is_full_or_read_only(tmp_path: Path) -> None:
    """On a full or read-only disk each link that cannot be put or deleted is told of; later they all are as wished."""
    place = tmp_path / "disk"
    wishes = [wish("a", 1), wish("b", 2)]
    # of four inodes the root takes one, and both fillers theirs
    with disk(place, "-o", "nr_inodes=4"):
        for name in ("x", "y"):
            (place / name).touch()
        (trouble,) = reconcile(RUN, place, wishes)
        assert "plugin b:latest has no link there: No space left on device" in trouble.why
        (place / "x").unlink()
        assert reconcile(RUN, place, wishes) == frozenset()
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        told = reconcile(RUN, place, [wish("c", 3)])
        assert sorted(os.path.basename(trouble.path) for trouble in told) == ["a.sock", "b.sock", "c.sock"]
        assert all("Read-only file system" in trouble.why for trouble in told)
        assert links(place) == {"a.sock": target(1), "b.sock": target(2)}


# few letters, so that many of them have one alias
_words = st.text("ab", min_size=1, max_size=2)
_names = st.builds(
    lambda host, parts, tag: f"{host}{''.join(parts)}:{tag}",
    st.sampled_from(["", "a:1/", "b.a/"]),
    st.lists(_words, min_size=1, max_size=3).map(lambda words: ["/-"[len(words) % 2].join(words)]),
    st.sampled_from(["latest", "a", "1"]),
)
_rounds = st.lists(st.dictionaries(_names, st.booleans(), max_size=6), min_size=1, max_size=5)


@settings(deadline=None, max_examples=150)
@given(_rounds, st.sets(_names.map(alias), max_size=3))
def test_different_plugins_never_share_a_link(rounds: list[dict[str, bool]], foreign: set[str]) -> None:
    """Whatever comes and goes, a link leads to a plugin called so, is given to no other meanwhile, and none lacks."""
    numbers = {name: number for number, name in enumerate(sorted(set().union(*rounds)), 1)}
    with tempfile.TemporaryDirectory() as top:
        directory = Path(top)
        for name in foreign:
            (directory / f"{name}.sock").touch()
        before: dict[str, str] = {}
        for present in rounds:
            wishes = [wish(name, numbers[name], up=up) for name, up in sorted(present.items())]
            troubles = reconcile(RUN, directory, wishes)
            found = links(directory)
            owners = {target(numbers[name]): name for name in present}
            assert all(f"{alias(owners[where])}.sock" == name for name, where in found.items())
            assert all(found[name] == where for name, where in before.items() if where in owners)
            for each in wishes:
                name = f"{alias(each.name)}.sock"
                published = found.get(name) == target(numbers[each.name])
                told = any(f"plugin {each.name} has no link there" in trouble.why for trouble in troubles)
                assert (published or told) if each.up else not told
                alone = sum(alias(other) == alias(each.name) for other in present) == 1
                assert published or not each.up or not alone or alias(each.name) in foreign
            before = found
        assert all((directory / f"{name}.sock").is_file() for name in foreign)


class Calls:
    """What is wished, and how often somebody asked."""

    def __init__(self, *wishes: Wish) -> None:
        self.wishes = list(wishes)
        self.asked = 0
        self._more = anyio.Event()

    def __call__(self) -> list[Wish]:
        self.asked += 1
        self._more.set()
        return self.wishes

    async def more(self) -> None:
        self._more = anyio.Event()
        with anyio.fail_after(10):
            await self._more.wait()


@pytest.mark.anyio
async def test_serves(tmp_path: Path) -> None:
    """Nothing is touched before all plugins are known; then the links are right before it has begun, and follow."""
    (tmp_path / "old.sock").symlink_to(target(7))
    wished = Calls(wish("a"))
    published = Published(RUN, tmp_path, wished)
    await published.settle()
    assert await to_thread.run_sync(links, tmp_path) == {"old.sock": target(7)}
    async with anyio.create_task_group() as group:
        await group.start(published.serve)
        assert await to_thread.run_sync(links, tmp_path) == {"a.sock": target()}
        wished.wishes = []
        published.trigger()
        await wished.more()
        wished.wishes = [wish("b", 2)]
        # after what is under way
        await published.settle()
        assert await to_thread.run_sync(links, tmp_path) == {"b.sock": target(2)}
        group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_looks_again_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that somebody has deleted comes back though nothing has happened."""
    monkeypatch.setattr("pluginsvc.directory.published._INTERVAL", 0.01)
    wished = Calls(wish("a"))
    async with anyio.create_task_group() as group:
        await group.start(Published(RUN, tmp_path, wished).serve)
        await to_thread.run_sync(os.unlink, tmp_path / "a.sock")
        with anyio.fail_after(10):
            while not await to_thread.run_sync(links, tmp_path):
                await wished.more()
        group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_withdraws_for_good(tmp_path: Path) -> None:
    """When plugins are being stopped all links go, and none comes back."""
    published = Published(RUN, tmp_path, Calls(wish("a")))
    async with anyio.create_task_group() as group:
        await group.start(published.serve)
        await published.withdraw()
        assert await to_thread.run_sync(links, tmp_path) == {}
        await published.settle()
        assert await to_thread.run_sync(links, tmp_path) == {}
        group.cancel_scope.cancel()


@pytest.mark.anyio
async def test_files_follow_the_links(tmp_path: Path) -> None:
    """A file is told of a link after it came, and before it goes that it will; its trouble is told once, as theirs."""
    told: list[tuple[list[str], list[str]]] = []

    def file(found: list[Link]) -> list[Trouble]:
        told.append(([link.alias for link in found], sorted(links(tmp_path))))
        return [Trouble("file", "of files")]

    (tmp_path / "c.sock").touch()
    wished = Calls(wish("a"), wish("c", 3))
    service = Published(RUN, tmp_path, wished, [file])
    with structlog.testing.capture_logs() as logs:
        async with anyio.create_task_group() as group:
            await group.start(service.serve)
            wished.wishes = [wish("b", 2, up=False)]
            await service.settle()
            wished.wishes = [wish("b", 2)]
            await service.settle()
            await service.withdraw()
            group.cancel_scope.cancel()
    assert told == [
        *[([], []), (["a"], ["a.sock"])],
        *[([], ["a.sock"]), ([], [])],
        *[([], []), (["b"], ["b.sock"])],
        *[([], ["b.sock"]), ([], [])],
    ]
    assert [os.path.basename(line["path"]) for line in logs] == ["c.sock", "file"]


@pytest.mark.anyio
async def test_off() -> None:
    """Without a directory nobody is even asked what is wished."""
    wished = Calls(wish("a"))
    published = Published(RUN, None, wished)
    async with anyio.create_task_group() as group:
        await group.start(published.serve)
        await published.settle()
        group.cancel_scope.cancel()
    assert wished.asked == 0


@pytest.mark.anyio
async def test_trouble_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trouble is logged when it begins and when it begins again; even a thread that cannot be had ends nothing."""
    published = Published(RUN, tmp_path, Calls(wish("a")))
    theirs = tmp_path / "a.sock"
    await to_thread.run_sync(theirs.touch)
    with structlog.testing.capture_logs() as logs:
        async with anyio.create_task_group() as group:
            await group.start(published.serve)
            await published.settle()
            assert [line["event"] for line in logs] == ["published.trouble"]
            await to_thread.run_sync(theirs.unlink)
            await published.settle()
            await to_thread.run_sync(theirs.unlink)
            await to_thread.run_sync(theirs.touch)
            await published.settle()
            assert [line["event"] for line in logs] == ["published.trouble"] * 2

            async def none_left(*_: object) -> None:
                raise RuntimeError("can't start new thread")

            with monkeypatch.context() as patch:
                patch.setattr(to_thread, "run_sync", none_left)
                await published.settle()
            assert logs[-1]["event"] == "published.failed"
            await to_thread.run_sync(theirs.unlink)
            await published.settle()
            assert await to_thread.run_sync(links, tmp_path) == {"a.sock": target()}
            group.cancel_scope.cancel()
