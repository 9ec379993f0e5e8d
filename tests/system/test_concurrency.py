"""Many at once: on one name, on one plugin, on the same blobs, with collections in between (design D8, D9)."""

from __future__ import annotations

import gzip
import itertools
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import remains
from tests.support.daemon import Daemon
from tests.support.registry import Registry
from tests.support.sample import build_sample_plugin
from tests.support.wire import Answer, Api, pack, tar

pytestmark = pytest.mark.root

CONFIG = b'{"entrypoint":["/x"],"interface":{"socket":"p.sock"}}'
numbers = itertools.count(1)


@pytest.fixture
def api(daemon: Daemon) -> Iterator[Api]:
    """Give calls to the module's daemon; each test leaves it empty, and consistent."""
    api, logged = Api(daemon.socket), len(daemon.log())
    yield api
    remains.check(daemon, logged=logged)
    for plugin in api.plugins():
        assert api.call("DELETE", f"/plugins/{plugin['Id']}", {"force": 1}).status == 200
    remains.check(daemon, logged=logged)
    assert daemon.blobs() == set()


def together(*calls: Callable[[], Answer]) -> list[Answer]:
    """Make all calls at the same moment, each in a thread; return their answers in order."""
    gate = threading.Barrier(len(calls))

    def call(act: Callable[[], Answer]) -> Answer:
        gate.wait()
        return act()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


def good(answer: Answer) -> bool:
    return answer.status < 300 and not answer.error


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Give the sample plugin."""
    return pack(build_sample_plugin(tmp_path_factory.mktemp("plugin") / "p"))


def publish(api: Api, registry: Registry, data: bytes, *, extra: bytes = b"") -> str:
    """Put a plugin into the registry; return its reference. Plugins with the same data share a layer."""
    name = f"{registry.host}/concurrency/p{next(numbers)}"
    config = CONFIG[:-1] + b',"description":"%s"}' % (extra or name.encode())
    assert good(api.create(name, tar({"config.json": config, "rootfs": None, "rootfs/x": data})))
    assert good(api.act("push", name))
    assert good(api.call("DELETE", f"/plugins/{name}"))
    api.collect()
    return name


@pytest.mark.parametrize("attempt", range(3))
def test_six_pulls_of_one_name(api: Api, registry: Registry, attempt: int) -> None:
    """Of six pulls of one name at once, one makes the plugin and five are refused with 400 (REF 7.33)."""
    remote = publish(api, registry, os.urandom(100_000))
    answers = together(*[lambda: api.call("POST", "/plugins/pull", {"remote": remote, "name": "six"}, document=[])] * 6)
    assert sorted(answer.status for answer in answers) == [200, 400, 400, 400, 400, 400]
    assert sum(map(good, answers)) == 1
    assert {answer.error for answer in answers if answer.status == 400} == {"plugin six:latest already exists"}
    assert [plugin["Name"] for plugin in api.plugins()] == ["six:latest"]


def test_six_creates_of_one_name(api: Api, archive: bytes) -> None:
    """Of six creates of one name at once, one makes the plugin and five are refused with 409."""
    answers = together(*[lambda: api.create("six", archive)] * 6)
    assert sorted(answer.status for answer in answers) == [204, 409, 409, 409, 409, 409]


def test_creates_with_the_same_content(api: Api, daemon: Daemon, archive: bytes) -> None:
    """Plugins made of the same bytes at once share their blobs, and lose none when one of them goes."""
    names = [f"same{number}" for number in range(8)]
    assert all(map(good, together(*[lambda name=name: api.create(name, archive) for name in names])))
    assert len(daemon.blobs()) == 3
    assert all(map(good, together(*[lambda n=n: api.call("DELETE", f"/plugins/{n}") for n in names[1:]])))
    api.collect()
    assert len(daemon.blobs()) == 3
    assert good(api.act("enable", "same0", timeout=5))


def test_pulls_that_share_a_layer(api: Api, daemon: Daemon, registry: Registry) -> None:
    """Two plugins with one layer, pulled at once, fetch it once; removing one leaves it to the other."""
    data = os.urandom(3_000_000)
    one, two = (publish(api, registry, data) for _ in range(2))
    layer = max(api_blobs(registry, data), key=len)
    before = _gets(registry, layer)
    answers = together(
        *[
            lambda r=r, n=n: api.call("POST", "/plugins/pull", {"remote": r, "name": n}, document=[])
            for r, n in ((one, "one"), (two, "two"))
        ]
    )
    assert all(map(good, answers)), answers
    assert _gets(registry, layer) == before + 1
    assert good(api.call("DELETE", "/plugins/one"))
    api.collect()
    assert layer in daemon.blobs()


def test_one_plugin_under_all_verbs(api: Api, daemon: Daemon, archive: bytes) -> None:
    """Whatever is called on one plugin at once, each call is done whole or refused, and the journal agrees."""
    expected = {
        "enable": {200, 404, 409, 500},
        "disable": {200, 404, 409},
        "set": {204, 404, 409},
        "remove": {200, 404, 409},
        "create": {204, 409},
        "inspect": {200, 404},
    }
    calls: dict[str, Callable[[], Answer]] = {
        "enable": lambda: api.act("enable", "all", timeout=5),
        "disable": lambda: api.act("disable", "all"),
        "set": lambda: api.call("POST", "/plugins/all/set", document=[f"DEBUG={random.random()}"]),
        "remove": lambda: api.call("DELETE", "/plugins/all", {"force": random.choice("01")}),
        "create": lambda: api.create("all", archive),
        "inspect": lambda: api.call("GET", "/plugins/all/json"),
    }
    weights = {"enable": 6, "disable": 5, "set": 4, "remove": 1, "create": 3, "inspect": 4}
    seen: Counter[tuple[str, int]] = Counter()
    wrong: list[str] = []
    deadline = time.monotonic() + 6

    def hammer(seed: int) -> None:
        chooser = random.Random(seed)
        while time.monotonic() < deadline:
            verb = chooser.choices(list(weights), list(weights.values()))[0]
            answer = calls[verb]()
            seen[verb, answer.status] += 1
            if answer.status not in expected[verb] or answer.status == 500:
                wrong.append(f"{verb}: {answer}")

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(hammer, range(5)))
    assert wrong == []
    assert {verb for verb, status in seen if status < 300} == set(weights), seen


def test_collections_during_pulls(api: Api, registry: Registry) -> None:
    """However often garbage is collected and plugins go, a pull that succeeds has all of its blobs."""
    data = os.urandom(500_000)
    remotes = [publish(api, registry, data) for _ in range(3)]
    done = threading.Event()

    def collect() -> None:
        while not done.is_set():
            api.collect()

    def churn(number: int) -> None:
        for _ in range(6):
            name = f"churn{number}"
            answer = api.call("POST", "/plugins/pull", {"remote": remotes[number], "name": name}, document=[])
            assert good(answer), answer
            assert good(api.call("DELETE", f"/plugins/{name}"))

    with ThreadPoolExecutor(4) as pool:
        collector = pool.submit(collect)
        list(pool.map(churn, range(3)))
        done.set()
        collector.result()


def test_upgrades_and_pushes_at_once(api: Api, registry: Registry) -> None:
    """A push that runs while the plugin is upgraded or removed sends one whole version, or says what happened."""
    first, second = (publish(api, registry, os.urandom(200_000)) for _ in range(2))
    name = f"{registry.host}/concurrency/moving{next(numbers)}"
    for _ in range(3):
        assert good(api.call("POST", "/plugins/pull", {"remote": first, "name": name}, document=[]))
        push, upgrade, remove = together(
            lambda: api.act("push", name),
            lambda: api.call("POST", f"/plugins/{name}/upgrade", {"remote": second}, document=[]),
            lambda: api.call("DELETE", f"/plugins/{name}", {"force": 1}),
        )
        assert good(remove) or remove.status == 404
        assert good(push) or push.status == 404, push
        assert good(upgrade) or upgrade.status == 404, upgrade
        api.collect()
        if good(push):
            pulled = api.call("POST", "/plugins/pull", {"remote": name, "name": "moved"}, document=[])
            assert good(pulled), pulled
            assert good(api.call("DELETE", "/plugins/moved"))


def test_everything_answers_while_plugins_are_made(api: Api, archive: bytes) -> None:
    """While plugins are created and deleted, pings, lists, usage and events answer, and answer well."""
    done = threading.Event()
    answered: Counter[str] = Counter()

    def poll(path: str) -> None:
        while not done.is_set():
            answer = api.call("GET", path)
            assert answer.status == 200, answer
            answered[path] += 1

    def make(number: int) -> None:
        for _ in range(4):
            assert good(api.create(f"busy{number}", archive))
            assert good(api.call("DELETE", f"/plugins/busy{number}"))

    paths = ("/_ping", "/plugins", "/system/df", "/info", f"/events?since=0&until={int(time.time())}")
    with ThreadPoolExecutor(8) as pool:
        polls = [pool.submit(poll, path) for path in paths]
        list(pool.map(make, range(3)))
        done.set()
        for found in polls:
            found.result()
    assert all(answered[path] > 0 for path in paths), answered


def _gets(registry: Registry, digest: str) -> int:
    """Return how often a blob was fetched from the registry."""
    lines = registry.proc.log.read_text().splitlines()
    return sum("GET /v2/" in line and f"/blobs/sha256:{digest} " in line for line in lines)


def api_blobs(registry: Registry, data: bytes) -> list[str]:
    """Return the digests of the registry's blobs that hold ``data``."""
    found = []
    for path in (registry.storage / "docker/registry/v2/blobs/sha256").glob("*/*/data"):
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b" and data in gzip.decompress(raw):
            found.append(path.parent.name)
    return found
