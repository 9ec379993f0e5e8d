"""Plugins that misbehave are started again, and the daemon says what they do and why (design D2; REF 7.34, 7.35)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.daemon import Daemon, running_daemon
from tests.support.unruly import Plugin, make, wait_for
from tests.support.wire import Api

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]


@pytest.fixture
def plugin(daemon: Daemon, request: pytest.FixtureRequest) -> Iterator[Callable[..., Plugin]]:
    """Give a function that makes a plugin, which is removed after the test."""
    name = request.node.name.translate(str.maketrans("[]", "--")).strip("-").lower()
    made: list[Plugin] = []

    def new(*words: str, program: str = "unruly", **config: object) -> Plugin:
        made.append(make(daemon, name, *words, program=program, **config))
        return made[-1]

    yield new
    for each in made:
        each.api.call("DELETE", f"/plugins/{each.id}", {"force": 1})


def actions(plugin: Plugin) -> list[str]:
    return [action for action, _ in plugin.events()]


def test_a_quiet_life(plugin: Callable[..., Plugin]) -> None:
    """From stopped to running and back, each with its reason, and no failure anywhere."""
    it = plugin("well")
    assert it.state()["State"] == "stopped"
    it.enable()
    found = it.state()
    assert (found["Desired"], found["State"], found["Reason"]) == ("enabled", "running", "enabled")
    assert (found["Restarts"], found["Failures"], found["NextTry"], found["Exit"]) == (0, 0, "", None)
    assert found["Log"] == ["begins"]
    assert it.api.act("disable", it.name).status == 200
    found = it.state()
    assert (found["Desired"], found["State"], found["Reason"], found["Pid"]) == ("disabled", "stopped", "disabled", 0)


def test_crashes_at_start(plugin: Callable[..., Plugin]) -> None:
    """An enable that fails leaves no wish, and the reason stays to be read."""
    it = plugin("exit", "3", program="probe")
    answer = it.api.act("enable", it.name, timeout=5)
    assert answer.status == 500
    assert "exited with code 3" in answer.error
    found = it.state()
    assert (found["Desired"], found["State"]) == ("disabled", "stopped")
    assert "exited with code 3" in found["Reason"]
    assert actions(it) == ["create"]


def test_crashes_again_and_again(plugin: Callable[..., Plugin]) -> None:
    """A plugin that ends after a while is tried with growing pauses, and called a crash loop after its burst."""
    it = plugin("after", "1000", "7")
    it.update(burst=3)
    it.enable()
    found = it.until(lambda now: now["State"] == "crash-loop")
    assert (found["Failures"], found["Restarts"], found["Desired"]) == (3, 2, "enabled")
    assert found["Exit"]["Code"] == 7
    assert found["Reason"] == "exited with code 7"
    assert found["NextTry"] > found["Since"]
    assert found["Log"][-1] == 'level=error msg="had enough"'
    told = it.events()
    assert [action for action, _ in told] == ["create", "update", "enable", *["exit", "restart"] * 2, "exit"]
    last = told[-1][1]
    assert len(last["log"]) <= 4096
    assert (last["code"], last["oom"], last["state"]) == ("7", "false", "crash-loop")
    assert "had enough" in last["log"]


def test_a_crash_loop_survives_the_daemon(plugin: Callable[..., Plugin], daemon: Daemon) -> None:
    """A new daemon tries at once, remembers the failures, and disable ends the loop whenever it comes."""
    it = plugin("after", "200", "7")
    it.update(burst=2)
    it.enable()
    it.until(lambda now: now["State"] == "crash-loop")
    daemon.kill()
    daemon.start()
    found = it.until(lambda now: now["State"] == "crash-loop")
    assert found["Failures"] == 3
    assert it.api.act("disable", it.name).status == 200
    found = it.state()
    assert (found["State"], found["NextTry"], found["Exit"]["Code"]) == ("stopped", "", 7)


def test_crashes_after_a_hundred_requests(plugin: Callable[..., Plugin]) -> None:
    """A plugin that dies of its work is up again for the next call, with the signal told."""
    it = plugin("requests", "100")
    it.update(probe="Plugin.Activate", probe_interval=0.02)
    it.enable()
    found = it.until(lambda now: now["Restarts"] >= 1 and now["State"] in {"running", "healthy"}, timeout=30)
    assert found["Exit"]["Signal"] in {signal.SIGABRT, signal.SIGSEGV}
    exits = [facts for action, facts in it.events() if action == "exit"]
    assert exits[0]["signal"] == str(found["Exit"]["Signal"])


@pytest.mark.parametrize(
    ("policy", "code", "state", "restarts"),
    [("no", "1", "stopped", 0), ("on-failure", "0", "stopped", 0), ("on-failure:2", "1", "stopped", 2)],
)
def test_policies(
    plugin: Callable[..., Plugin], daemon: Daemon, policy: str, code: str, state: str, restarts: int
) -> None:
    """A plugin that is not to be started again stays down, wished as it is, also when the daemon starts anew."""
    it = plugin("after", "100", code)
    it.update(restart=policy)
    it.enable()
    found = it.until(lambda now: now["State"] == state)
    assert (found["Restarts"], found["Desired"], found["Exit"]["Code"]) == (restarts, "enabled", int(code))
    daemon.kill()
    daemon.start()
    assert (it.state()["State"], it.state()["Restarts"]) == (state, restarts)
    assert actions(it).count("exit") == restarts + 1
    assert it.api.act("disable", it.name).status == 200
    it.enable()
    assert it.state()["Restarts"] == 0


def test_ignores_term(plugin: Callable[..., Plugin]) -> None:
    """A plugin that ignores TERM is killed when its grace is over, and disabled as asked."""
    it = plugin("stubborn", program="probe")
    it.enable()
    began = time.monotonic()
    assert it.api.act("disable", it.name).status == 200
    assert time.monotonic() - began < 20
    assert it.state()["State"] == "stopped"


def test_leaves_children(plugin: Callable[..., Plugin], daemon: Daemon) -> None:
    """Children that a plugin has forked and that ignore TERM go with it."""
    it = plugin("family", program="probe", PidHost=True)
    it.enable()
    pid = it.state()["Pid"]
    before = len(daemon.processes())
    it.signal(signal.SIGKILL)
    found = it.until(lambda now: now["Restarts"] == 1 and now["State"] == "running")
    assert found["Pid"] != pid
    wait_for(lambda: len(daemon.processes()) == before, what="the old family's end")


def test_removes_its_own_socket(plugin: Callable[..., Plugin]) -> None:
    """A plugin nobody can call any more is unhealthy at once, keeps running, and is healthy when it listens again."""
    it = plugin("lonely")
    it.enable()
    pid = it.state()["Pid"]
    it.signal()
    found = it.until(lambda now: now["State"] == "unhealthy")
    assert "p.sock" in found["Reason"]
    assert found["Pid"] == pid
    it.signal()
    it.until(lambda now: now["State"] == "healthy")
    told = [facts["status"] for action, facts in it.events() if action == "health_status"]
    assert told == ["unhealthy", "healthy"]


def test_a_socket_that_goes_while_nobody_looks(plugin: Callable[..., Plugin], daemon: Daemon) -> None:
    """What happened to a socket while the daemon was away is found out when it is back, both ways."""
    it = plugin("lonely")
    it.enable()
    pid = it.state()["Pid"]
    socket = daemon.run / "plugins" / it.id / "p.sock"
    for state in ("unhealthy", "healthy"):
        daemon.kill()
        os.kill(pid, signal.SIGUSR1)
        wait_for(lambda state=state: socket.exists() == (state == "healthy"))  # type: ignore[misc] # a default
        daemon.start()
        assert it.until(lambda now, state=state: now["State"] == state)["Pid"] == pid  # type: ignore[misc] # the same


def test_a_plugin_that_plays_with_its_socket(plugin: Callable[..., Plugin]) -> None:
    """However often its socket comes and goes, changes of health are told once in a second at most."""
    it = plugin("lonely")
    it.enable()
    end = time.monotonic() + 3
    while time.monotonic() < end:
        it.signal()
    told = [action for action, _ in it.events() if action == "health_status"]
    assert len(told) <= 5


def test_answers_no_more(plugin: Callable[..., Plugin]) -> None:
    """A plugin that accepts and is silent is found out by the probe; a 404 is an answer."""
    it = plugin("deaf")
    it.update(probe="Plugin.Activate", probe_interval=0.1, probe_timeout=0.3, probe_failures=2)
    it.enable()
    it.until(lambda now: now["State"] == "healthy")
    it.signal()
    found = it.until(lambda now: now["State"] == "unhealthy")
    assert found["Restarts"] == 0
    assert it.api.act("disable", it.name).status == 200


def test_listens_late(plugin: Callable[..., Plugin]) -> None:
    """Enable waits as long as it is told to; a plugin that takes 11 s is up after 11 s, and not after 2."""
    it = plugin("late", "11000", program="probe")
    began = time.monotonic()
    answer = it.api.act("enable", it.name, timeout=2)
    assert answer.status == 500
    assert "did not become ready within 2 s" in answer.error
    assert time.monotonic() - began < 9
    it.update(start_timeout=20)
    began = time.monotonic()
    it.enable(timeout=0)
    assert 10.5 < time.monotonic() - began < 19


def test_options_are_checked(plugin: Callable[..., Plugin]) -> None:
    """What an option cannot be is refused with a sentence, and nothing is changed; null takes one back."""
    it = plugin("well")
    path = f"/pluginsvc/v1/plugins/{it.name}/update"
    bad: list[Any] = [
        {"restart": "sometimes"},
        {"memory": -1},
        {"nope": 1},
        [],
        {"probe": "rm -rf"},
        {"seccomp": "rel"},
    ]
    for document in bad:
        answer = it.api.call("POST", path, document=document)
        assert answer.status == 400, document
        assert answer.error
    assert it.state()["OwnOptions"] == {}
    it.update(memory=64 << 20, restart="no")
    assert it.state()["OwnOptions"] == {"memory": 64 << 20, "restart": "no"}
    it.update(memory=None)
    assert it.state()["OwnOptions"] == {"restart": "no"}
    assert it.state()["Options"]["memory"] == 0
    assert it.api.call("POST", "/pluginsvc/v1/plugins/nobody/update", document={}).status == 404


def test_a_flood_of_output_harms_nobody(plugin: Callable[..., Plugin], daemon: Daemon) -> None:
    """A plugin that prints without end fills no disk and slows nobody: its files stay within their bounds."""
    it = plugin("flood")
    it.enable()
    api, waits = Api(daemon.socket), []
    end = time.monotonic() + 4
    while time.monotonic() < end:
        began = time.monotonic()
        api.ok("GET", "/_ping")
        waits.append(time.monotonic() - began)
    assert it.api.act("disable", it.name).status == 200
    size = sum(path.stat().st_size for path in (daemon.root / "logs" / it.id).iterdir())
    # three files of 10 MiB, each with the 16 MiB that conmon may go beyond (docs/on-disk.md)
    assert size < 3 * (10 + 16) * 1024 * 1024
    waits.sort()
    print(f"p50 {waits[len(waits) // 2] * 1000:.1f} ms, p99 {waits[len(waits) * 99 // 100] * 1000:.1f} ms")


def test_shutdown_is_bounded_and_can_be_hurried(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Told to stop plugins, the daemon is gone by its deadline; a second TERM waits for nobody."""
    folder = tmp_path_factory.mktemp("shutdown")
    config = folder / "pluginsvc.toml"
    config.write_text('shutdown = "stop"\nshutdown-timeout = 5.0\nstop-timeout = 6.0\n')
    with running_daemon("--config", str(config)) as daemon:
        for number in range(3):
            make(daemon, f"p{number}", "stubborn", program="probe").enable()
        began = time.monotonic()
        assert daemon.stop() == 0
        assert 2 < time.monotonic() - began < 8
        assert daemon.processes() == {}
        daemon.start()
        for number in range(3):
            Plugin(daemon, f"p{number}").until(lambda now: now["State"] == "running")
        assert daemon.proc
        began = time.monotonic()
        daemon.proc.signal(signal.SIGTERM)
        log = daemon.log
        wait_for(lambda: log().count("daemon.stopping") == 2, what="the stop")
        # and any number of further ones do not kill it while it closes its books
        while daemon.proc.running():
            daemon.proc.signal(signal.SIGTERM)
            time.sleep(0.005)
        assert daemon.proc.wait() == 0
        assert time.monotonic() - began < 2.5
        assert daemon.processes() == {}
