"""The event stream of a real daemon: it tells all that changes, once, whatever happens to the daemon meanwhile."""

from __future__ import annotations

import http.client
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.support.daemon import Daemon, running_daemon
from tests.support.fold import Fold, listed
from tests.support.registry import Registry
from tests.support.stream import Consumer, events, opened
from tests.support.stream import blocks as read_blocks
from tests.support.wire import Api, pack

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

NAMES = [f"fold{number}:latest" for number in range(3)]
names = st.sampled_from(NAMES)
LIVES = 12
CONSUMERS = 8


def lists(api: Api) -> list[dict[str, Any]]:
    found = api.ok("GET", "/pluginsvc/v1/plugins")
    assert isinstance(found, list)
    return found


def test_the_fold_of_the_events_is_the_list(daemon: Daemon, registry: Registry, folder: Callable[..., Path]) -> None:
    """Whatever is done to plugins, and refused, the list made of the events is the list that the daemon gives."""
    api = Api(daemon.socket)
    archive = pack(folder())
    remotes = []
    for version in ("1", "2"):
        remotes.append(f"{registry.host}/fold/remote:{version}")
        assert api.create(remotes[-1], pack(folder(version))).status == 204
        api.ok("POST", f"/plugins/{remotes[-1]}/push")
        api.ok("DELETE", f"/plugins/{remotes[-1]}")

    class Life(RuleBasedStateMachine):
        """A client that does anything, and a consumer that has read only the events."""

        def __init__(self) -> None:
            super().__init__()
            self.fold = Fold()

        @initialize()
        def begin(self) -> None:
            for plugin in lists(api):
                api.ok("DELETE", f"/plugins/{plugin['Id']}", {"force": "1"})
            with opened(daemon.socket, {"snapshot": "1"}) as answer:
                first = next(read_blocks(answer))
            assert first.kind == "snapshot"
            assert first.id == first.data["seq"]
            self.fold.snapshot(first.data["plugins"], first.data["seq"])

        @rule(name=names)
        def create(self, name: str) -> None:
            assert api.create(name, archive).status in {204, 409}

        @rule(name=names, remote=st.sampled_from(remotes))
        def pull(self, name: str, remote: str) -> None:
            assert api.pull(remote, name).status in {200, 400}

        @rule(name=names, remote=st.sampled_from(remotes))
        def upgrade(self, name: str, remote: str) -> None:
            assert api.upgrade(name, remote).status in {200, 404, 409, 500}

        @rule(name=names)
        def enable(self, name: str) -> None:
            assert api.act("enable", name, timeout=10).status in {200, 404, 409}

        @rule(name=names, force=st.booleans())
        def disable(self, name: str, *, force: bool) -> None:
            assert api.act("disable", name, **({"force": "1"} if force else {})).status in {200, 404, 409}

        @rule(name=names)
        def configure(self, name: str) -> None:
            answer = api.call("POST", f"/plugins/{name}/set", document=["DEBUG=1"])
            assert answer.status in {204, 404, 409, 500}

        @rule(name=names, force=st.booleans())
        def remove(self, name: str, *, force: bool) -> None:
            assert api.call("DELETE", f"/plugins/{name}", {"force": "1"} if force else None).status in {200, 404, 409}

        @invariant()
        def the_same(self) -> None:
            for event in events(daemon.socket, after=self.fold.seq, until=f"{time.time():.9f}"):
                self.fold.apply(event)
            assert self.fold.plugins == listed(lists(api))

    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=12, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    whole = Fold()
    for event in events(daemon.socket, after=0, until=f"{time.time():.9f}"):
        whole.apply(event)
    assert whole.plugins == listed(lists(api))


@pytest.fixture
def mortal() -> Iterator[Daemon]:
    with running_daemon() as found:
        yield found


def test_killed_with_consumers_attached(mortal: Daemon, folder: Callable[..., Path]) -> None:
    """Over many kills of the daemon each consumer sees each event exactly once, and none is without its change."""
    api, archive = Api(mortal.socket), pack(folder())
    rng = random.Random(5)
    over = threading.Event()
    consumers = [Consumer(mortal.socket) for _ in range(CONSUMERS)]

    def mutate(number: int) -> None:
        for turn in itertools.count():
            if over.is_set():
                return
            name = f"mortal{number}-{turn % 2}"
            with suppress(OSError, http.client.HTTPException):
                api.create(name, archive)
                if turn % 3 == 0:
                    api.act("enable", name, timeout=5)
                    api.act("disable", name)
                api.call("DELETE", f"/plugins/{name}", {"force": "1"})
            # the daemon may be away
            over.wait(0.01)

    mutators = [threading.Thread(target=mutate, args=(number,), daemon=True) for number in range(3)]
    for consumer in consumers:
        consumer.start()
        assert consumer.attached.wait(20)
    for thread in mutators:
        thread.start()
    for _ in range(LIVES):
        over.wait(rng.uniform(0.05, 0.6))
        mortal.kill()
        mortal.start()
    over.set()
    for thread in mutators:
        thread.join(60)
        assert not thread.is_alive()
    for plugin in lists(api):
        api.ok("DELETE", f"/plugins/{plugin['Id']}", {"force": "1"})
    all_events = events(mortal.socket, after=0, until=f"{time.time():.9f}")
    numbers = [event["seq"] for event in all_events]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) > 2 * LIVES
    for consumer in consumers:
        consumer.finish(numbers[-1])
        assert consumer.odd == []
        assert consumer.connections > LIVES / 2
        assert consumer.seen == numbers[-len(consumer.seen) :]
        assert consumer.events == all_events[-len(consumer.seen) :]
    assert min(len(consumer.seen) for consumer in consumers) >= len(numbers) - 1
    fold = Fold()
    for event in all_events:
        fold.apply(event)
    assert fold.plugins == {}
