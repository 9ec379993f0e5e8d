"""What is there to see of plugins: how each is used, made once for as long as it is the same."""

from __future__ import annotations

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from pluginsvc.model.digest import Digest
from pluginsvc.model.lifecycle import Status
from pluginsvc.model.plugin import Interface, PluginConfig, PluginRecord
from pluginsvc.plugins.inventory import Entry, Inventory
from pluginsvc.plugins.overview import Overview

DIGEST = Digest.parse("sha256:" + "0" * 64)
A, B = "a" * 64, "b" * 64


class House:
    """An overview, and all that it is told about plugins.

    Attributes:
        instances: what runs.
    """

    def __init__(self) -> None:
        self.inventory = Inventory()
        self.instances: dict[str, Any] = {}
        parts = SimpleNamespace(
            inventory=self.inventory,
            executor=SimpleNamespace(sockets=lambda plugin_id: Path("/run/plugins") / plugin_id),
            disk=SimpleNamespace(
                rootfs=lambda plugin_id, generation: f"/root/{plugin_id}/{generation}",
                propagated=lambda plugin_id: Path("/root") / plugin_id / "propagated-mount",
            ),
        )
        self.overview = Overview(cast("Any", parts), cast("Any", SimpleNamespace(instance=self.instances.get)))

    def put(self, plugin_id: str, **changes: Any) -> None:
        record = PluginRecord(id=plugin_id, name=plugin_id[:1], config=DIGEST, manifest=DIGEST, blobs=[DIGEST])
        config = PluginConfig(interface=Interface(socket="p.sock", types=["docker.volumedriver/1.0"]))
        self.inventory.put(Entry.of(msgspec.structs.replace(record, **changes), config))


def test_a_provider_is_made_once() -> None:
    """As long as nothing has changed about a plugin it is the same object, in lists and by name."""
    house = House()
    house.put(A)
    house.put(B)
    first, other = house.overview.providers()
    assert first is house.overview.provider("a") is house.overview.providers()[0]
    house.put(A, timeout=5)
    again = house.overview.provider("a")
    assert (first.timeout, again.timeout) == (0.0, 5.0)
    house.instances[A] = SimpleNamespace(container_id="1")
    assert house.overview.provider("a") is not again
    assert not house.overview.provider("a").up
    house.inventory.put_status(A, Status(state="running"))
    assert (house.overview.provider("a").up, house.overview.provider("a").run) == (True, "1")
    house.instances[A] = SimpleNamespace(container_id="2")
    assert house.overview.provider("a").run == "2"
    house.inventory.put_status(A, Status(state="unhealthy"))
    assert house.overview.provider("a").state == "unhealthy"
    assert house.overview.provider("b") is other


def test_providers_of_plugins_that_are_gone_go() -> None:
    """Nothing is kept of a plugin that was removed."""
    house = House()
    house.put(A)
    house.put(B)
    gone = weakref.ref(house.overview.provider("b").client)
    house.overview.providers()
    house.inventory.drop(B)
    house.put(A, timeout=5)
    house.overview.providers()
    assert gone() is None
