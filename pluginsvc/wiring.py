"""From settings to what they describe: listeners, registries, links, sinks, and what the daemon tells of itself."""

from __future__ import annotations

import socket
import uuid
from importlib.metadata import version as package_version
from pathlib import Path
from urllib.parse import urlsplit

from pluginsvc.api.listeners import FdListener, Listener, TcpListener, UnixListener
from pluginsvc.api.system import SystemFacts
from pluginsvc.config import Settings
from pluginsvc.directory.published import Published, Wish
from pluginsvc.errors import InvalidParameter
from pluginsvc.events.delivery import Sink
from pluginsvc.events.file_sink import FileSink
from pluginsvc.events.forms import Origin
from pluginsvc.events.nats_sink import NatsSink
from pluginsvc.events.webhook import Webhook
from pluginsvc.fsutil import atomic_write
from pluginsvc.model.lifecycle import UP
from pluginsvc.plugins.inventory import Inventory
from pluginsvc.registry.hosts import Hosts


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
    )


def listeners(settings: Settings, inherited: list[int]) -> list[Listener]:
    """Turn the addresses of the settings into listeners; systemd's sockets come where ``fd://`` stands.

    Raises:
        NothingInherited: ``fd://`` is asked for and systemd has handed nothing over.
    """
    found: list[Listener] = []
    for host in settings.hosts:
        url = urlsplit(host)
        if url.scheme == "unix":
            found.append(UnixListener(Path(url.path), group=settings.group))
        elif url.scheme == "tcp":
            found.append(TcpListener(url.hostname or "", url.port or 0))
        else:
            if not inherited:
                raise NothingInherited
            found += [FdListener(fd) for fd in inherited]
    return found


def hosts(settings: Settings) -> Hosts:
    """Return how registries are to be spoken to."""
    return Hosts(
        insecure=settings.insecure_registries,
        mirrors=settings.registry_mirrors,
        certs_dirs=[Path(folder) for folder in settings.certs_dirs],
    )


def published(settings: Settings, inventory: Inventory) -> Published:
    """Return what links enabled plugins' sockets for other engines."""

    def wished() -> list[Wish]:
        return [
            Wish(
                name=entry.record.name,
                plugin_id=entry.record.id,
                socket=entry.config.interface.socket,
                up=inventory.status(entry.record.id).state in UP,
            )
            for entry in inventory
            if entry.record.enabled
        ]

    directory = None if settings.publish_dir == "none" else Path(settings.publish_dir)
    return Published(Path(settings.run_root) / "plugins", directory, wished)


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
