"""Legacy plugins beside managed ones: a real daemon finds those that others run, and never takes its own for them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any

import pytest

from tests.support import procs
from tests.support.daemon import Daemon, running_daemon
from tests.support.unruly import Plugin
from tests.support.wire import Api, pack

pytestmark = [pytest.mark.root, pytest.mark.timeout(90)]

VOLUMES = "/pluginsvc/v1/capabilities/docker.volumedriver%2F1.0"


class Handler(BaseHTTPRequestHandler):
    """Answers as a volume plugin."""

    def do_POST(self) -> None:
        self.server.calls.append(self.path)  # type: ignore[attr-defined]  # put there by legacy_plugin
        body = json.dumps({"Implements": ["VolumeDriver"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Say nothing."""

    def address_string(self) -> str:
        return "unix"


@contextmanager
def legacy_plugin(path: Path) -> Iterator[list[str]]:
    """Run a volume plugin on a socket, as somebody else would; give the calls it has got."""
    calls: list[str] = []
    with ThreadingUnixStreamServer(str(path), Handler) as server:
        server.calls = calls  # type: ignore[attr-defined]  # the only way to a handler
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield calls
        finally:
            server.shutdown()
            thread.join()
    path.unlink()


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """Give the directory of legacy plugins, where this daemon publishes its own sockets as well."""
    path = tmp_path / "plugins"
    path.mkdir()
    return path


@pytest.fixture
def own(tmp_path: Path, plugins: Path) -> Iterator[Daemon]:
    """Give a daemon that looks there, and in a directory that is not there yet."""
    config = tmp_path / "c.toml"
    config.write_text(f'legacy-dirs = ["{plugins}", "{tmp_path}/etc/plugins"]\n')
    with running_daemon("--config", str(config), "--publish-dir", str(plugins)) as found:
        yield found


def lookup(daemon: Daemon, name: str) -> tuple[int, Any]:
    answer = Api(daemon.socket).call("POST", f"{VOLUMES}/lookup", document={"Mode": "lookup", "Name": name})
    return answer.status, answer.error or (answer.body["Plugin"]["Name"], answer.body["Plugin"]["Kind"])


def listed(daemon: Daemon) -> list[tuple[str, str]]:
    return [(found["Name"], found["Kind"]) for found in Api(daemon.socket).ok("GET", VOLUMES)]


def test_beside_a_managed_one(own: Daemon, plugins: Path, tmp_path: Path, folder: Callable[..., Path]) -> None:
    """A managed plugin hides the legacy one of its name, on or off, until it is removed; that is asked once."""
    api = Api(own.socket)
    (tmp_path / "etc" / "plugins").mkdir(parents=True)
    (tmp_path / "etc" / "plugins" / "vol.spec").write_text(f"unix://{tmp_path}/vol.sock")
    with legacy_plugin(tmp_path / "vol.sock") as calls, legacy_plugin(plugins / "other.sock"):
        assert lookup(own, "vol") == (200, ("vol", "legacy"))
        assert api.create("vol", pack(folder())).status == 204
        assert lookup(own, "vol") == (409, "plugin vol:latest found but disabled")
        assert listed(own) == [("other", "legacy")]
        Plugin(own, "vol").enable()
        # its own socket is published where legacy plugins are looked for
        assert (plugins / "vol.sock").is_socket()
        assert lookup(own, "vol") == (200, ("vol:latest", "managed"))
        assert listed(own) == [("vol:latest", "managed"), ("other", "legacy")]
        assert api.call("DELETE", "/plugins/vol", {"force": 1}).status == 200
        assert lookup(own, "vol") == (200, ("vol", "legacy"))
        assert listed(own) == [("other", "legacy"), ("vol", "legacy")]
        assert calls == ["/Plugin.Activate"]
    assert listed(own) == []
    assert lookup(own, "other")[0] == 404


def test_what_is_published_is_no_legacy_plugin(own: Daemon, plugins: Path, folder: Callable[..., Path]) -> None:
    """A managed plugin is not found again by the name under which its socket is published, nor by one who links it."""
    assert Api(own.socket).create("pub/vol", pack(folder())).status == 204
    Plugin(own, "pub/vol").enable()
    (plugins / "again.spec").write_text(f"unix://{plugins}/pub-vol.sock")
    assert (plugins / "pub-vol.sock").is_socket()
    for name in ("pub-vol", "again"):
        status, text = lookup(own, name)
        assert status == 404
        assert text.endswith(f"could not find plugin {name} in v1 plugin registry: plugin not found")
    assert listed(own) == [("pub/vol:latest", "managed")]


def test_socket_that_leads_out(own: Daemon, plugins: Path, folder: Callable[..., Path], tmp_path: Path) -> None:
    """A managed plugin that puts a link in the place of its socket does not have us call another socket of the host."""
    assert Api(own.socket).create("pub/vol", pack(folder())).status == 204
    Plugin(own, "pub/vol").enable()
    socket = (plugins / "pub-vol.sock").readlink()
    (plugins / "again.spec").write_text(f"unix://{plugins}/pub-vol.sock")
    with legacy_plugin(tmp_path / "host.sock") as calls:
        socket.unlink()
        socket.symlink_to(tmp_path / "host.sock")
        for name in ("pub-vol", "again"):
            assert lookup(own, name)[0] == 404
        assert ("pub-vol", "legacy") not in listed(own)
        assert ("again", "legacy") not in listed(own)
        assert calls == []


def test_told_of_while_it_comes_and_goes(own: Daemon, plugins: Path) -> None:
    """A daemon that was killed finds a legacy plugin again, and one that is unusable says so once in its log."""
    (plugins / "bad.json").write_text("{")
    with legacy_plugin(plugins / "vol.sock") as calls:
        assert listed(own) == [("vol", "legacy")]
        own.kill()
        own.start()
        for _ in range(3):
            assert listed(own) == [("vol", "legacy")]
        assert calls == ["/Plugin.Activate"] * 2
        assert lookup(own, "bad")[0] == 500
    procs.wait_until(lambda: own.log().count("legacy.trouble") == 2)
