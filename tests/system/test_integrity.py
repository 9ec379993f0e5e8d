"""What the disk does to us: damaged blobs, a rootfs that never reached the disk before a power cut (design D15)."""

from __future__ import annotations

import json
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support import procs
from tests.support.daemon import Daemon, running_daemon
from tests.support.wire import Api

pytestmark = pytest.mark.root


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """Give each test a daemon of its own, since it will be stopped."""
    with running_daemon() as found:
        yield found


def test_a_damaged_layer_is_noticed_and_fetched_again(daemon: Daemon, published: str) -> None:
    """A pull that meets a stored layer with a changed byte fails and says so; the next one fetches it anew."""
    cli = daemon.cli()
    install = ("plugin", "install", "--disable", "--grant-all-permissions", "--alias")
    cli.run(*install, "first", published, check=True)
    layer = max((daemon.root / "content" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    raw = bytearray(layer.read_bytes())
    # the time in the gzip header: what unpacks stays the same, so that only the digest can tell
    raw[4] ^= 1
    layer.write_bytes(raw)
    done = cli.run(*install, "second", published)
    assert done.returncode != 0
    assert f"stored layer sha256:{layer.name} is damaged" in done.stdout + done.stderr
    cli.run(*install, "second", published, check=True)
    assert layer.read_bytes() != bytes(raw)


def record(daemon: Daemon) -> dict[str, object]:
    """Return the only plugin's record, as the stopped or running daemon has it."""
    with sqlite3.connect(f"file:{daemon.root}/state.db?mode=ro", uri=True) as db:
        (raw,) = db.execute("SELECT record FROM plugins").fetchone()
    db.close()
    found: dict[str, object] = json.loads(raw)
    return found


def test_a_rootfs_from_before_a_power_cut_is_rebuilt(daemon: Daemon, folder: Callable[..., Path]) -> None:
    """A rootfs that was not known to be on the disk when the machine went down is unpacked anew from its blobs."""
    cli = daemon.cli()
    cli.run("plugin", "create", "p", str(folder()), check=True)
    procs.wait_until(lambda: record(daemon)["unsynced_boot"] == "")
    plugin_id = str(record(daemon)["id"])
    daemon.stop()
    top = daemon.root / "plugins" / plugin_id
    (top / "gen-1" / "rootfs" / "sample-volume-plugin").write_bytes(b"")
    with sqlite3.connect(daemon.root / "state.db") as db:
        db.execute("UPDATE plugins SET record = CAST(json_set(CAST(record AS TEXT), '$.unsynced_boot', 'x') AS BLOB)")
    db.close()
    daemon.start()
    cli.run("plugin", "enable", "p", check=True)
    assert [path.name for path in top.glob("gen-*")] == ["gen-2"]
    procs.wait_until(lambda: record(daemon)["unsynced_boot"] == "")


def test_a_plugin_whose_config_is_lost_can_be_removed(daemon: Daemon, folder: Callable[..., Path]) -> None:
    """A plugin whose config blob is gone does not keep the daemon from starting, is not shown, and can be removed."""
    cli = daemon.cli()
    cli.run("plugin", "create", "p", str(folder()), check=True)
    found = record(daemon)
    daemon.stop()
    (daemon.root / "content" / "blobs" / "sha256" / str(found["config"]).removeprefix("sha256:")).unlink()
    daemon.start()
    assert cli.run("plugin", "inspect", "p").returncode != 0
    assert cli.run("plugin", "create", "p", str(folder())).returncode != 0
    assert cli.run("plugin", "rm", "p", check=True).stdout.strip() == "p"
    procs.wait_until(lambda: not list((daemon.root / "plugins").iterdir()) and not daemon.blobs())
    cli.run("plugin", "create", "p", str(folder()), check=True)


def test_a_client_that_leaves_while_its_set_is_written(daemon: Daemon, folder: Callable[..., Path]) -> None:
    """However early the client goes, what inspect shows is what the database holds; once written, it is shown."""
    cli = daemon.cli()
    cli.run("plugin", "create", "p", str(folder()), check=True)
    procs.wait_until(lambda: record(daemon)["unsynced_boot"] == "")
    shown = set()
    for number, delay in enumerate((0, 1, 2, 5, 10, 20, 50, 100), start=1):
        body = json.dumps([f"DEBUG={number}"])
        head = "POST /plugins/p/set HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n"
        with closing(sqlite3.connect(daemon.root / "state.db", isolation_level=None)) as db:
            # the daemon's own transaction waits for this one, so that the client is gone before it is over
            db.execute("BEGIN IMMEDIATE")
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(daemon.socket))
                client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
                time.sleep(delay / 1000)
            db.execute("ROLLBACK")
        # this one changes and writes nothing, but waits for the plugin's lock, and so until the other is over
        cli.run("plugin", "set", "p", "FAULT=", check=True)
        settings = Api(daemon.socket).plugins()[0]["Settings"]
        held = record(daemon)["settings"]
        assert isinstance(held, dict)
        assert settings["Env"] == held["Env"]
        shown.add(next(word for word in settings["Env"] if word.startswith("DEBUG=")))
    assert len(shown) > 1, "every client was too early to be heard"
