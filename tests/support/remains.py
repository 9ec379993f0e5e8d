"""Looks for what a daemon must not leave behind: half plugins, stray files, mounts, processes, unreferenced blobs."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.support import parts, procs
from tests.support.daemon import Daemon
from tests.support.wire import Api


@contextmanager
def _database(daemon: Daemon) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(f"file:{daemon.root}/state.db?mode=ro", uri=True)) as db:
        yield db


def journal(daemon: Daemon) -> list[dict[str, Any]]:
    """Return every event of the journal, as the daemon stores it, in order."""
    with _database(daemon) as db:
        return [json.loads(raw) for (raw,) in db.execute("SELECT event FROM journal ORDER BY seq")]


def journal_id(daemon: Daemon) -> UUID:
    """Return the ID of the journal, which events carry to where those of many hosts come together."""
    with _database(daemon) as db:
        return UUID(db.execute("SELECT id FROM journal_id").fetchone()[0])


def told(daemon: Daemon) -> dict[str, bool]:
    """Fold the journal: the IDs of the plugins that exist by its word → whether they are enabled."""
    found: dict[str, bool] = {}
    for event in journal(daemon):
        action, plugin = event["action"], event["plugin_id"]
        if action == "create":
            assert plugin not in found, f"{plugin} was created twice"
            found[plugin] = False
        elif action in {"enable", "disable"}:
            assert found[plugin] == (action == "disable"), f"{action} of {plugin} without a change"
            found[plugin] = action == "enable"
        elif action == "remove":
            del found[plugin]
    return found


def leased(daemon: Daemon) -> list[str]:
    """Return what leases are held for."""
    with _database(daemon) as db:
        return [purpose for (purpose,) in db.execute("SELECT purpose FROM leases")]


def names(folder: Path) -> set[str]:
    """Return the names in a folder, which may be missing."""
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def workers(pid: int) -> list[int]:
    """Return the unpacking processes that daemon `pid` has started; its spare is one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(pid).encode() in words and any(b"pluginsvc.rootfs.worker" in word for word in words):
            found.append(int(folder.name))
    return found


def _is_of(pid: int, containers: set[str]) -> bool:
    """Tell whether a process is the monitor of one of these containers, or runs in one."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return True  # it has ended
    return any(name in text for name in containers)


def purge(daemon: Daemon) -> None:
    """End and unmount whatever a daemon that is dead, after a test that failed, has left; nothing there is fine."""
    for container in names(daemon.run / "runtime"):
        words: list[str | Path] = [parts.find("runc"), "--root", daemon.run / "runtime", "delete", "--force", container]
        subprocess.run(words, check=False, capture_output=True, timeout=30)
    for pid in daemon.processes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for point in sorted(daemon.mounts(), key=len, reverse=True):
        subprocess.run(["umount", "--lazy", point], check=False, timeout=30)


def check_files(daemon: Daemon) -> None:
    """Assert that the disk, the mounts and the processes are those of the plugins that are listed, and no more."""
    listed = {plugin["Id"]: plugin["Enabled"] for plugin in Api(daemon.socket).plugins()}
    assert told(daemon) == listed
    enabled = {plugin for plugin, runs in listed.items() if runs}
    assert names(daemon.root / "staging") == set()
    assert names(daemon.root / "plugins") == set(listed)
    for plugin in listed:
        found = {name for name in names(daemon.root / "plugins" / plugin) if name != "propagated-mount"}
        assert len(found) == 1, f"{plugin} has {found}"
        assert (daemon.root / "plugins" / plugin / found.pop() / "rootfs").is_dir()
    assert names(daemon.root / "logs") <= set(listed)
    for folder in ("plugins", "instances"):
        assert names(daemon.run / folder) <= enabled
    links = [Path(os.readlink(daemon.published / name)) for name in names(daemon.published)]
    assert {link.parent.name for link in links} <= enabled, links
    containers = names(daemon.run / "runtime")
    assert len(containers) <= len(enabled)
    assert all(any(name.startswith(plugin[:12]) for plugin in enabled) for name in containers)
    # those of other daemons on this machine are not ours to judge
    ours = {event["plugin_id"][:12] for event in journal(daemon)}
    stray = {name for name in cgroups() if name[:12] in ours} - containers
    assert stray == set(), stray
    assert all(any(plugin in point for plugin in enabled) for point in daemon.mounts()), daemon.mounts()
    assert daemon.proc
    own = {*workers(daemon.proc.pid), *(pid for pid in daemon.processes() if _is_of(pid, containers))}
    strays = {pid: words for pid, words in daemon.processes().items() if pid not in own}
    assert strays == {}, strays


def cgroups() -> dict[str, set[int]]:
    """Return all cgroups of plugins on this machine: the container's ID → the processes in it, in any hierarchy."""
    found: dict[str, set[int]] = {}
    for hierarchy in [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]:
        for path in hierarchy.glob("pluginsvc-*"):
            with suppress(OSError):  # it goes while we look
                pids = map(int, (path / "cgroup.procs").read_text().split())
                found.setdefault(path.name.removeprefix("pluginsvc-"), set()).update(pids)
    return found


def monitors(daemon: Daemon) -> dict[int, str]:
    """Return the monitors of a daemon's plugins: process ID → the container's ID."""
    found = {}
    for pid, line in daemon.processes().items():
        words = line.split()
        if words and Path(words[0]).name == "conmon":
            found[pid] = words[words.index("--cid") + 1]
    return found


def _accepts(folder: Path, name: str) -> bool:
    """Tell whether a plugin's socket accepts connections, however long its path is."""
    fd = os.open(folder, os.O_PATH)
    try:
        return procs.accepts(Path(f"/proc/self/fd/{fd}/{name}"))
    finally:
        os.close(fd)


def check_lives(daemon: Daemon) -> dict[str, int]:
    """Assert that what the database says of each plugin is what the API says and what there is.

    Returns:
        The plugins that run: ID → process ID.
    """
    api = Api(daemon.socket)
    with _database(daemon) as db:
        records = {key: json.loads(raw) for key, raw in db.execute("SELECT id, record FROM plugins")}
        rows = {key: json.loads(raw) for key, raw in db.execute("SELECT plugin_id, status FROM plugin_status")}
    listed = {plugin["Id"]: plugin for plugin in api.ok("GET", "/pluginsvc/v1/plugins")}
    groups, watching, up = cgroups(), monitors(daemon), {}
    assert listed.keys() == records.keys()
    for plugin, shown in listed.items():
        wished = records[plugin].get("enabled", False)
        state = rows.get(plugin, {}).get("state", "stopped")
        told = f"{shown} in the API, {rows.get(plugin)} in the database, wished: {wished}"
        assert (shown["Desired"], shown["State"]) == ("enabled" if wished else "disabled", state), told
        containers = {name: pids for name, pids in groups.items() if name.startswith(plugin[:12])}
        monitored = [name for name in watching.values() if name.startswith(plugin[:12])]
        if state in {"running", "healthy", "unhealthy"}:
            assert wished, told
            up[plugin] = api.ok("GET", f"/pluginsvc/v1/plugins/{plugin}/json")["Pid"]
            assert list(containers.values()) == [{up[plugin]}], f"{told}: {containers}"
            assert monitored == list(containers), f"{told}: {monitored}"
            assert _accepts(daemon.run / "plugins" / plugin, "p.sock"), told
        else:
            assert state in {"stopped", "backing-off", "crash-loop"}, told
            assert (containers, monitored) == ({}, []), told
    return up


def check_blobs(daemon: Daemon) -> None:
    """Collect, then assert that exactly the blobs are there that plugins need, each whole."""
    Api(daemon.socket).collect()
    with _database(daemon) as db:
        needed = {digest.removeprefix("sha256:") for (digest,) in db.execute("SELECT digest FROM plugin_blobs")}
    assert daemon.blobs() == needed
    for digest in needed:
        path = daemon.root / "content" / "blobs" / "sha256" / digest
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    ingests = [path for path in (daemon.root / "content" / "ingest").glob("*/*") if path.name == "data"]
    assert ingests == []


def check(daemon: Daemon, *, logged: int = 0) -> None:
    """Assert all of design §5.1 that can be seen from outside while no request is under way.

    What goes on by itself after a request or a start, such as deleting a tombstone, gets some seconds to end.

    Args:
        daemon: runs.
        logged: characters of its log that are not to be looked at for tracebacks.
    """
    deadline = time.monotonic() + 10
    while True:
        try:
            check_files(daemon)
            Api(daemon.socket).collect()
            assert leased(daemon) == []
            break
        except (AssertionError, FileNotFoundError):
            if time.monotonic() > deadline:
                raise
            time.sleep(procs.POLL)
    check_blobs(daemon)
    _, crash, text = daemon.log()[logged:].partition("Traceback")
    assert not crash, text[:4000]
