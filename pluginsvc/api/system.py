"""Endpoints about the daemon itself: ping, version, info, disk usage, login, and what is not served (REF 1.3, 1.7)."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import os
import platform
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from multidict import CIMultiDict

from pluginsvc.api.bodies import credentials, read_json
from pluginsvc.api.handlers import Manager
from pluginsvc.api.params import MAX_API_VERSION, MIN_API_VERSION
from pluginsvc.api.replies import Answer, empty, json_reply
from pluginsvc.api.routing import Route
from pluginsvc.errors import NotImplementedHere
from pluginsvc.model.manifest import Platform

_ENGINE = "27.5.1"
_PING_HEADERS = CIMultiDict(
    {
        "Builder-Version": "2",
        "Cache-Control": "no-cache, no-store, must-revalidate",
        "Content-Type": "text/plain; charset=utf-8",
        "Pragma": "no-cache",
        "Swarm": "inactive",
    }
)


class UnsupportedByDaemon(NotImplementedHere):
    """A call of the Engine API that is about other things than plugins.

    ``docker inspect`` skips errors that contain "not supported" (REF 1.8).
    """

    def __init__(self, method: str, path: str) -> None:
        self.method, self.path = method, path
        super().__init__(
            f"{method} {path} is not supported: this daemon is pluginsvc, which manages Docker plugins and nothing "
            "else; for containers, images, networks, volumes and swarms ask a Docker Engine"
        )


@dataclass(slots=True, kw_only=True)
class SystemFacts:
    """What the daemon tells of itself; a reload changes ``insecure``, ``mirrors``, ``debug`` and ``authorization``.

    Attributes:
        id: stable over restarts.
        name: host name.
        root: where state is kept.
        version: of pluginsvc.
        git_commit: what it was built from; empty if unknown.
        build_time: RFC 3339; empty if unknown.
        runtime: the OCI runtime, by name or path.
        insecure: configured insecure registries, ``host[:port]`` or CIDR.
        mirrors: configured mirrors of docker.io, as URLs.
        debug: whether it logs at debug level.
        live_restore: whether plugins go on when it stops.
        authorization: configured plugins that guard the API.
    """

    id: str
    name: str
    root: Path
    version: str
    git_commit: str = ""
    build_time: str = ""
    runtime: str = "runc"
    insecure: Sequence[str] = ()
    mirrors: Sequence[str] = ()
    debug: bool = False
    live_restore: bool = True
    authorization: Sequence[str] = ()

    @property
    def engine_version(self) -> str:
        """The version clients see: the Engine whose newest API is ours, marked as Debian marks its own builds.

        What follows a plus does not count in comparisons of versions, so no client takes it for a pre-release.
        """
        return f"{_ENGINE}+pluginsvc.{self.version}"


class SystemHandlers:
    """The endpoints beside the plugins'."""

    def __init__(
        self, manager: Manager, facts: SystemFacts, *, listening: list[str], event_streams: Iterable[Sized]
    ) -> None:
        self._manager = manager
        self._facts = facts
        self._listening = listening
        self._event_streams = event_streams

    def routes(self) -> list[Route]:
        """Return the endpoints."""
        return [
            Route("GET", "/_ping", ping),
            Route("HEAD", "/_ping", ping),
            Route("GET", "/version", self.version),
            Route("GET", "/info", self.info),
            Route("GET", "/system/df", self.disk_usage),
            Route("POST", "/auth", self.login),
        ]

    async def version(self, _request: web.BaseRequest, _name: str) -> web.Response:
        """Tell versions; the CLI prints the components, docker-py reads ``ApiVersion``."""
        facts = self._facts
        common: dict[str, Any] = {
            "ApiVersion": MAX_API_VERSION,
            "MinAPIVersion": MIN_API_VERSION,
            "GitCommit": facts.git_commit,
            "GoVersion": f"none, Python {platform.python_version()}",
            "Os": "linux",
            "Arch": Platform.host().architecture,
            "KernelVersion": os.uname().release,
            "BuildTime": facts.build_time,
        }
        engine = {
            "Name": "Engine",
            "Version": facts.engine_version,
            "Details": common | {"Experimental": "false"},
        }
        own = {"Name": "pluginsvc", "Version": facts.version, "Details": {"GitCommit": facts.git_commit}}
        return json_reply(
            {"Platform": {"Name": "pluginsvc"}, "Version": facts.engine_version, "Experimental": False}
            | common
            | {"Components": [engine, own]}
        )

    async def info(self, _request: web.BaseRequest, _name: str) -> web.Response:
        """Tell about the host, the daemon and its registries."""
        facts = self._facts
        machine = await asyncio.to_thread(_machine)
        return json_reply(
            machine
            | _NOT_HERE
            | {
                "ID": facts.id,
                "Name": facts.name,
                "ServerVersion": facts.engine_version,
                "DockerRootDir": str(facts.root),
                "Debug": facts.debug,
                "LiveRestoreEnabled": facts.live_restore,
                "DefaultRuntime": facts.runtime,
                "Runtimes": {facts.runtime: {"path": facts.runtime}},
                "NEventsListener": sum(map(len, self._event_streams)),
                "NGoroutines": len(asyncio.all_tasks()),
                "Plugins": {
                    "Authorization": list(facts.authorization),
                    "Log": ["json-file"],
                    "Network": sorted(self._manager.enabled_network_drivers()),
                    "Volume": [],
                },
                "RegistryConfig": registry_config(facts.insecure, facts.mirrors),
                "Warnings": [
                    f"WARNING: the API is offered on {address} without encryption or login: "
                    "every local user who can connect is as good as root on this host"
                    for address in self._listening
                    if address.startswith("tcp:")
                ],
            }
        )

    async def disk_usage(self, _request: web.BaseRequest, _name: str) -> web.Response:
        """Tell the size of what is stored, in the words that Docker has for it."""
        usage = await self._manager.disk_usage()
        nothing: list[object] = []
        return json_reply(
            {
                "LayersSize": usage.get("layers", 0),
                "Images": nothing,
                "Containers": nothing,
                "Volumes": nothing,
                "BuildCache": nothing,
                "BuilderSize": 0,
            }
        )

    async def login(self, request: web.BaseRequest, _name: str) -> web.Response:
        """Check credentials with their registry: ``docker login``."""
        token = await self._manager.login(credentials(await read_json(request)))
        return json_reply({"IdentityToken": token, "Status": "Login Succeeded"})


async def ping(request: web.BaseRequest, _name: str) -> web.Response:
    """Answer ``OK``; clients negotiate the version by the headers (REF 1.3)."""
    if request.method == "HEAD":
        return web.Response(headers={**_PING_HEADERS, "Content-Length": "0"})
    return Answer(body=b"OK", headers=_PING_HEADERS)


async def nothing(_request: web.BaseRequest, _name: str) -> web.Response:
    """Answer OPTIONS, whatever the path."""
    return empty()


async def unsupported(request: web.BaseRequest, path: str) -> web.Response:
    """Refuse what Docker has and this daemon has not."""
    raise UnsupportedByDaemon(request.method, path)


def registry_config(insecure: Sequence[str], mirrors: Sequence[str]) -> dict[str, Any]:
    """Build ``RegistryConfig`` (REF 1.7): networks and hosts apart, mirrors with a slash at the end."""
    networks, hosts = [], []
    for item in insecure:
        try:
            networks.append(str(ipaddress.ip_network(item)))
        except ValueError:
            hosts.append(item)
    slashed = [mirror.rstrip("/") + "/" for mirror in mirrors]
    official = {"Name": "docker.io", "Mirrors": slashed, "Secure": True, "Official": True}
    return {
        "InsecureRegistryCIDRs": [*networks, "::1/128", "127.0.0.0/8"],
        "IndexConfigs": {"docker.io": official}
        | {host: {"Name": host, "Mirrors": [], "Secure": False, "Official": False} for host in hosts},
        "Mirrors": slashed,
    }


def _machine() -> dict[str, Any]:
    """Read facts that need the disk; blocks."""
    uname = os.uname()
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {"PRETTY_NAME": "Linux"}
    return {
        "Architecture": uname.machine,
        "KernelVersion": uname.release,
        "OSType": "linux",
        "OSVersion": release.get("VERSION_ID", ""),
        "OperatingSystem": release.get("PRETTY_NAME", "Linux"),
        "NCPU": os.cpu_count() or 1,
        "MemTotal": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "NFd": len(os.listdir("/proc/self/fd")),
        "SystemTime": dt.datetime.now(dt.UTC).isoformat(),
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": "2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "1",
    }


# What clients look for although there is none of it here. The limits are those of the kernel: old CLIs print a
# warning for each that is missing.
_NOT_HERE: dict[str, Any] = {
    "Containers": 0,
    "ContainersRunning": 0,
    "ContainersPaused": 0,
    "ContainersStopped": 0,
    "Images": 0,
    "Driver": "pluginsvc",
    "DriverStatus": [],
    "LoggingDriver": "json-file",
    "MemoryLimit": True,
    "SwapLimit": True,
    "KernelMemory": True,
    "KernelMemoryTCP": True,
    "CpuCfsPeriod": True,
    "CpuCfsQuota": True,
    "CPUShares": True,
    "CPUSet": True,
    "PidsLimit": True,
    "OomKillDisable": True,
    "IPv4Forwarding": True,
    "BridgeNfIptables": True,
    "BridgeNfIp6tables": True,
    "IndexServerAddress": "https://index.docker.io/v1/",
    "HttpProxy": "",
    "HttpsProxy": "",
    "NoProxy": "",
    "Labels": [],
    "ExperimentalBuild": False,
    "Isolation": "",
    "InitBinary": "",
    "ContainerdCommit": {"ID": "N/A", "Expected": "N/A"},
    "RuncCommit": {"ID": "N/A", "Expected": "N/A"},
    "InitCommit": {"ID": "N/A", "Expected": "N/A"},
    "SecurityOptions": ["name=confined-unpacking"],
    "Swarm": {
        "NodeID": "",
        "NodeAddr": "",
        "LocalNodeState": "inactive",
        "ControlAvailable": False,
        "Error": "",
        "RemoteManagers": None,
    },
}
