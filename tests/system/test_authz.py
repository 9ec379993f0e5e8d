"""The daemon's own API guarded by one of its own plugins, which denies, allows, hangs, dies and returns garbage."""

from __future__ import annotations

import random
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import procs, unruly
from tests.support.daemon import PROGRAM, Daemon, running_daemon
from tests.support.docker_cli import DockerCLI
from tests.support.parts import env
from tests.support.pki import Authority
from tests.support.sample import build_sample_plugin
from tests.support.unruly import Plugin
from tests.support.wire import Answer, Api

pytestmark = pytest.mark.root

INTERFACE = {"Socket": "p.sock", "Types": ["docker.authz/1.0"]}


class House:
    """A daemon with a configuration file that a test changes.

    Attributes:
        guard: an authorization plugin of it, enabled.
    """

    def __init__(self, daemon: Daemon, config: Path) -> None:
        self.daemon, self.config = daemon, config
        self.api = Api(daemon.socket)
        self.guard = make_guard(daemon, "guard")

    def configure(self, *names: str, on_failure: str = "deny", timeout: float = 20.0, more: str = "") -> None:
        """Write a configuration, for the next start or reload."""
        table = f"plugins = {list(names)}\non-failure = '{on_failure}'\ntimeout = {timeout}\n"
        self.config.write_text(f"[authorization]\n{table}{more}")

    def use(self, *names: str, on_failure: str = "deny", timeout: float = 20.0) -> None:
        """Have these plugins guard the API, or try to, and wait until the daemon has read that."""
        self.configure(*names, on_failure=on_failure, timeout=timeout)
        assert self.daemon.proc
        seen = self.daemon.log().count("daemon.reload")
        self.daemon.proc.signal(signal.SIGHUP)
        self.daemon.proc.wait_until(lambda: self.daemon.log().count("daemon.reload") > seen)

    def ask(self, word: str = "", path: str = "/version") -> Answer:
        """Send a request that the guard judges by a word in it."""
        return self.api.call("GET", f"{path}?{word}")


def make_guard(daemon: Daemon, name: str) -> Plugin:
    plugin = unruly.make(daemon, name, program="authz", Interface=INTERFACE)
    plugin.enable()
    return plugin


def failure(text: str) -> str:
    return f"plugin guard:latest failed with error: AuthZPlugin.AuthZReq: {text}"


@pytest.fixture(scope="module")
def whole() -> Iterator[House]:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "pluginsvc.toml"
        config.touch()
        with running_daemon("--config", str(config)) as daemon:
            yield House(daemon, config)


@pytest.fixture
def house(whole: House) -> Iterator[House]:
    """Give the daemon with nobody asked; afterwards nobody is asked again, or it could not be cleaned up."""
    whole.use()
    yield whole
    whole.use()


def test_allows_and_denies(house: House) -> None:
    """From the reload on each request is judged: the guard's message is shown, without what would move a cursor."""
    assert house.ask("authz-deny").status == 200
    house.use("guard")
    assert house.ask().status == 200
    answer = house.ask("authz-deny")
    assert (answer.status, answer.error) == (403, "authorization denied by plugin guard:latest: not  you")
    assert house.ask("authz-deny", "/metrics").status == 403
    done = house.daemon.cli().run("plugin", "inspect", "authz-deny")
    assert "authorization denied by plugin guard:latest" in done.stderr
    assert house.api.ok("GET", "/info")["Plugins"]["Authorization"] == ["guard"]
    assert "daemon.reloaded changed=['authorization'] needs_restart=[]" in house.daemon.log()
    house.use()
    assert house.ask("authz-deny").status == 200


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("authz-err", "its own trouble"),
        ("authz-garbage", "the answer of plugin guard:latest is of no use: no HTTP"),
        ("authz-flood", "the answer of plugin guard:latest is of no use: it is larger than 1048576 bytes"),
    ],
)
def test_answers_that_do_not_count(house: House, word: str, text: str) -> None:
    """Errors, garbage and floods deny, even where requests are passed on if nobody can be asked."""
    house.use("guard", on_failure="allow")
    answer = house.ask(word)
    assert answer.status == 500
    assert answer.error.startswith(failure(text))
    assert house.ask().status == 200


def test_hangs(house: House) -> None:
    """A request whose answer does not come is denied after the time for it; meanwhile others are served."""
    house.use("guard", timeout=3.0)
    answers: list[Answer] = []
    waiting = threading.Thread(target=lambda: answers.append(house.ask("authz-hang")))
    waiting.start()
    assert {house.ask().status for _ in range(20)} == {200}
    waiting.join()
    assert (answers[0].status, answers[0].error) == (500, failure("no answer within 3 s"))
    house.use("guard", on_failure="allow", timeout=0.5)
    assert house.ask("authz-hang").status == 200


def test_dies(house: House) -> None:
    """A plugin that dies of a request does not let it pass, and guards again, with no reload, when it is up again."""
    house.use("guard", timeout=1.5)
    answer = house.ask("authz-die")
    assert answer.status == 500
    assert answer.error.startswith(failure(""))
    unruly.wait_for(lambda: house.ask("authz-deny").status == 403, what="the plugin's restart")
    house.use()
    assert house.guard.state()["Restarts"] >= 1


def test_down(house: House) -> None:
    """While its plugin is down the API is closed; taking it out of the configuration is the way back in."""
    house.guard.update(restart="no")
    house.use("guard", timeout=1.5)
    house.guard.signal(signal.SIGKILL)
    down = failure("it is enabled and not up: its state is stopped")
    unruly.wait_for(lambda: house.ask().error == down, what="the plugin's end")
    assert house.api.act("disable", "guard", force=1).status == 500
    house.use("guard", on_failure="allow")
    assert house.ask("authz-deny").status == 200
    assert "authz.passed_on" in house.daemon.log()
    house.use("guard")
    assert house.ask().error == down
    house.use()
    assert house.api.act("disable", "guard").status == 200
    house.guard.update(restart="always")
    house.guard.enable()
    house.use("guard")
    assert house.ask().status == 200


def test_disabling_takes_out_and_enabling_puts_back(house: House) -> None:
    """A guard is asked until its disable has succeeded, not after it, and again at once when enabled (REF 7.39)."""
    house.use("guard", "guard:latest", house.guard.id)
    assert house.api.call("POST", "/plugins/guard/disable", {"x": "authz-deny"}).status == 403
    house.api.ok("POST", "/pluginsvc/v1/plugins/guard/acquire", document={"Holder": "h", "Purpose": "p"})
    assert house.api.act("disable", "guard").status == 409
    assert house.ask("authz-deny").status == 403
    house.api.ok("POST", "/pluginsvc/v1/plugins/guard/release", document={"Holder": "h", "Purpose": "p"})
    assert house.api.act("disable", "guard").status == 200
    assert house.ask("authz-deny").status == 200
    house.guard.enable()
    assert house.ask("authz-deny").status == 403


def test_removed_by_force(house: House) -> None:
    """A guard that was removed though it was named closes the API, until its name is taken out of the configuration."""
    make_guard(house.daemon, "second")
    house.use("second")
    assert house.api.call("DELETE", "/plugins/second", {"force": "1"}).status == 200
    answer = house.ask()
    assert answer.status == 500
    assert answer.error.startswith("plugin second failed with error: AuthZPlugin.AuthZReq: ")
    assert "not found" in answer.error
    assert "take it out of plugins in [authorization]" in house.daemon.log()
    house.use()
    assert house.ask().status == 200


def test_a_bad_name_at_reload_changes_nothing(house: House) -> None:
    """At a reload an unknown name, or that of another plugin, is logged, and the chain stays as it was (REF 7.56)."""
    unruly.make(house.daemon, "dummy", "well")
    house.use("guard")
    for name in ("nobody/authz:v1", "dummy"):
        house.use(name)
        assert f"authorization.plugins: {name} cannot guard the API" in house.daemon.log()
        assert house.ask("authz-deny").status == 403


def test_a_killed_daemon_is_guarded_when_it_is_back(house: House) -> None:
    """After KILL and a new start no request is served that is not judged, while the plugin has run all the time."""
    house.use("guard")
    pid = house.guard.state()["Pid"]
    house.daemon.kill()
    house.daemon.start()
    assert house.ask("authz-deny").status == 403
    assert house.guard.state()["Pid"] == pid


def test_a_disabled_guard_does_not_keep_the_daemon_from_starting(house: House) -> None:
    """A daemon whose guard is disabled starts, says so, and is guarded as soon as it is enabled."""
    house.use("guard")
    assert house.api.act("disable", "guard").status == 200
    assert house.daemon.stop() == 0
    house.daemon.start()
    assert "authz.disabled" in house.daemon.log()
    assert house.ask("authz-deny").status == 200
    house.guard.enable()
    assert house.ask("authz-deny").status == 403


def test_what_keeps_the_daemon_from_starting(house: House) -> None:
    """An unknown name, and that of another kind of plugin, is told with what to do; without it the daemon starts."""
    other = unruly.make(house.daemon, "other", "well")
    assert house.daemon.stop() == 0
    log = house.daemon.top / "refused.log"
    try:
        for name, why in [("nobody/authz:v1", "not found"), (other.name, 'does not provide "authz/1.0"')]:
            house.configure(name)
            proc = procs.start([PROGRAM, *house.daemon.serve(), *house.daemon.flags], log=log, env=env())
            assert proc.wait() == 1
            last = log.read_text().splitlines()[-1]
            assert last.startswith(f"pluginsvc: authorization.plugins: {name} cannot guard the API: ")
            assert why in last
            assert "take it out of the configuration" in last
            assert not procs.accepts(house.daemon.socket)
    finally:
        house.configure()
        house.daemon.start()
    assert house.ask().status == 200


def test_clients_with_certificates(house: House, tmp_path: Path) -> None:
    """With TLS the docker CLI works over TCP, guarded as anybody; a file that is not there keeps the daemon down."""
    authority = Authority(tmp_path / "pki")
    server, client = authority.server(), authority.client("client")
    port = procs.free_port()
    files = f"ca-file = '{authority.file}'\ncert-file = '{server.cert}'\nkey-file = "
    house.daemon.stop()
    flags = house.daemon.flags
    house.daemon.flags = (*flags, "--host", f"tcp://127.0.0.1:{port}")
    try:
        log = house.daemon.top / "refused.log"
        house.configure("guard", more=f"[tls]\n{files}'{tmp_path}/none.pem'\n")
        proc = procs.start([PROGRAM, *house.daemon.serve(), *house.daemon.flags], log=log, env=env())
        assert proc.wait() == 1
        assert log.read_text().splitlines()[-1].startswith(f"pluginsvc: cannot speak TLS: {tmp_path}/none.pem: ")
        house.configure("guard", more=f"[tls]\n{files}'{server.key}'\n")
        house.daemon.start()
        words = ["--tlsverify", "--tlscacert", str(authority.file), "--tlscert", str(client.cert)]
        words += ["--tlskey", str(client.key)]
        cli = DockerCLI(house.daemon.cli().path, f"tcp://127.0.0.1:{port}", tmp_path / "cli")
        assert "guard:latest" in cli.run(*words, "plugin", "ls", check=True).stdout
        done = cli.run(*words, "plugin", "inspect", "authz-deny")
        assert "authorization denied by plugin guard:latest: not  you" in done.stderr
        folder = build_sample_plugin(tmp_path / "plugin")
        (folder / "rootfs" / "large").write_bytes(random.randbytes(20_000_000))
        cli.run(*words, "plugin", "create", "large", str(folder), check=True)
        assert cli.run("plugin", "ls").returncode != 0
        assert not [line for line in house.api.ok("GET", "/info")["Warnings"] if "tcp://" in line]
    finally:
        house.daemon.stop()
        house.daemon.flags = flags
        house.configure()
        house.daemon.start()
