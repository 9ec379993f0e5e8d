"""Reading config.json: folding, nulls, all problems at once, and the wire's exact shape."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluginsvc.model.config import InvalidPluginConfig, parse_config, with_layer
from pluginsvc.model.digest import Digest
from pluginsvc.model.plugin import Plugin, PluginConfig, PluginSettings

GOLDEN = Path(__file__).parents[2] / "data" / "wire"


def parse(document: Any) -> PluginConfig:
    return parse_config(msgspec.json.encode(document))


def problems(document: Any) -> list[str]:
    with pytest.raises(InvalidPluginConfig) as caught:
        parse(document)
    assert str(caught.value) == "failed to parse config: " + "; ".join(caught.value.problems)
    return caught.value.problems


FULL: dict[str, Any] = {
    "description": "d", "documentation": "u", "entrypoint": ["/p", ""], "workdir": "/w", "propagatedMount": "/mnt",
    "args": {"name": "args", "description": "x", "settable": ["value"], "value": ["a"]},
    "env": [{"name": "DEBUG", "description": "", "settable": ["value"], "value": "0"}, {"name": "NONE", "value": None}],
    "interface": {"socket": "p.sock", "types": ["docker.volumedriver/1.0", "volumedriver", "a.b.c/d/e"]},
    "linux": {"allowAllDevices": True, "capabilities": ["CAP_SYS_ADMIN"],
              "devices": [{"name": "fuse", "path": "/dev/fuse", "settable": ["path"]}]},
    "mounts": [{"name": "m", "source": "", "destination": "/d", "type": "bind", "options": ["rbind"]},
               {"destination": "/n", "type": "tmpfs", "source": None}],
    "network": {"type": "host"}, "ipchost": True, "PIDHOST": True, "user": {"uid": 1, "gid": 0},
    "rootfs": {"type": "layers", "diff_ids": ["sha256:x"]}, "unknown": {"ignored": [None]},
}  # fmt: skip


@pytest.mark.parametrize(("name", "document"), [("config-full", FULL), ("config-empty", {})])
def test_output_is_golden(name: str, document: dict[str, Any]) -> None:
    """A config is written with Moby's keys, order, nulls and omissions (REF §2)."""
    assert msgspec.json.encode(parse(document)) == (GOLDEN / f"{name}.json").read_bytes().strip()


def test_plugin_output_is_golden() -> None:
    """A plugin is written with Moby's keys, order, nulls and omissions (REF §2)."""
    config = parse(FULL)
    plugin = Plugin(
        config=config,
        enabled=True,
        id="ab" * 32,
        name="p:latest",
        plugin_reference="docker.io/library/p:latest",
        settings=PluginSettings.defaults(config),
    )
    assert msgspec.json.encode(plugin) == (GOLDEN / "plugin-full.json").read_bytes().strip()
    bare = Plugin(config=parse({}), enabled=False, id="cd" * 32, name="q:1", settings=PluginSettings())
    assert msgspec.json.encode(bare) == (GOLDEN / "plugin-empty.json").read_bytes().strip()


def test_what_is_written_reads_back() -> None:
    """A written config, with the layer a create adds, is a config again and keeps everything."""
    config = parse(FULL)
    digest = Digest.of(b"layer")
    again = parse_config(with_layer(config, digest))
    assert msgspec.structs.replace(again, rootfs=config.rootfs) == config
    assert msgspec.json.decode(with_layer(config, digest))["rootfs"] == {"diff_ids": [str(digest)], "type": "layers"}


def test_empty_members_that_moby_omits_are_omitted() -> None:
    """An empty protocol scheme, docker version or user member is not written."""
    raw = msgspec.json.encode(
        parse({"interface": {"protocolScheme": ""}, "dockerVersion": "", "user": {"uid": 0}, "rootfs": {"type": ""}})
    )
    assert b"ProtocolScheme" not in raw
    assert b"DockerVersion" not in raw
    assert b'"User":{}' in raw
    kept = msgspec.json.encode(parse({"interface": {"protocolScheme": "x/v1"}, "dockerVersion": "25"}))
    assert b'"ProtocolScheme":"x/v1"' in kept
    assert b'"DockerVersion":"25"' in kept


def recase(value: Any, change: Any) -> Any:
    if isinstance(value, dict):
        return {change(key): recase(member, change) for key, member in value.items()}
    return [recase(member, change) for member in value] if isinstance(value, list) else value


@given(st.randoms(use_true_random=False))
def test_keys_match_in_any_case(chance: Any) -> None:
    """Keys in whatever case mean the same, at every depth."""
    odd = recase(FULL, lambda key: "".join(chance.choice((letter.upper(), letter.lower())) for letter in key))
    assert parse(odd) == parse(FULL)


def nullable(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of every member of every object in ``value``."""
    found = []
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        if isinstance(value, dict):
            found.append((*path, key))
        found += nullable(member, (*path, key))
    return found


@pytest.mark.parametrize("path", nullable(FULL), ids=lambda path: ".".join(map(str, path)))
def test_null_means_nothing(path: tuple[Any, ...]) -> None:
    """A null member is the same as an absent one, wherever it stands."""

    def without(*, null: bool) -> dict[str, Any]:
        document = msgspec.json.decode(msgspec.json.encode(FULL))
        holder = document
        for key in path[:-1]:
            holder = holder[key]
        if null:
            holder[path[-1]] = None
        else:
            del holder[path[-1]]
        return document  # type: ignore[no-any-return]  # decoded JSON is Any

    outcomes: list[Any] = []
    for null in (True, False):
        try:
            outcomes.append(parse(without(null=null)))
        except InvalidPluginConfig as exc:
            outcomes.append(exc.problems)
    assert outcomes[0] == outcomes[1]


def test_every_wrong_type_is_reported_at_once() -> None:
    """All fields of a wrong type are told in one error, each with its path."""
    found = problems(
        {
            "entrypoint": "x",
            "env": [{"name": 5}, "no", {"settable": [1]}],
            "interface": [],
            "linux": {"capabilities": {}, "devices": [{"path": False}], "allowAllDevices": "yes"},
            "mounts": {},
            "pidHost": 1,
            "user": {"uid": -1, "gid": 2**32},
            "workDir": 1.5,
        }
    )
    assert found == [
        "Entrypoint: expected a list, got a string",
        "Env[0].Name: expected a string, got a number",
        "Env[1]: expected an object, got a string",
        "Env[2].Settable[0]: expected a string, got a number",
        "Interface: expected an object, got a list",
        "Linux.Capabilities: expected a list, got an object",
        "Linux.Devices[0].Path: expected a string, got a boolean",
        "Linux.AllowAllDevices: expected a boolean, got a string",
        "Mounts: expected a list, got an object",
        "PidHost: expected a boolean, got a number",
        "User.UID: expected an unsigned 32-bit number, got a number",
        "User.GID: expected an unsigned 32-bit number, got a number",
        "WorkDir: expected a string, got a number",
    ]


def test_every_wrong_value_is_reported_at_once() -> None:
    """All values that can never work are told in one error, each with its path."""
    found = problems(
        {
            "args": {"settable": ["nope"]},
            "entrypoint": [""],
            "env": [{"name": ""}, {"name": "A=B"}, {"name": "X"}, {"name": "X", "settable": ["source"]}],
            "interface": {"socket": "../x", "types": ["docker./1.0"]},
            "linux": {"capabilities": ["sys_admin"], "devices": [{"name": "d"}, {"name": "d", "path": "rel"}]},
            "mounts": [{"name": "m", "destination": "rel"}, {"name": "m", "destination": "/a/../b"}, {}],
            "propagatedMount": "mnt",
            "workDir": "../w",
        }
    )
    assert [line.partition(": ")[0] for line in found] == [
        "Interface.Socket",
        "Interface.Types[0]",
        "Entrypoint[0]",
        "WorkDir",
        "PropagatedMount",
        "Env[0].Name",
        "Env[1].Name",
        "Mounts[0].Destination",
        "Mounts[1].Destination",
        "Mounts[2].Destination",
        "Linux.Devices[0].Path",
        "Linux.Devices[1].Path",
        "Linux.Capabilities[0]",
        "Args.Settable",
        "Env[3].Name",
        "Env[3].Settable",
        "Mounts[1].Name",
        "Linux.Devices[1].Name",
    ]


@pytest.mark.parametrize(
    "socket", ["a/b", "..", ".", "/abs", "a\0b", "x" * 65, "é" * 33], ids=lambda text: repr(text)[:12]
)
def test_socket_names_that_escape_or_do_not_fit(socket: str) -> None:
    """A socket is a plain file name of limited length in bytes (REF 7.47)."""
    assert problems({"interface": {"socket": socket}})[0].startswith("Interface.Socket")


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"entrypoint": None},
        {"interface": {"socket": "x" * 64}},
        {"interface": {"types": []}},
        {"mounts": [{"destination": "/a", "source": ""}, {"destination": "/a"}]},
        {"linux": {"devices": [{"name": "d", "settable": ["path"]}, {"path": ""}]}},
        {"env": [{"name": "A", "value": ""}]},
    ],
)
def test_accepted(document: dict[str, Any]) -> None:
    """What upstream's tests and real plugins have passes: no entrypoint, empty sources, paths still to be set."""
    parse(document)


@pytest.mark.parametrize(
    "raw", [b"", b"null", b"[]", b"5", b"{", b"{} x", b"\xff", b"[" * 200_000, b'{"a":' * 100_000, b'{"a":1e999}']
)
def test_what_is_no_json_object(raw: bytes) -> None:
    """What is no JSON object is refused, however deep or broken."""
    with pytest.raises(InvalidPluginConfig, match="failed to parse config: "):
        parse_config(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*FULL, "name", "source", "Value", "settable", "path"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_document_is_read_or_refused(document: Any) -> None:
    """No JSON document does anything but parse, stably, or raise the one error."""
    try:
        found = parse(document)
    except InvalidPluginConfig:
        return
    assert parse_config(msgspec.json.encode(found)) == found
