"""The inventory: look-up, filters, reservations."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluginsvc.model.config import parse_config
from pluginsvc.model.digest import Digest
from pluginsvc.model.filters import InvalidFilter
from pluginsvc.model.lifecycle import State, Status
from pluginsvc.model.plugin import PluginRecord
from pluginsvc.plugins.inventory import AmbiguousName, Entry, Inventory, PluginExists, PluginNotFound

DIGEST = Digest.of(b"")


def entry(plugin_id: str, name: str, *, enabled: bool = False, types: tuple[str, ...] = ()) -> Entry:
    config = parse_config(msgspec.json.encode({"Interface": {"Types": list(types)}}))
    record = PluginRecord(id=plugin_id, name=name, config=DIGEST, manifest=DIGEST, blobs=[DIGEST], enabled=enabled)
    return Entry.of(record, config)


A, B, C = "a" * 64, "ab" * 32, "1" * 64


@pytest.fixture
def inventory() -> Inventory:
    found = Inventory()
    found.put(entry(A, "foo:latest", types=("docker.volumedriver/1.0",)))
    found.put(entry(B, "zed/q:1", enabled=True, types=("docker.authz/1.0",)))
    found.put(entry(C, "a1:latest"))
    return found


@pytest.mark.parametrize(
    ("typed", "plugin_id"),
    [
        (A, A),
        ("foo", A),
        ("foo:latest", A),
        ("docker.io/library/foo", A),
        ("docker.io/zed/q:1", B),
        ("1", C),
        ("aaa", A),
        ("aba", B),
        ("a1", C),
    ],
)
def test_find(inventory: Inventory, typed: str, plugin_id: str) -> None:
    """A plugin is found by ID, by name in any form, and by a unique prefix of its ID; a name beats a prefix."""
    assert inventory.find(typed).record.id == plugin_id


@pytest.mark.parametrize(
    "typed", ["", "UPPER", "a b", "zed/q", "foo:other", f"foo@sha256:{'0' * 64}", "f" * 64, "é", "//"]
)
def test_find_nothing(inventory: Inventory, typed: str) -> None:
    """What is malformed, has a digest or fits nothing is not found."""
    with pytest.raises(PluginNotFound, match=r"not found$"):
        inventory.find(typed)


def test_find_ambiguous(inventory: Inventory) -> None:
    """A prefix of several IDs is refused with Docker's text."""
    with pytest.raises(AmbiguousName, match=r'^multiple plugins found for "a"$'):
        inventory.find("a")


def names(body: bytes) -> list[str]:
    return [plugin["Name"] for plugin in msgspec.json.decode(body)]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, ["a1:latest", "foo:latest", "zed/q:1"]),
        ({"enabled": ["true"]}, ["zed/q:1"]),
        ({"enabled": ["1", "true"]}, ["zed/q:1"]),
        ({"enabled": ["0"]}, ["a1:latest", "foo:latest"]),
        ({"capability": ["volumedriver"]}, ["foo:latest"]),
        ({"capability": ["volumedriver", "authz"]}, ["foo:latest", "zed/q:1"]),
        ({"capability": ["volume"]}, []),
        ({"capability": ["authz"], "enabled": ["false"]}, []),
    ],
)
def test_listing(inventory: Inventory, filters: dict[str, list[str]], found: list[str]) -> None:
    """Plugins are listed by name; capabilities match exactly, and a plugin without types matches none."""
    assert names(inventory.listing(filters)) == found


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"foo": ["x"]}, "invalid filter 'foo'"),
        ({"enabled": ["potato"]}, "invalid filter 'enabled=[potato]'"),
        ({"enabled": ["true", "false"]}, "invalid filter 'enabled=[true false]'"),
        ({"enabled": []}, "invalid filter 'enabled'"),
    ],
)
def test_listing_refuses(inventory: Inventory, filters: dict[str, list[str]], message: str) -> None:
    """Unknown filters and impossible values are refused by name."""
    with pytest.raises(InvalidFilter) as caught:
        inventory.listing(filters)
    assert str(caught.value) == message


def test_listing_follows_changes(inventory: Inventory) -> None:
    """The encoded list is made anew after each change."""
    assert len(names(inventory.listing({}))) == 3
    inventory.drop(C)
    assert names(inventory.listing({})) == ["foo:latest", "zed/q:1"]
    inventory.put(entry(A, "foo:latest", enabled=True))
    assert names(inventory.listing({"enabled": ["true"]})) == ["foo:latest", "zed/q:1"]


def test_reserve(inventory: Inventory) -> None:
    """A name is held by one only, and free again when the block ends without a plugin."""
    with inventory.reserve("new:latest"):  # noqa: SIM117 - the first must hold while the second fails
        with pytest.raises(PluginExists, match=r"^plugin new:latest already exists$"), inventory.reserve("new:latest"):
            pytest.fail("two hold one name")
    with inventory.reserve("new:latest"):
        pass
    with pytest.raises(PluginExists), inventory.reserve("foo:latest"):
        pytest.fail("a taken name was given out")


@given(st.text(max_size=80))
def test_find_never_breaks(typed: str) -> None:
    """Whatever is typed, the answer is a plugin or one of our errors."""
    found = Inventory()
    found.put(entry(A, "foo:latest"))
    try:
        assert found.find(typed).record.id == A
    except (PluginNotFound, AmbiguousName):
        return


def test_new_id(inventory: Inventory) -> None:
    """IDs are 64 hex digits, and their short form is never all digits."""
    drawn = [inventory.new_id() for _ in range(2000)]
    assert len(set(drawn)) == 2000
    assert all(len(i) == 64 and not i[:12].isdecimal() for i in drawn)


def test_a_ruin_can_only_be_removed(inventory: Inventory) -> None:
    """A plugin that could not be loaded is neither listed nor found, holds its name, and is found for removal."""
    ruin = entry("e" * 64, "broken:latest")
    inventory.put_ruin(ruin)
    with pytest.raises(PluginNotFound):
        inventory.find("broken")
    assert "broken:latest" not in names(inventory.listing({}))
    with pytest.raises(PluginExists), inventory.reserve("broken:latest"):
        pytest.fail("the name was given out")
    assert inventory.find_ruin("broken") == inventory.find_ruin("e" * 64) == inventory.get("e" * 64) == ruin
    inventory.drop("e" * 64)
    with pytest.raises(PluginNotFound):
        inventory.find_ruin("broken")


def test_watchers(inventory: Inventory) -> None:
    """Watchers hear of each time a plugin comes up or goes down, and of nothing else."""
    heard: list[State] = []
    for _ in range(2):
        inventory.watch(lambda: heard.append(inventory.status(B).state))
    states: list[State] = [
        "starting",
        "running",
        "healthy",
        "unhealthy",
        "backing-off",
        "starting",
        "running",
        "stopping",
    ]
    for state in states:
        inventory.put_status(B, Status(state=state))
    told: list[State] = ["running", "backing-off", "running", "stopping"]
    assert heard[::2] == heard[1::2] == told
