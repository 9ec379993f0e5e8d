"""Settings of the daemon: code defaults, then the TOML file, then flags; checked whole before anything opens.

Only the daemon's own row imports this; every room takes plain arguments.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit

import msgspec

from pluginsvc.errors import InvalidParameter
from pluginsvc.model.options import Options
from pluginsvc.sink_settings import Sinks, is_host, nats_problems, sink_problems

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=1, le=64)]

_PLUGIN = re.compile(r"[!-~]{1,1024}")


class InvalidConfig(InvalidParameter):
    """The configuration cannot be used; names every wrong value, or the first key of a wrong name or type."""

    def __init__(self, source: str, problems: list[str]) -> None:
        self.source, self.problems = source, problems
        super().__init__(f"{source}: " + "; ".join(problems))


class Authorization(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """Plugins that are asked about each request to our own API."""

    plugins: tuple[str, ...] = ()
    on_failure: Literal["deny", "allow"] = "deny"
    timeout: Annotated[float, msgspec.Meta(gt=0, le=600)] = 10.0


class Tls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """How TCP is spoken: plainly where all are empty, else by TLS, to clients that the authority vouches for."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """Every key of ``config/pluginsvc.toml``, at its default."""

    root: str = "/var/lib/pluginsvc"
    run_root: str = "/run/pluginsvc"
    publish_dir: str = "/run/docker/plugins"
    podman_conf: str = ""
    spec_dir: str = ""
    publish_mounts: tuple[str, ...] = ()
    legacy_dirs: tuple[str, ...] = ("/run/docker/plugins", "/etc/docker/plugins", "/usr/lib/docker/plugins")
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
    authorization: Authorization = Authorization()
    tls: Tls = Tls()
    sinks: Sinks = Sinks()


RELOADABLE = frozenset({"log_level", "insecure_registries", "registry_mirrors", "authorization"})
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
    found += [
        f"legacy-dirs: {value!r} is not an absolute path" for value in settings.legacy_dirs if not value.startswith("/")
    ]
    found += [f"legacy-dirs: {value!r} has a NUL in it" for value in settings.legacy_dirs if "\0" in value]
    if Path(settings.root) == Path(settings.run_root):
        found.append("run-root: must be another directory than root")
    found += _publish_problems(settings)
    if not settings.hosts:
        found.append("hosts: give at least one address to listen on")
    found += [problem for host in settings.hosts if (problem := _host_problem(host))]
    found += [
        f"insecure-registries: {value!r} is neither host, host:port nor CIDR"
        for value in settings.insecure_registries
        if not is_host(value) and not _is_network(value)
    ]
    found += [
        f"registry-mirrors: {value!r} is not http:// or https:// with a host, an optional port and nothing else"
        for value in settings.registry_mirrors
        if not _is_mirror(value)
    ]
    found += [
        f"authorization.plugins: {value!r} is neither the name nor the ID of a plugin"
        for value in settings.authorization.plugins
        if not _PLUGIN.fullmatch(value)
    ]
    found += _tls_problems(settings.tls)
    return found + sink_problems(settings.sinks) + nats_problems(settings.sinks.nats)


def _publish_problems(settings: Settings) -> list[str]:
    value = settings.publish_dir
    told = {"podman-conf": settings.podman_conf, "spec-dir": settings.spec_dir}
    told = {key: path for key, path in told.items() if path}
    places = [*told.items(), *(("publish-mounts", path) for path in settings.publish_mounts)]
    found = [f"{key}: {path!r} is not an absolute path" for key, path in places if not path.startswith("/")]
    found += [f"{key}: {path!r} has a NUL in it" for key, path in [("publish-dir", value), *places] if "\0" in path]
    # what is in there is taken for what we have put there
    found += [
        f"{key}: must not be in root or run-root"
        for key, path in [("publish-dir", value), *places]
        if any(_is_in(path, own) for own in (settings.root, settings.run_root))
    ]
    # below / a plugin could choose to be what the next program looks for its libraries in
    found += [
        f"publish-mounts: {path!r} is / or has '..' in it"
        for path in settings.publish_mounts
        if path.startswith("/") and (not Path(path).parts[1:] or ".." in Path(path).parts)
    ]
    if not settings.podman_conf.endswith(".conf") and settings.podman_conf:
        found.append(f"podman-conf: Podman does not read {settings.podman_conf!r}, its name has to end in .conf")
    if value == "none":
        return found + [f"{key}: it goes with the sockets in publish-dir, which is none" for key in dict(places)]
    if not value.startswith("/"):
        found.append(f"publish-dir: {value!r} is neither an absolute path nor none")
    # engines read it as part of a URL, Podman as UTF-8
    if told and quote(value, safe="/@:+", errors="replace") != value:
        found.append(f"publish-dir: {value!r} has characters that engines do not take with {' and '.join(told)}")
    return found


def _is_in(path: str, folder: str) -> bool:
    # by components, however many slashes there are, and wherever a '..' leads
    parts = Path(os.path.normpath(folder)).parts[1:]
    return Path(os.path.normpath(path)).parts[1:][: len(parts)] == parts


def _tls_problems(tls: Tls) -> list[str]:
    files = {"ca-file": tls.ca_file, "cert-file": tls.cert_file, "key-file": tls.key_file}
    missing = [key for key, value in files.items() if not value]
    if len(missing) == len(files):
        return []
    return [
        f"tls.{key}: {value!r} is not an absolute path" if value else f"tls.{key}: give all three files or none"
        for key, value in files.items()
        if not value.startswith("/")
    ]


def _is_mirror(value: str) -> bool:
    scheme, _, host = value.rstrip("/").partition("://")
    return scheme in {"http", "https"} and is_host(host)


def _host_problem(host: str) -> str:
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
