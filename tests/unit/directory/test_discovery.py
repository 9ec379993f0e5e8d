"""Files that say where legacy plugins are."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pluginsvc.directory import discovery
from pluginsvc.directory.address import TLSConfig
from pluginsvc.directory.discovery import BadPluginFile, Found, locate, places, plausible, scan
from tests.unit.directory.peers import bound

OFF = TLSConfig(insecure_skip_verify=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a directory with a short, real name."""
    with tempfile.TemporaryDirectory(prefix="p-") as path:
        yield Path(path).resolve()


@pytest.fixture
def run(folder: Path) -> Path:
    """Give RUN/plugins, with a socket of ours in it."""
    sockets = folder / "run" / "plugins"
    (sockets / "id").mkdir(parents=True)
    bound(sockets / "id" / "p.sock").close()
    return sockets


def found(folder: Path, name: str = "x") -> Found:
    """Return what is found in one directory, which has to be something."""
    one = locate([folder], folder / "none", name)
    assert one is not None
    return one


def wrong(folder: Path, name: str = "x") -> str:
    """Return why what is found cannot be used."""
    with pytest.raises(BadPluginFile) as failed:
        locate([folder], folder / "none", name)
    assert str(failed.value).startswith(f"plugin file {failed.value.file} is of no use: {failed.value.reason}")
    return f"{failed.value.file.relative_to(folder)}: {failed.value.reason}"


@pytest.mark.parametrize("name", ["echo", "foo"])
@pytest.mark.parametrize("inside", ["", "{}/"])
@pytest.mark.parametrize("address", ["unix:///var/lib/rexray.sock", "tcp://localhost:8080", "https://[::1]:1"])
def test_spec(folder: Path, name: str, inside: str, address: str) -> None:
    """A .spec file, in the directory or in one of its name, has an address, and TLS is not verified."""
    file = folder / inside.format(name) / f"{name}.spec"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"\n  {address}\n\n")
    one = found(folder, name)
    assert (one.name, one.file, one.address, one.tls) == (name, file, address, OFF)


@pytest.mark.parametrize(
    "content", ["plugins.example:80", "", "ftp://h:1", "unix://x", "tcp://", "unix:///a\nb", "unix:///"]
)
def test_spec_that_leads_nowhere(folder: Path, content: str) -> None:
    """An address without a known protocol and a place is refused, with the file's name."""
    (folder / "x.spec").write_text(content)
    assert wrong(folder).startswith(f"x.spec: invalid plugin address {content!r}: unknown protocol or place")


def test_json(folder: Path) -> None:
    """A .json file has address and TLS, with keys in any case, and the name is the file's, not the one in it."""
    tls = {"InsecureSkipVerify": False, "CAFile": "/ca", "certfile": "/cert", "KEYFILE": "/key", "More": 1}
    (folder / "x.json").write_text(
        json.dumps({"Name": "y", "ADDR": "https://example.com:8080/docker", "TLSConfig": tls})
    )
    one = found(folder)
    assert (one.name, one.address) == ("x", "https://example.com:8080/docker")
    assert one.tls == TLSConfig(ca_file="/ca", cert_file="/cert", key_file="/key")
    assert found(folder) == one


@pytest.mark.parametrize(
    ("tls", "read"), [("", None), (', "TLSConfig": null', None), (', "TLSConfig": {}', TLSConfig())]
)
def test_json_without_tls(folder: Path, tls: str, read: TLSConfig | None) -> None:
    """Without TLSConfig there is none, which is not the same as an empty one: the machine's authorities count."""
    (folder / "x").mkdir()
    (folder / "x" / "x.json").write_text(f'{{"Addr": "https://example.com:8080"{tls}}}')
    assert found(folder).tls == read


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"Addr": 7}', '{"Addr": "tcp://h:1", "TLSConfig": []}', "\xff", "[" * 60_000]
)
def test_json_that_is_none(folder: Path, content: str) -> None:
    """What is no JSON, or JSON of another shape or of any depth, is refused with the file's name."""
    (folder / "x.json").write_bytes(content.encode("latin-1"))
    assert wrong(folder).startswith("x.json: its content is not what its ending says: ")


def test_json_without_address(folder: Path) -> None:
    """A .json file without an address leads nowhere."""
    (folder / "x.json").write_text("{}")
    assert wrong(folder).startswith("x.json: invalid plugin address ''")


@pytest.mark.parametrize("file", ["x.sock", "x/x.sock"])
def test_socket(folder: Path, file: str) -> None:
    """A socket, in the directory or in one of its name, is an address, the same at each look, without verified TLS."""
    (folder / "x").mkdir()
    bound(folder / file).close()
    one = found(folder)
    assert (one.address, one.socket, one.tls) == (f"unix://{folder / file}", folder / file, OFF)
    assert found(folder) == one


def test_link_to_a_socket(folder: Path) -> None:
    """A symbolic link to a socket is fine, and its address is the real path, since whoever connects follows no link."""
    bound(folder / "real").close()
    (folder / "x.sock").symlink_to("real")
    assert found(folder).address == f"unix://{folder / 'real'}"


def a_file(path: Path) -> None:
    path.write_text("unix:///x")


def a_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("put", [a_file, a_dangling_link, Path.mkdir, os.mkfifo], ids=lambda put: put.__name__)
def test_no_socket(folder: Path, put: Callable[[Path], None]) -> None:
    """What ends in .sock and is no socket is passed over, without being opened."""
    put(folder / "x.sock")
    assert locate([folder], folder / "none", "x") is None
    (folder / "x.spec").write_text("tcp://h:1")
    assert found(folder).address == "tcp://h:1"


def a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("ending", ["spec", "json"])
@pytest.mark.parametrize("put", [Path.mkdir, os.mkfifo, a_device], ids=lambda put: put.__name__)
def test_no_regular_file(folder: Path, put: Callable[[Path], None], ending: str) -> None:
    """A pipe, a device or a directory in a file's place is refused at once, without being opened."""
    put(folder / f"x.{ending}")
    assert wrong(folder) == f"x.{ending}: it is no regular file"


@pytest.mark.parametrize("ending", ["sock", "spec", "json"])
def test_link_to_itself(folder: Path, ending: str) -> None:
    """A symbolic link that leads to itself is refused with the system's reason."""
    (folder / f"x.{ending}").symlink_to(f"x.{ending}")
    assert wrong(folder) == f"x.{ending}: Too many levels of symbolic links"


@pytest.mark.parametrize("ending", ["sock", "spec", "json"])
@pytest.mark.parametrize("target", ["itself", "nowhere"])
def test_link_that_leads_nowhere_hides_nothing(folder: Path, ending: str, target: str) -> None:
    """A symbolic link that loops or dangles hides no plugin of its name in a later directory."""
    (folder / "later").mkdir()
    (folder / f"x.{ending}").symlink_to(f"x.{ending}" if target == "itself" else target)
    (folder / "later" / "x.spec").write_text("tcp://h:1")
    one = locate([folder, folder / "later"], folder / "none", "x")
    assert one is not None
    assert one.address == "tcp://h:1"


def test_file_of_no_use_hides_the_next(folder: Path) -> None:
    """A file that is there and cannot be used is told of, though there is another of its name in a later directory."""
    (folder / "later").mkdir()
    (folder / "x.spec").write_text("nowhere")
    (folder / "later" / "x.spec").write_text("tcp://h:1")
    with pytest.raises(BadPluginFile):
        locate([folder, folder / "later"], folder / "none", "x")


@pytest.mark.parametrize("links", [40, 41])
def test_as_many_links_as_the_kernel_follows(folder: Path, links: int) -> None:
    """A chain of links is followed as far as the kernel would."""
    bound(folder / "real").close()
    (folder / "0").symlink_to("real")
    for number in range(1, links - 1):
        (folder / str(number)).symlink_to(str(number - 1))
    (folder / "x.sock").symlink_to(str(links - 2))
    if links > 40:
        assert wrong(folder) == "x.sock: Too many levels of symbolic links"
    else:
        assert found(folder).socket == folder / "real"


@pytest.mark.parametrize("ending", ["spec", "json"])
def test_large_file(folder: Path, ending: str) -> None:
    """A file is read up to 64 KiB; a larger one, of any size, is refused."""
    content = {"spec": "tcp://h:1", "json": '{"Addr": "tcp://h:1"}'}[ending]
    file = folder / f"x.{ending}"
    file.write_text(content.ljust(65536))
    assert found(folder).address == "tcp://h:1"
    os.truncate(file, 10_000_000)
    assert wrong(folder) == f"x.{ending}: it is larger than 65536 bytes"


def test_order(folder: Path) -> None:
    """The first directory that has a name wins, and in it sockets before .spec before .json, files before folders."""
    first, second = folder / "first", folder / "second"
    places = [f"{inside}x{ending}" for ending in (".sock", ".spec", ".json") for inside in ("", "x/")]
    files = [directory / place for directory in (first, second) for place in places]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".sock":
            bound(file).close()
        else:
            file.write_text("tcp://h:1" if file.suffix == ".spec" else '{"Addr": "tcp://h:1"}')
    for file in files:
        one = locate([folder / "missing", first, second], folder / "none", "x")
        assert one is not None
        assert one.file == file
        file.unlink()
    assert locate([first, second], folder / "none", "x") is None


def a_link(file: Path, target: Path) -> None:
    file.with_suffix(".sock").symlink_to(target)


def a_link_to_a_link(file: Path, target: Path) -> None:
    file.with_suffix(".other").symlink_to(target)
    a_link(file, file.with_suffix(".other"))


def a_spec(file: Path, target: Path) -> None:
    file.with_suffix(".spec").write_text(f"unix://{target}")


def a_spec_to_a_link(file: Path, target: Path) -> None:
    file.with_suffix(".other").symlink_to(target)
    a_spec(file, file.with_suffix(".other"))


def a_spec_with_dots(file: Path, target: Path) -> None:
    a_spec(file, target.parent / ".." / target.parent.name / target.name)


def a_json(file: Path, target: Path) -> None:
    file.with_suffix(".json").write_text(json.dumps({"Addr": f"unix://{target}"}))


OURS: list[Callable[[Path, Path], None]] = [
    a_link,
    a_link_to_a_link,
    a_spec,
    a_spec_to_a_link,
    a_spec_with_dots,
    a_json,
]


@pytest.mark.parametrize("put", OURS, ids=lambda put: put.__name__)
def test_ours_is_passed_over(folder: Path, run: Path, put: Callable[[Path, Path], None]) -> None:
    """Whatever leads to a socket of this daemon, there or not, is no legacy plugin, also if RUN is called by a link."""
    (folder / "var").symlink_to("run")
    for number, target in enumerate(("id/p.sock", "id/gone.sock")):
        put(folder / f"x{number}", run / target)
        for sockets in (run, folder / "var" / "plugins"):
            assert locate([folder], sockets, f"x{number}") is None
            assert scan([folder], sockets).plugins == []
    put(folder / "x2", folder / "run" / "plugins2" / "p.sock")
    assert (locate([folder], run, "x2") is None) == (put in {a_link, a_link_to_a_link})


def by_the_socket(run: Path, host: Path) -> Path:
    (run / "id" / "p.sock").unlink()
    (run / "id" / "p.sock").symlink_to(host)
    return run / "id" / "p.sock"


def by_a_folder(run: Path, host: Path) -> Path:
    (run / "id" / "sub").symlink_to(host.parent)
    return run / "id" / "sub" / host.name


def by_its_own_folder(run: Path, host: Path) -> Path:
    (run / "id").rename(run / "other")
    (run / "id").symlink_to(host.parent)
    return run / "id" / host.name


def by_dots(run: Path, host: Path) -> Path:
    (run / "id" / "sub").symlink_to(host.parent)
    return run / "id" / "sub" / ".." / host.parent.name / host.name


@pytest.mark.parametrize("put", OURS, ids=lambda put: put.__name__)
@pytest.mark.parametrize("swap", [by_the_socket, by_a_folder, by_its_own_folder, by_dots], ids=lambda one: one.__name__)
def test_what_leads_out_of_ours_is_ours(
    folder: Path,
    run: Path,
    swap: Callable[[Path, Path], Path],
    put: Callable[[Path, Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A plugin that replaces its socket, or a folder of it, by a link becomes no legacy plugin; it is not looked at."""
    (folder / "host").mkdir()
    bound(folder / "host" / "s").close()
    put(folder / "x", swap(run, folder / "host" / "s"))
    (folder / "var").symlink_to("run")
    put(folder / "y", folder / "var" / "plugins" / "id" / "p.sock")
    looked: list[str] = []
    for name in ("stat", "lstat", "readlink", "open"):
        real = getattr(os, name)

        def noted(path: object, *args: object, real: Callable[..., object] = real, **more: object) -> object:
            looked.append(str(path))
            return real(path, *args, **more)

        monkeypatch.setattr(os, name, noted)
    for sockets in (run, folder / "var" / "plugins"):
        assert locate([folder], sockets, "x") is None
        assert locate([folder], sockets, "y") is None
        assert scan([folder], sockets).plugins == []
        assert places([folder], sockets, []).places.keys() <= {folder, folder / "host", folder / "run", folder / "var"}
        assert [path for path in looked if path != str(run) and Path(path).is_relative_to(run)] == []


def test_what_is_behind_ours_is_found(folder: Path, run: Path) -> None:
    """Our published socket hides no legacy plugin of that name behind it."""
    (folder / "x.sock").symlink_to(run / "id" / "p.sock")
    (folder / "x.json").write_text('{"Addr": "tcp://h:1"}')
    one = locate([folder], run, "x")
    assert one is not None
    assert one.file == folder / "x.json"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "x/x", "/x", "a\0b", "a\nb", "\udcff", "a" * 251, "ü" * 126])
def test_names_that_no_plugin_has(name: str) -> None:
    """A name that leads elsewhere, is too long for a file or cannot be shown is no plugin's."""
    assert not plausible(name)


@pytest.mark.parametrize("name", ["x", "a b", "vol:latest", "...", "ü" * 125, "a" * 250])
def test_names_that_a_plugin_may_have(folder: Path, name: str) -> None:
    """Any other name is looked for as it is."""
    assert plausible(name)
    assert locate([folder], folder / "none", name) is None
    (folder / f"{name}.spec").write_text("tcp://h:1")
    assert found(folder, name).name == name


def test_changes_are_seen(folder: Path) -> None:
    """Another socket or file in the place of one, or another socket behind a file, is not equal to what was there."""
    spec = folder / "x.spec"
    spec.write_text(f"unix://{folder}/s")
    seen = [found(folder)]
    for number in range(2):
        (folder / "s").unlink(missing_ok=True)
        held = bound(folder / f"new{number}")
        (folder / f"new{number}").rename(folder / "s")
        seen.append(found(folder))
        held.close()
    (folder / "copy").write_text(spec.read_text())
    (folder / "copy").rename(spec)
    seen.append(found(folder))
    for number, one in enumerate(seen):
        assert one not in seen[:number]
    assert found(folder) == seen[-1]


@pytest.mark.parametrize("key", ["CAFile", "CertFile", "KeyFile"])
def test_changes_of_tls_files_are_seen(folder: Path, key: str) -> None:
    """Another file with certificates or a key is not equal to what was there, and is no new run of the plugin."""
    (folder / "x.json").write_text(json.dumps({"Addr": "https://h:1", "TLSConfig": {key: f"{folder}/pem"}}))
    seen = [found(folder)]
    for content in ("a", "ab"):
        (folder / "pem").write_text(content)
        seen.append(found(folder))
    assert seen[0] != seen[1] != seen[2] == found(folder)
    assert len({one.run for one in seen}) == 1


def test_tls_file_without_a_possible_name(folder: Path) -> None:
    """A name with a NUL is that of no file, and no reason to fail before the plugin is called."""
    (folder / "x.json").write_text(json.dumps({"Addr": "https://h:1", "TLSConfig": {"CAFile": "/a\0"}}))
    assert found(folder).stamps[2:] == ((),)


def test_scan(folder: Path) -> None:
    """A look at all finds each name once, sorted, and missing directories are fine."""
    assert scan([folder, folder / "none"], folder / "none") == ([], frozenset())
    (folder / "b.spec").write_text("tcp://h:1")
    (folder / "b.json").write_text('{"Addr": "tcp://h:2"}')
    (folder / "a").mkdir()
    bound(folder / "a" / "a.sock").close()
    (folder / "again").mkdir()
    (folder / "again" / "b.spec").write_text("tcp://h:3")
    (folder / "c.sock").symlink_to("a/a.sock")
    plugins, troubles = scan([folder, folder / "again"], folder / "none")
    assert [one.name for one in plugins] == ["a", "b", "c"]
    assert plugins[1].address == "tcp://h:1"
    assert troubles == frozenset()


def test_scan_passes_over_what_is_no_plugin(folder: Path) -> None:
    """A sub-directory counts only by a file of its own name, and files of other endings or bad names do not."""
    (folder / "sub").mkdir()
    (folder / "sub" / "other.spec").write_text("tcp://h:1")
    for name in ("README", ".spec", "x.spec.bak", b"\xff.spec", "a\nb.json"):
        (folder / os.fsdecode(name)).write_text("tcp://h:1")
    assert scan([folder], folder / "none") == ([], frozenset())
    (folder / "sub" / "sub.spec").write_text("tcp://h:1")
    assert [one.name for one in scan([folder], folder / "none").plugins] == ["sub"]


def test_troubles_hide_nothing(folder: Path) -> None:
    """A directory that is none, and a file of no use, are told of, and all the others are found."""
    (folder / "file").touch()
    (folder / "bad.json").write_text("{")
    (folder / "good.spec").write_text("tcp://h:1")
    plugins, troubles = scan([folder / "file", folder], folder / "none")
    assert [one.name for one in plugins] == ["good"]
    first, second = sorted(troubles)
    assert first == f"{folder}/file cannot be read: Not a directory; no legacy plugins are found there"
    assert second.startswith(f"plugin file {folder}/bad.json is of no use: ")


def test_places(folder: Path) -> None:
    """To be watched are: a directory and its folders; above a missing one the next that comes; where sockets are."""
    there, missing = folder / "there", folder / "a" / "b"
    (there / "x").mkdir(parents=True)
    (folder / "s.sock").write_bytes(b"")
    (there / "y.spec").write_text(f"unix://{folder}/s.sock")
    none = folder / "none"
    assert places([there, missing], none, [found(there, "y")]) == (
        {there: None, there / "x": {"x.sock", "x.spec", "x.json"}, folder: {"a", "s.sock"}},
        0,
    )
    missing.mkdir(parents=True)
    assert places([missing, there], none, []).places[missing] is None
    assert places([there, there / "later"], none, []).places[there] is None


def test_places_beside_a_link_that_loops(folder: Path) -> None:
    """A symbolic link that loops keeps no folder from being watched; one to a folder is watched as such."""
    for name in ("0", "5", "9"):
        (folder / name).symlink_to(name)
    for name in ("1", "4", "8"):
        (folder / name).mkdir()
    (folder / "7").symlink_to("8")
    plan = places([folder], folder / "none", [])
    assert plan.places.keys() == {folder, *(folder / name for name in "1478")}


def test_places_are_limited(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many sub-directories always the same ones are watched, and how many are not is told."""
    monkeypatch.setattr(discovery, "MAX_FOLDERS", 2)
    for name in ("c", "a", "d", "b"):
        (folder / name).mkdir()
    plan = places([folder], folder / "none", [])
    assert plan.places.keys() == {folder, folder / "a", folder / "b"}
    assert plan.left_out == 2
