"""From settings to what they describe: listeners, registries, links, sinks, and what the daemon tells of itself."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version as package_version
from pathlib import Path
from urllib.parse import urlsplit

from pluginsvc.api.listeners import FdListener, Listener, TcpListener, TlsFiles, UnixListener
from pluginsvc.api.system import SystemFacts
from pluginsvc.config import Settings
from pluginsvc.directory import authz, engine_files
from pluginsvc.directory.legacy import Legacy
from pluginsvc.directory.links import Trouble
from pluginsvc.directory.mount_links import mount_links
from pluginsvc.directory.published import Link, Published, Wish
from pluginsvc.errors import InvalidParameter
from pluginsvc.events.delivery import Sink
from pluginsvc.events.file_sink import FileSink
from pluginsvc.events.forms import Origin
from pluginsvc.events.nats_sink import NatsSink
from pluginsvc.events.webhook import Webhook
from pluginsvc.fsutil import atomic_write
from pluginsvc.model.lifecycle import UP
from pluginsvc.model.plugin import Capability
from pluginsvc.plugins.inventory import Inventory
from pluginsvc.registry.hosts import Hosts

_VOLUMES = Capability.wanted("docker.volumedriver/1.0")


class NothingInherited(InvalidParameter):
    """``fd://`` without socket activation."""

    def __init__(self) -> None:
        super().__init__(
            "fd:// is set but no socket was handed over: start pluginsvc.socket, or listen on unix:///PATH"
        )


def facts(settings: Settings) -> SystemFacts:
    """Return what the daemon tells of itself; its ID is drawn at the first start and kept in ROOT. Blocks."""
    path = Path(settings.root) / "engine-id"
    try:
        engine_id = path.read_text("ascii").strip()
    except FileNotFoundError:
        engine_id = str(uuid.uuid4())
        atomic_write(path, f"{engine_id}\n".encode())
    return SystemFacts(
        id=engine_id,
        name=socket.gethostname(),
        root=Path(settings.root),
        version=package_version("pluginsvc"),
        runtime=settings.runtime,
        insecure=settings.insecure_registries,
        mirrors=settings.registry_mirrors,
        debug=settings.log_level == "debug",
        live_restore=settings.shutdown == "keep",
        authorization=settings.authorization.plugins,
    )


def listeners(settings: Settings, inherited: list[int]) -> list[Listener]:
    """Turn the addresses of the settings into listeners; systemd's sockets come where ``fd://`` stands.

    Raises:
        NothingInherited: ``fd://`` is asked for and systemd has handed nothing over.
    """
    found: list[Listener] = []
    files = settings.tls
    tls = TlsFiles(Path(files.ca_file), Path(files.cert_file), Path(files.key_file)) if files.ca_file else None
    for host in settings.hosts:
        url = urlsplit(host)
        if url.scheme == "unix":
            found.append(UnixListener(Path(url.path), group=settings.group))
        elif url.scheme == "tcp":
            found.append(TcpListener(url.hostname or "", url.port or 0, tls))
        else:
            if not inherited:
                raise NothingInherited
            found += [FdListener(fd, tls) for fd in inherited]
    return found


def guards(settings: Settings) -> authz.Rules:
    """Return which plugins guard the API."""
    found = settings.authorization
    return authz.Rules(found.plugins, lenient=found.on_failure == "allow", timeout=found.timeout)


def hosts(settings: Settings) -> Hosts:
    """Return how registries are to be spoken to."""
    return Hosts(
        insecure=settings.insecure_registries,
        mirrors=settings.registry_mirrors,
        certs_dirs=[Path(folder) for folder in settings.certs_dirs],
    )


def published(settings: Settings, inventory: Inventory) -> Published:
    """Return what links enabled plugins' sockets for other engines, and tells them of the links."""

    def wished() -> list[Wish]:
        return [
            Wish(
                name=entry.record.name,
                plugin_id=entry.record.id,
                socket=entry.config.interface.socket,
                up=inventory.status(entry.record.id).state in UP,
                volumes=any(capability.fits(_VOLUMES) for capability in entry.config.interface.capabilities),
                mount=entry.config.propagated_mount,
            )
            for entry in inventory
            if entry.record.enabled
        ]

    directory = None if settings.publish_dir == "none" else Path(settings.publish_dir)
    sockets = Path(settings.run_root) / "plugins"
    files: list[Callable[[list[Link]], Iterable[Trouble]]] = []
    if settings.podman_conf:
        files.append(partial(engine_files.podman_conf, Path(settings.podman_conf), sockets))
    if settings.spec_dir:
        places = (Path(settings.spec_dir), Path(settings.publish_dir), sockets)
        files.append(partial(engine_files.spec_files, *places))
    if settings.publish_mounts:
        directories = [Path(path) for path in settings.publish_mounts]
        files.append(partial(mount_links, directories, Path(settings.root) / "plugins"))
    return Published(sockets, directory, wished, files)


def legacy(settings: Settings) -> Legacy:
    """Return what finds the plugins that others run."""
    return Legacy(map(Path, settings.legacy_dirs), Path(settings.run_root).absolute() / "plugins")


def sinks(settings: Settings, origin: Origin) -> list[Sink]:
    """Return where events go besides their streams."""
    found: list[Sink] = []
    file, webhook, nats = settings.sinks.file, settings.sinks.webhook, settings.sinks.nats
    if file.path:
        found.append(FileSink(Path(file.path), size=file.size, files=file.files))
    if webhook.url:
        token_file = Path(webhook.token_file) if webhook.token_file else None
        found.append(Webhook(webhook.url, origin, token_file=token_file))
    if nats.servers:
        credentials = Path(nats.credentials_file) if nats.credentials_file else None
        found.append(
            NatsSink(nats.servers, origin, stream=nats.stream, subject=nats.subject, credentials_file=credentials)
        )
    return found
