"""Many plugins, many rounds, many deaths of the daemon: nothing is left over, and nothing is forgotten (issue 4)."""

from __future__ import annotations

import http.client
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.support import procs, remains
from tests.support.crashing import MortalDaemon, mortal_daemon
from tests.support.unruly import Plugin, archive, make, wait_for
from tests.support.wire import Answer, Api

pytestmark = pytest.mark.root

MANY = 100
ROUNDS = 50
DEATHS = int(os.environ.get("DEATHS", "200"))
PLUGINS = 10
MUTATORS = 3
LONGEST_LIFE = 0.4
"""Seconds."""
KEPT = 0.6
"""How often a plugin that is enabled stays so when it is its turn."""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[MortalDaemon]:
    """Give a daemon of one's own, that leaves nothing."""
    with mortal_daemon(tmp_path) as found:
        found.start()
        yield found
        for plugin in Api(found.socket).plugins():
            assert Api(found.socket).call("DELETE", f"/plugins/{plugin['Id']}", {"force": 1}).status == 200
        assert found.stop() == 0
        assert found.mounts() == []
        assert found.processes() == {}


def measured(daemon: MortalDaemon, ids: list[str]) -> Counter[str]:
    """Count all that could leak."""
    assert daemon.proc
    folder = Path("/proc", str(daemon.proc.pid))
    found = Counter(daemon.counts())
    for descriptor in (folder / "fdinfo").iterdir():
        with suppress(FileNotFoundError):
            found["watches"] += descriptor.read_text().count("inotify wd:")
            found["descriptors"] += 1
    found["mounts"] = len(daemon.mounts())
    found["processes"] = len(daemon.processes())
    found["cgroups"] = sum(any(plugin.startswith(name[:12]) for plugin in ids) for name in remains.cgroups())
    return found


def settled(daemon: MortalDaemon, ids: list[str]) -> Counter[str]:
    """Count when what goes on after the last answer is over: three times the same."""
    last = [measured(daemon, ids)]

    def still() -> bool:
        last.append(measured(daemon, ids))
        return len(last) > 3 and last[-1] == last[-2] == last[-3]

    wait_for(still, what="rest")
    return last[-1]


def status(daemon: MortalDaemon, key: str) -> int:
    """Return a number of the daemon's ``/proc/PID/status``; memory is in KiB."""
    assert daemon.proc
    lines = Path("/proc", str(daemon.proc.pid), "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def together(calls: list[Callable[[], Answer]], status: int, *, threads: int) -> float:
    """Make all calls, so many at a time; each has to be answered so. Return the seconds that took."""
    with ThreadPoolExecutor(threads) as pool:
        began = time.monotonic()
        answers = list(pool.map(lambda call: call(), calls))
        seconds = time.monotonic() - began
    assert [answer for answer in answers if answer.status != status] == []
    return seconds


@pytest.mark.timeout(120)
def test_a_hundred_at_once(daemon: MortalDaemon) -> None:
    """A hundred plugins enabled at the same moment are all ready; disabled at the same moment, all are gone."""
    api, data = Api(daemon.socket), archive("well", PropagatedMount="/data")
    names = [f"p{number}" for number in range(MANY)]
    created = together([partial(api.create, name, data) for name in names], 204, threads=4)
    enabled = together([partial(api.act, "enable", name, timeout=60) for name in names], 200, threads=MANY)
    assert len(remains.check_lives(daemon)) == MANY
    assert len(daemon.mounts()) >= MANY
    remains.check_files(daemon)
    disabled = together([partial(api.act, "disable", name) for name in names], 200, threads=MANY)
    assert remains.check_lives(daemon) == {}
    remains.check(daemon)
    assert daemon.mounts() == []
    print(f"{MANY} plugins: created in {created:.1f} s, enabled in {enabled:.1f} s, disabled in {disabled:.1f} s")


def one_round(steady: Plugin, crashing: Plugin, failing: Plugin, hasty: Plugin) -> None:
    """Enable and disable, crash and start again, fail to start, and leave without waiting."""
    steady.enable()
    crashing.enable()
    before = crashing.state()["Pid"]
    os.kill(before, signal.SIGKILL)
    assert failing.api.act("enable", failing.name, timeout=5).status == 500
    with suppress(TimeoutError):
        hasty.api.call("POST", f"/plugins/{hasty.name}/enable", {"timeout": 5}, timeout=random.uniform(0.01, 0.1))
    crashing.until(lambda now: now["State"] == "running" and now["Pid"] != before)
    for plugin in (steady, crashing):
        assert plugin.api.act("disable", plugin.name).status == 200
    # it was left before its commit, or after it
    assert hasty.api.act("disable", hasty.name).status in {200, 409}


@pytest.mark.timeout(120)
def test_nothing_leaks(daemon: MortalDaemon) -> None:
    """After fifty rounds the daemon holds as many descriptors, watches, tasks, threads and objects as before them."""
    plugins = [
        make(daemon, "steady", "well", PropagatedMount="/data"),
        make(daemon, "crashing", "well", PropagatedMount="/data"),
        make(daemon, "failing", "exit", "3", program="probe", PropagatedMount="/data"),
        make(daemon, "hasty", "well", PropagatedMount="/data"),
    ]
    ids = [plugin.id for plugin in plugins]
    for _ in range(5):
        one_round(*plugins)
    before, size, threads = settled(daemon, ids), status(daemon, "VmRSS"), status(daemon, "Threads")
    began = time.monotonic()
    for _ in range(ROUNDS):
        one_round(*plugins)
    seconds = time.monotonic() - began
    after = settled(daemon, ids)
    # one that is forgotten is held until the next takes its place
    more = {key: after[key] - before[key] for key in after.keys() | before.keys() if after[key] != before[key]}
    assert {key: change for key, change in more.items() if not key.startswith("pluginsvc.") or change > 2} == {}
    growth = status(daemon, "VmRSS") - size
    print(f"{ROUNDS} rounds in {seconds:.1f} s; memory {size} KiB, then {growth} KiB more; {more or 'all else equal'}")
    # threads that wait for work are ended when it comes, not when it does not
    assert status(daemon, "Threads") < threads + 10
    assert growth < 4096
    remains.check(daemon)


class Chaos:
    """Enables, disables and kills ten plugins of a daemon that dies, and knows what has to be true afterwards.

    Attributes:
        wished: plugin names → whether it is enabled; None where a call was cut short.
        touched: IDs of plugins that were enabled, disabled or killed in the present life.
    """

    def __init__(self, daemon: MortalDaemon, seed: int) -> None:
        self.daemon = daemon
        self.random = random.Random(seed)
        self.api = Api(daemon.socket)
        self.ids = {
            f"p{number}": make(daemon, f"p{number}", "well", PropagatedMount="/data").id for number in range(PLUGINS)
        }
        self.wished: dict[str, bool | None] = dict.fromkeys(self.ids, False)
        self.touched: set[str] = set()
        self.over = threading.Event()
        self.acts: Counter[str] = Counter()

    def mutate(self, names: list[str], seed: int) -> None:
        """Enable and disable some plugins, until the daemon is dead."""
        chance = random.Random(seed)
        while not self.over.is_set():
            name = chance.choice(names)
            wished = self.wished[name]
            if wished and chance.random() < KEPT:
                self.over.wait(0.02)
                continue
            self.touched.add(self.ids[name])
            self.wished[name] = None
            verb = "disable" if wished else "enable"
            try:
                answer = self.api.act(verb, name, timeout=20)
            except (OSError, http.client.HTTPException):
                self.acts[f"{verb} cut short"] += 1
                return
            # an enable fails when the plugin is killed meanwhile
            assert answer.status == 200 or (verb == "enable" and answer.status == 500), answer
            self.wished[name] = not wished if answer.status == 200 else wished
            self.acts[f"{verb} {answer.status}"] += 1

    def crash(self, seed: int) -> None:
        """Kill plugins, until the daemon is dead, and one more then."""
        chance = random.Random(seed)
        while not self.over.wait(chance.uniform(0.0, 0.1)):
            self._kill(chance.choice(list(self.ids.values())))
        self._kill(chance.choice(list(self.ids.values())))

    def _kill(self, plugin: str) -> None:
        with suppress(OSError, ValueError):
            pid = int((self.daemon.run / "instances" / plugin / "pid").read_text())
            descriptor = os.pidfd_open(pid)
            try:
                # the number may be another's by now
                if f"pluginsvc-{plugin[:12]}" in Path(f"/proc/{pid}/cgroup").read_text():
                    self.touched.add(plugin)
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    self.acts["crash"] += 1
            finally:
                os.close(descriptor)

    def live_and_die(self) -> None:
        """Let the daemon work for a moment, and kill it."""
        self.touched.clear()
        self.over.clear()
        names = list(self.ids)
        with ThreadPoolExecutor(MUTATORS + 1) as pool:
            seeds = [self.random.getrandbits(32) for _ in range(MUTATORS + 1)]
            doing = [pool.submit(self.mutate, names[n::MUTATORS], seeds[n]) for n in range(MUTATORS)]
            doing.append(pool.submit(self.crash, seeds[-1]))
            time.sleep(self.random.uniform(0.0, LONGEST_LIFE))
            self.daemon.kill()
            self.over.set()
        for each in doing:
            each.result()

    def check(self, before: dict[str, int]) -> dict[str, int]:
        """Assert that all is as was acknowledged, and that the database, the API and the machine agree.

        Args:
            before: the plugins that ran when the last life began.

        Returns:
            Those that run now: ID → process ID.
        """
        up = agreed(self.daemon)
        for plugin in self.api.plugins():
            name = plugin["Name"].partition(":")[0]
            assert self.wished[name] in {None, plugin["Enabled"]}, f"what was acknowledged of {name} is lost"
            self.wished[name] = plugin["Enabled"]
        kept = {plugin: pid for plugin, pid in before.items() if plugin not in self.touched}
        assert kept.items() <= up.items(), "one that nobody touched was started again"
        return up


def agreed(daemon: MortalDaemon) -> dict[str, int]:
    """Do as ``remains.check_lives`` and ``check_files``, once what goes on by itself has come to rest."""
    deadline = time.monotonic() + 10
    while True:
        try:
            remains.check_files(daemon)
            return remains.check_lives(daemon)
        except (AssertionError, FileNotFoundError):
            if time.monotonic() > deadline:
                raise
            time.sleep(procs.POLL)


@pytest.mark.timeout(300)
def test_killed_two_hundred_times(daemon: MortalDaemon) -> None:
    """Killed at any moment of its plugins' lives, the daemon comes back to a database that says what there is."""
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    chaos, up = Chaos(daemon, seed), dict[str, int]()
    began, starting, checking = time.monotonic(), 0.0, []
    for death in range(DEATHS):
        print(f"death {death}", end=" ")
        chaos.live_and_die()
        dead = time.monotonic()
        try:
            daemon.start()
            alive = time.monotonic()
            up = chaos.check(up)
        except BaseException:
            print(daemon.log()[-6000:])
            raise
        starting += alive - dead
        checking.append(time.monotonic() - alive)
    seconds = time.monotonic() - began
    print(f"{DEATHS} deaths in {seconds:.1f} s: {starting:.1f} s starting, {sum(checking):.1f} s until agreed", end="")
    print(f" ({max(checking):.1f} s at most); {dict(chaos.acts)}")
    remains.check(daemon)
