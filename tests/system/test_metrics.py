"""Metrics of a real daemon: each operation moves what it should, and nothing of what plugins are called gets in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, running_daemon
from tests.support.procs import wait_until
from tests.support.registry import Registry
from tests.support.scrape import Scrape
from tests.support.wire import Api, pack

pytestmark = pytest.mark.root


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """Give a daemon that has done nothing."""
    with running_daemon() as found:
        yield found


def test_a_life(daemon: Daemon, registry: Registry, folder: Callable[..., Path]) -> None:
    """Create, push, enable, disable, remove, collect, pull, set: each counts once, with time, bytes and events."""
    api, name = Api(daemon.socket), f"{registry.host}/metrics/secretname"

    def scrape() -> Scrape:
        return Scrape(api.ok("GET", "/metrics"), "text/plain")

    def state(which: str) -> float:
        return scrape()("pluginsvc_plugins", state=which)

    def moved(direction: str) -> float:
        return scrape()("pluginsvc_transfer_bytes_total", direction=direction)

    assert api.create(name, pack(folder())).status == 204
    assert state("stopped") == 1
    api.ok("POST", f"/plugins/{name}/push")
    pushed = moved("upload")
    assert pushed > sum(path.stat().st_size for path in (daemon.root / "content/blobs/sha256").glob("*")) * 0.99
    assert moved("download") == 0
    api.ok("POST", f"/plugins/{name}/enable", {"timeout": 30})
    assert state("running") + state("healthy") == 1
    # refused: it is enabled; no such plugin; a name that cannot be
    assert api.act("enable", name, timeout=30).status == 409
    assert api.act("enable", "missing-secretname", timeout=30).status == 404
    assert api.create("Not a name", b"").status == 400
    api.ok("POST", f"/plugins/{name}/disable")
    api.ok("DELETE", f"/plugins/{name}")
    assert state("stopped") == 0
    api.collect()
    found = scrape()
    assert found("pluginsvc_gc_removed_blobs_total") >= 3
    assert found("pluginsvc_gc_removed_bytes_total") > 0.9 * pushed
    assert found.ends("gc")["ok"] >= 1
    assert found.ends("gc")["failed"] == 0
    assert not api.pull(name).error
    assert moved("download") > 0.9 * pushed
    # refused inside the job: it is there already
    assert api.call("POST", "/plugins/pull", {"remote": name}, document=[]).error
    api.ok("POST", "/pluginsvc/v1/plugins/" + name + "/update", document={"restart": "no"})
    assert api.call("POST", f"/plugins/{name}/upgrade", {"remote": "127.0.0.1:1/no/where"}, document=[]).error

    found = scrape()
    none = {"ok": 0, "refused": 0, "failed": 0, "cancelled": 0}
    assert found.ends("create") == none | {"ok": 1, "refused": 1}
    assert found.ends("pull") == none | {"ok": 1, "refused": 1}
    assert found.ends("enable") == none | {"ok": 1, "refused": 2}
    for once in ("push", "disable", "remove", "update"):
        assert found.ends(once) == none | {"ok": 1}, once
        assert found("pluginsvc_operation_duration_seconds_count", operation=once) == 1
    # nobody answers there: not the user's fault
    assert found.ends("upgrade") == none | {"failed": 1}
    assert found("pluginsvc_operation_duration_seconds_count", operation="upgrade") == 0
    assert found("pluginsvc_journal_events") == found("pluginsvc_journal_newest_sequence") >= 8
    wait_until(lambda: scrape()("pluginsvc_events_total", action="update") == 1)
    wait_until(lambda: scrape()("pluginsvc_loop_lag_seconds_count") > 0)
    assert scrape()("process_open_fds") > 10
    assert "secretname" not in api.ok("GET", "/metrics")
