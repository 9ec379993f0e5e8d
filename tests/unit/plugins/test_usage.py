"""Who uses a plugin: what may be taken when, and what errors say, on a real database."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pluginsvc.directory.provider import NoCapability, PluginDisabled
from pluginsvc.model.config import parse_config
from pluginsvc.model.lease import InvalidLease
from pluginsvc.plugins import usage
from pluginsvc.plugins.disk import Disk
from pluginsvc.plugins.inventory import Entry
from pluginsvc.plugins.mounts import Ledger
from pluginsvc.plugins.parts import Parts
from pluginsvc.state import plugin_leases, plugins
from pluginsvc.state.database import Database
from tests.support.records import plugin_id, record

pytestmark = pytest.mark.anyio
ID = plugin_id(1)
CONFIG = parse_config(b'{"interface":{"socket":"s","types":["docker.volumedriver/1.0","acme.networkdriver/1.0"]}}')


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    """Give the parts that leases need, with one enabled plugin."""
    database = await Database.open(tmp_path / "state.db")
    disk = Disk(tmp_path)
    found: dict[str, Any] = dict.fromkeys(
        ("store", "inventory", "registry", "puller", "confinement", "executor", "publish")
    )
    await database.write(lambda db: plugins.put(db, record(1, enabled=True)))
    yield Parts(database=database, disk=disk, mounts=Ledger(database, disk), collect=lambda: None, **found)
    await database.close()


ENTRY = Entry.of(record(1, enabled=True), CONFIG)


async def disable(parts: Parts) -> None:
    await parts.database.write(lambda db: plugins.put(db, record(1)))


async def test_acquire_and_release(parts: Parts) -> None:
    """A lease is taken with an end or none, is shown, and is given back once and no more."""
    before = time.time_ns()
    lease = await usage.acquire(parts, ENTRY, holder="web", purpose="volume a", seconds=2.5)
    assert (lease.holder, lease.purpose, lease.count) == ("web", "volume a", 1)
    assert lease.expires_ns is not None
    assert lease.expires_ns - lease.since_ns == 2_500_000_000
    assert before <= lease.since_ns <= time.time_ns()
    assert await usage.leases(parts, ID) == [lease]
    again = await usage.acquire(parts, ENTRY, holder="web", purpose="volume a")
    assert again == msgspec.structs.replace(lease, count=2, expires_ns=None)
    assert [await usage.release(parts, ID, holder="web") for _ in range(3)] == [1, 0, 0]


async def test_the_record_counts_and_not_what_was_looked_up(parts: Parts) -> None:
    """A plugin whose record is disabled, or gone, cannot be acquired, whatever the caller had found before."""
    await disable(parts)
    with pytest.raises(PluginDisabled, match=r"^plugin p1:latest found but disabled$"):
        await usage.acquire(parts, ENTRY, holder="web", purpose="x", capability="nothing-of-the-kind")
    await parts.database.write(lambda db: plugins.delete(db, ID))
    with pytest.raises(PluginDisabled):
        await usage.acquire(parts, ENTRY, holder="web", purpose="x")


async def test_release_of_a_disabled_plugin(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Releasing works when the plugin is disabled, and wakes who waits for it (REF 7.38)."""
    await usage.acquire(parts, ENTRY, holder="web", purpose="x")
    await usage.acquire(parts, ENTRY, holder="web", purpose="y")
    await disable(parts)
    woken: list[int] = []
    monkeypatch.setattr(parts.mounts, "wake", lambda: woken.append(len(woken)))
    assert await usage.release(parts, ID, holder="web", everything=True) == 0
    assert woken == [0]
    assert await usage.leases(parts, ID) == []


@pytest.mark.parametrize("capability", ["volumedriver", "VolumeDriver", ""])
async def test_capability(parts: Parts, capability: str) -> None:
    """What the plugin provides may be asked for in any case (REF 3.13)."""
    assert (await usage.acquire(parts, ENTRY, holder="a", purpose="x", capability=capability)).count == 1


@pytest.mark.parametrize("capability", ["networkdriver", "NetworkDriver", "volume"])
async def test_wrong_capability(parts: Parts, capability: str) -> None:
    """What it does not provide under docker's prefix is refused with Docker's text, and nothing is counted."""
    with pytest.raises(NoCapability, match=f'^plugin does not provide "{capability.lower()}" capability$'):
        await usage.acquire(parts, ENTRY, holder="a", purpose="x", capability=capability)
    assert await usage.leases(parts, ID) == []


async def test_refused_whole(parts: Parts) -> None:
    """A lease that cannot be is not there afterwards."""
    with pytest.raises(InvalidLease):
        await usage.acquire(parts, ENTRY, holder="a", purpose="")
    assert await usage.leases(parts, ID) == []


async def test_in_use_by_volumes(parts: Parts) -> None:
    """Who holds a plugin by its volumes is told where to let go of them."""
    await usage.acquire(parts, ENTRY, holder="volumes", purpose="volume a")
    with pytest.raises(
        usage.PluginInUse, match=r"volumes \(volume a\): release it there \(see `pluginctl volume`\), or"
    ):
        await usage.require_unused(parts, ENTRY)


async def test_in_use_names_the_holders(parts: Parts) -> None:
    """The error begins as Docker's, names five holders and what they do, and counts the rest; none for no leases."""
    await usage.require_unused(parts, ENTRY)
    for number in range(6):
        await usage.acquire(parts, ENTRY, holder=f"h{number}", purpose="volume a")
    with pytest.raises(usage.PluginInUse) as caught:
        await usage.require_unused(parts, ENTRY)
    text = str(caught.value)
    assert text.startswith("plugin p1:latest is in use by h0 (volume a), h1 (volume a), ")
    assert text.endswith("h4 (volume a) and 1 more: release it there, or use force")
    assert len(caught.value.leases) == 6


async def test_a_lease_that_is_over_is_no_use(parts: Parts) -> None:
    """An expired lease stands in nobody's way."""
    await parts.database.write(lambda db: plugin_leases.acquire(db, ID, "a", "x", now_ns=1, expires_ns=2))
    assert await usage.leases(parts, ID) == []
    await usage.require_unused(parts, ENTRY)
