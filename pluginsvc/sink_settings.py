"""Settings of where events go, and what can be wrong with them; part of ``config``."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Annotated
from urllib.parse import urlsplit

import msgspec

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?|\[[0-9a-fA-F:]+\](:[0-9]{1,5})?")
_NATS_SUBJECT = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_NATS_STREAM = re.compile(r"[A-Za-z0-9_-]+")


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


def sink_problems(sinks: Sinks) -> list[str]:
    """Say what is wrong with the sinks, each with its key."""
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


def nats_problems(nats: NatsSink) -> list[str]:
    """Say what is wrong with the sink that is NATS, likewise."""
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
    return scheme in {"nats", "tls"} and is_host(host) and not set("/?#") & set(login)


def is_host(value: str) -> bool:
    """Tell whether this is a host, or a host and a port."""
    port = value.rpartition("]")[2].rpartition(":")[2] if ":" in value.rpartition("]")[2] else ""
    return bool(_HOST.fullmatch(value)) and int(port or "1") in range(1, 65536)
