"""Settings of the daemon: code defaults, then the TOML file, then flags; checked whole before anything opens.

Only the daemon's own row imports this; every room takes plain arguments.
"""

from __future__ import annotations

import ipaddress
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from pluginsvc.errors import InvalidParameter
from pluginsvc.model.options import Options

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1, le=64)]
_REGISTRY = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?|\[[0-9a-fA-F:]+\](:[0-9]{1,5})?")

_NATS_SUBJECT = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_NATS_STREAM = re.compile(r"[A-Za-z0-9_-]+")


class InvalidConfig(InvalidParameter):
    """The configuration cannot be used; names every wrong value, or the first key of a wrong name or type."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.source, self.problems = source, problems
        super().__init__(f"{source}: " + "; ".join(problems))


class FileSink(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """Events as lines of JSON in a file."""

    path: str = ""
    size: Annotated[int, msgspec.Meta(ge=65_536)] = 10 * 1024 * 1024
    files: Annotated[int, msgspec.Meta(ge=2, le=100)] = 5


class WebhookSink(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """Events by HTTP POST."""

    url: str = ""
    token_file: str = ""


class NatsSink(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """Events in a stream of NATS JetStream."""

    servers: tuple[str, ...] = ()
    stream: str = "PLUGINSVC"
    subject: str = "pluginsvc"
    credentials_file: str = ""


class Sinks(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """Where events go; each is off where its first key is empty."""

    file: FileSink = FileSink()
    webhook: WebhookSink = WebhookSink()
    nats: NatsSink = NatsSink()


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """Every key of ``config/pluginsvc.toml``, at its default."""

    root: str = "/var/lib/pluginsvc"
    run_root: str = "/run/pluginsvc"
    publish_dir: str = "/run/docker/plugins"
    hosts: tuple[str, ...] = ("unix:///run/pluginsvc/pluginsvc.sock",)
    group: str = "root"
    runtime: str = "runc"
    conmon: str = "conmon"
    insecure_registries: tuple[str, ...] = ()
    registry_mirrors: tuple[str, ...] = ()
    certs_dirs: tuple[str, ...] = ("/etc/docker/certs.d", "/etc/pluginsvc/certs.d")
    max_concurrent_downloads: Count = 3
    max_concurrent_uploads: Count = 5
    gzip_level: Annotated[int, msgspec.Meta(ge=0, le=3)] = 2
    shutdown: Literal["keep", "stop"] = "keep"
    stop_timeout: Seconds = 10.0
    shutdown_timeout: Seconds = 15.0
    plugin_log_size: Annotated[int, msgspec.Meta(ge=65_536)] = 10 * 1024 * 1024
    plugin_log_files: Annotated[int, msgspec.Meta(ge=2, le=100)] = 3
    gc_interval: Annotated[float, msgspec.Meta(ge=1)] = 3600.0
    journal_events: Annotated[int, msgspec.Meta(ge=256, le=10**9)] = 100_000
    journal_size: Annotated[int, msgspec.Meta(ge=65_536, le=2**40)] = 64 * 1024 * 1024
    journal_age: Annotated[float, msgspec.Meta(ge=60, le=1e9)] = 30 * 24 * 3600.0
    reader_timeout: Annotated[float, msgspec.Meta(ge=1, le=1e6)] = 300.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"
    plugins: Options = Options()
    sinks: Sinks = Sinks()


RELOADABLE = frozenset({"log_level", "insecure_registries", "registry_mirrors"})
"""What SIGHUP changes in a running daemon; the rest needs a restart."""


def load(path: Path | None, flags: dict[str, Any]) -> Settings:
    """Read the file, lay the flags over it and check the outcome.

    Args:
        path: TOML file; ``None`` for defaults alone.
        flags: field name → value, for the flags that were given.

    Raises:
        InvalidConfig: unreadable, not TOML, unknown keys, wrong types or values that can never work.
    """
    source = str(path) if path else "flags"
    document: dict[str, Any] = {}
    if path is not None:
        try:
            document = msgspec.toml.decode(path.read_bytes())
        except OSError as exc:
            raise InvalidConfig(source, [f"cannot be read: {exc.strerror}"]) from exc
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise InvalidConfig(source, [str(exc)]) from exc
    merged = document | {name.replace("_", "-"): value for name, value in flags.items()}
    try:
        settings = msgspec.convert(merged, Settings)
    except msgspec.ValidationError as exc:
        raise InvalidConfig(source, [str(exc)]) from exc
    if problems := list(_problems(settings)):
        raise InvalidConfig(source, problems)
    return settings


def _problems(settings: Settings) -> list[str]:
    found = [
        f"{key}: {value!r} is not an absolute path"
        for key, value in (("root", settings.root), ("run-root", settings.run_root))
        if not value.startswith("/")
    ]
    if Path(settings.root) == Path(settings.run_root):
        found.append("run-root: must be another directory than root")
    found += _publish_problems(settings)
    if not settings.hosts:
        found.append("hosts: give at least one address to listen on")
    found += [problem for host in settings.hosts if (problem := host_problem(host))]
    found += [
        f"insecure-registries: {value!r} is neither host, host:port nor CIDR"
        for value in settings.insecure_registries
        if not _is_registry(value) and not _is_network(value)
    ]
    found += [
        f"registry-mirrors: {value!r} is not http:// or https:// with a host, an optional port and nothing else"
        for value in settings.registry_mirrors
        if not _is_mirror(value)
    ]
    return found + _sink_problems(settings.sinks) + _nats_problems(settings.sinks.nats)


def _publish_problems(settings: Settings) -> list[str]:
    value = settings.publish_dir
    if value == "none":
        return []
    if not value.startswith("/"):
        return [f"publish-dir: {value!r} is neither an absolute path nor none"]
    # what is in there is taken for what we have put there
    if any(Path(value).is_relative_to(own) for own in (settings.root, settings.run_root)):
        return ["publish-dir: must not be in root or run-root"]
    return []


def _sink_problems(sinks: Sinks) -> list[str]:
    found = [
        f"{key}: {value!r} is not an absolute path"
        for key, value in (("sinks.file.path", sinks.file.path), ("sinks.webhook.token-file", sinks.webhook.token_file))
        if value and not value.startswith("/")
    ]
    if not sinks.webhook.url:
        return found
    try:
        url = urlsplit(sinks.webhook.url)
        usable = url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
        login = "@" in url.netloc
    except ValueError:
        usable = login = False
    # what it is may be secret, and is not repeated
    if not usable:
        found.append("sinks.webhook.url: it is not http:// or https:// with a host")
    elif login and sinks.webhook.token_file:
        found.append("sinks.webhook: give a token-file, or a user and password in the url, not both")
    return found


def _nats_problems(nats: NatsSink) -> list[str]:
    found = [
        f"sinks.nats.servers: {_without_login(value)!r} is not nats:// or tls:// with a host, an optional port and"
        " nothing after it; before it a login may stand that has none of / ? #"
        for value in nats.servers
        if not _is_nats(value)
    ]
    if not _NATS_SUBJECT.fullmatch(nats.subject):
        found.append(f"sinks.nats.subject: {nats.subject!r} is not letters, digits, - and _ in parts with dots between")
    if not _NATS_STREAM.fullmatch(nats.stream):
        found.append(f"sinks.nats.stream: {nats.stream!r} is not letters, digits, - and _")
    if nats.credentials_file and not nats.credentials_file.startswith("/"):
        found.append(f"sinks.nats.credentials-file: {nats.credentials_file!r} is not an absolute path")
    # looked for and not loaded; what signs the log-in comes with it
    wanted = ["nats"] * bool(nats.servers) + ["cryptography"] * bool(nats.credentials_file)
    if any(find_spec(name) is None for name in wanted):
        found.append("sinks.nats: nats-py is not installed: pip install 'pluginsvc[nats]', or empty servers")
    return found


def _without_login(url: str) -> str:
    scheme, mark, rest = url.partition("://")
    return scheme + mark + rest.rpartition("@")[2]


def _is_nats(value: str) -> bool:
    scheme, _, rest = value.partition("://")
    login, _, host = rest.rpartition("@")
    return scheme in {"nats", "tls"} and _is_registry(host) and not set("/?#") & set(login)


def _is_registry(value: str) -> bool:
    port = value.rpartition("]")[2].rpartition(":")[2] if ":" in value.rpartition("]")[2] else ""
    return bool(_REGISTRY.fullmatch(value)) and int(port or "1") in range(1, 65536)


def _is_mirror(value: str) -> bool:
    scheme, _, host = value.rstrip("/").partition("://")
    return scheme in {"http", "https"} and _is_registry(host)


def host_problem(host: str) -> str:
    """Say what is wrong with a listening address, or nothing."""
    try:
        url = urlsplit(host)
        if url.scheme == "unix" and url.path.startswith("/") and not url.netloc:
            return ""
        if url.scheme == "fd" and host == "fd://":
            return ""
        if url.scheme == "tcp" and url.hostname and url.port is not None and not url.path:
            if url.hostname == "localhost" or ipaddress.ip_address(url.hostname).is_loopback:
                return ""
            return f"hosts: {host!r} is not on loopback; the API gives root on this host, so only loopback is offered"
    except ValueError:
        pass
    return f"hosts: {host!r} is none of unix:///PATH, tcp://127.0.0.1:PORT, fd://"


def _is_network(value: str) -> bool:
    try:
        ipaddress.ip_network(value)
    except ValueError:
        return False
    return "/" in value
