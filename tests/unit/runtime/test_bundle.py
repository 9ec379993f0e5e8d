"""What a start leaves on RUN."""

import json
import socket
from pathlib import Path

import msgspec
import pytest

from pluginsvc.model.options import Options
from pluginsvc.model.plugin import Device, Interface, Mount, PluginConfig, PluginSettings
from pluginsvc.runtime.bundle import Mark, Place, Record
from pluginsvc.runtime.process import ProcessId
from pluginsvc.runtime.spec import Launch, UnusableSettings

ID = "ab" * 32
RECORD = Record(
    name="n",
    container_id="c",
    boot="b",
    container=ProcessId(1, 2),
    monitor=ProcessId(3, 4),
    started_ns=5,
    log=Mark(6, 7),
)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Give the place of a plugin on an empty RUN."""
    return Place(tmp_path / "run", tmp_path / "logs", ID)


def launch(tmp_path: Path, **settings: object) -> Launch:
    rootfs = tmp_path / "rootfs"
    rootfs.mkdir(exist_ok=True)
    return Launch(
        plugin_id=ID,
        name="probe:latest",
        config=PluginConfig(entrypoint=["/p"], interface=Interface(socket="p.sock")),
        settings=PluginSettings(**settings),  # type: ignore[arg-type]  # by name
        rootfs=rootfs,
    )


@pytest.mark.parametrize("plugin_id", ["", "../" * 20, "ab", "AB" * 32, "a" * 63 + "/", "a" * 64 + "\n"])
def test_ids_that_are_none_are_refused(tmp_path: Path, plugin_id: str) -> None:
    """Nothing but 64 hex digits becomes a path."""
    with pytest.raises(ValueError, match="not a plugin ID"):
        Place(tmp_path, tmp_path, plugin_id)


def test_empty_place(place: Place) -> None:
    """Where nothing was started there is nothing, and removing it is fine."""
    assert place.container_id() is None
    assert place.record() is None
    assert place.exit_code("c") is None
    place.remove()


@pytest.mark.root
def test_prepared_and_removed(tmp_path: Path, place: Place) -> None:
    """A bundle names its rootfs and container; a stale socket is gone; removing leaves only the logs."""
    place.sockets.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "s"))
    (tmp_path / "s").rename(place.sockets / "p.sock")
    place.remove()
    place.prepare(launch(tmp_path), "container-1")
    assert list(place.sockets.iterdir()) == []
    assert place.sockets.stat().st_mode & 0o777 == 0o700
    assert place.container_id() == "container-1"
    assert place.record() is None
    spec = json.loads((place.bundle / "config.json").read_bytes())
    assert spec["root"]["path"] == str(tmp_path / "rootfs")
    assert spec["linux"]["cgroupsPath"] == "/pluginsvc-container-1"
    place.save(RECORD)
    assert place.record() == RECORD
    place.remove()
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == ["instances", "plugins"]
    assert place.logs.is_dir()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"mounts": [Mount(name="m", source="/no/such", destination="/m", type="bind")]}, "No such file or directory"),
        ({"mounts": [Mount(name="m", source="/dev/null/x", destination="/m", type="bind")]}, "Not a directory"),
        ({"devices": [Device(name="m", path="/dev/no-such")]}, "/dev/no-such: No such file or directory"),
        ({"devices": [Device(name="m", path="/etc/passwd")]}, "is no device"),
    ],
)
def test_what_the_host_lacks_is_named(tmp_path: Path, place: Place, settings: dict[str, object], problem: str) -> None:
    """A source or device that the host does not have is an error with its name, and nothing is written."""
    with pytest.raises(UnusableSettings) as caught:
        place.prepare(launch(tmp_path, **settings), "c")
    assert problem in str(caught.value)
    assert "'m'" in str(caught.value)
    assert "probe:latest" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_profile_is_read_before_anything_is_written(tmp_path: Path, place: Place) -> None:
    """A seccomp profile that cannot be read is an error with its name, and nothing is written."""
    asked = msgspec.structs.replace(launch(tmp_path), options=Options(seccomp="/no/such"))
    with pytest.raises(UnusableSettings, match="seccomp profile /no/such"):
        place.prepare(asked, "c")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": 1}', msgspec.json.encode(RECORD)[:-9]])
def test_record_in_ruins_is_no_record(place: Place, content: bytes) -> None:
    """A record that cannot be read counts as a start that never finished."""
    place.state.mkdir(parents=True)
    (place.state / "instance.json").write_bytes(content)
    assert place.record() is None


@pytest.mark.parametrize(("content", "expected"), [("0", 0), ("137", 137), ("-1", -1), ("", None), ("x", None)])
def test_exit_file(place: Place, content: str, expected: int | None) -> None:
    """The exit file holds a number, or counts as missing."""
    place.exits.mkdir(parents=True)
    (place.exits / "c").write_text(content)
    assert place.exit_code("c") == expected
