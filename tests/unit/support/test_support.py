"""The helpers that other tests stand on, tried with the real programs."""

import base64
import signal
import ssl
import subprocess
from contextlib import closing
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path

import pytest

from tests.support import parts, procs
from tests.support.docker_cli import CLIFailedError, DockerCLI, docker_clis
from tests.support.registry import Registry, start_registry
from tests.support.sample import build_sample_plugin


def _status(registry: Registry, *, user: str = "", password: str = "") -> int:
    """Ask for /v2/ and trust the authorities of the machine, and of SSL_CERT_FILE, only."""
    secure = registry.url.startswith("https:")
    connection = (HTTPSConnection if secure else HTTPConnection)(registry.host, timeout=10)
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    with closing(connection):
        connection.request("GET", "/v2/", headers={"Authorization": f"Basic {login}"} if user else {})
        return connection.getresponse().status


def test_registry_with_login_lets_in_only_who_knows_it(tmp_path: Path) -> None:
    """The registry answers 200 to the right password and 401 to a wrong one or none."""
    with start_registry(tmp_path, htpasswd=("nora", "s3cret")) as registry:
        assert _status(registry, user="nora", password="s3cret") == 200
        assert _status(registry, user="nora", password="other") == 401
        assert _status(registry) == 401


def test_registry_with_tls_is_trusted_through_its_own_authority_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certificate holds for 127.0.0.1 with the registry's authority, and with no other."""
    with start_registry(tmp_path, tls=True) as registry:
        with pytest.raises(ssl.SSLCertVerificationError):
            _status(registry)
        monkeypatch.setenv("SSL_CERT_FILE", str(registry.ca_path))
        assert _status(registry) == 200


def test_a_process_that_dies_early_fails_the_wait_with_its_log(tmp_path: Path) -> None:
    """Waiting ends at once when the process is gone, and the message holds what it said."""
    proc = procs.start(["sh", "-c", "echo no luck; exit 7"], log=tmp_path / "log")
    with pytest.raises(procs.ProcessFailedError, match=r"ended early with 7:\nno luck"):
        proc.wait_until(lambda: False)
    assert proc.end() == 7


def test_a_process_that_ignores_term_is_killed_and_reaped(tmp_path: Path) -> None:
    """End sends KILL after the grace period and may be called twice."""
    log = tmp_path / "log"
    proc = procs.start(["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done"], log=log)
    proc.wait_until(lambda: log.read_text() == "up\n")
    assert proc.end(grace=0.2) == -signal.SIGKILL
    assert proc.end() == -signal.SIGKILL


@pytest.mark.root
def test_the_sample_plugin_answers_on_its_socket_and_stops_on_term(tmp_path: Path) -> None:
    """The built program makes its socket, accepts, and leaves with 0 and without the socket."""
    folder = build_sample_plugin(tmp_path / "p", version="7", entrypoint=["/other"], documentation=None)
    config = (folder / "config.json").read_text()
    assert '"/other"' in config
    assert '"value": "7"' in config
    assert "documentation" not in config
    # a socket has 107 bytes for its path
    socket = folder / "rootfs" / "run" / "docker" / "plugins" / "sample.sock"
    command: list[str | Path] = ["chroot", folder / "rootfs", "/sample-volume-plugin"]
    with procs.running(command, log=tmp_path / "log", answers=lambda: procs.accepts(socket)) as proc:
        assert proc.end() == 0
    assert not socket.exists()


@pytest.mark.parametrize("path", docker_clis(), ids=str)
def test_docker_cli_uses_its_own_settings_and_reports_failures(path: Path, tmp_path: Path) -> None:
    """A login is stored in the CLI's own folder; a command that fails raises with its output when asked to."""
    cli = DockerCLI(path, f"unix://{tmp_path}/none.sock", tmp_path / "config")
    cli.log_in("127.0.0.1:5000", "nora", "s3cret")
    assert '"127.0.0.1:5000"' in (tmp_path / "config" / "config.json").read_text()
    assert cli.run("plugin", "ls").returncode != 0
    with pytest.raises(CLIFailedError, match=r"none\.sock"):
        cli.run("plugin", "ls", check=True)


@pytest.mark.parametrize("name", ["docker-registry", "docker", "dockerd", "containerd", "skopeo", "systemd-analyze"])
def test_unpacked_programs_start(name: str) -> None:
    """Each program finds its libraries in the unpacked tree or on the machine."""
    done = subprocess.run([parts.find(name), "--version"], env=parts.env(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_program_is_named_with_what_to_do() -> None:
    """Looking for what is not there says so and points to make setup."""
    with pytest.raises(parts.MissingPartError, match=r"no-such-program is not there.*make setup"):
        parts.find("no-such-program")
