"""What is published for each event; the rest needs the real server (tests/system/test_nats.py)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pluginsvc.events.delivery import SinkFailed
from pluginsvc.events.forms import Origin
from pluginsvc.events.nats_connection import read_login
from pluginsvc.events.nats_sink import NatsSink
from pluginsvc.model.event import Event, Gap
from tests.support.nats import operated


def event(action: str = "enable", seq: int = 7) -> Event:
    return Event(action=action, plugin_id="a" * 64, plugin_name="p:latest", seq=seq, time_ns=1)


def sink(host: str = "web1", *, subject: str = "pluginsvc", credentials_file: Path | None = None) -> NatsSink:
    origin = Origin("0b5c", host)
    return NatsSink(["nats://x"], origin, stream="S", subject=subject, credentials_file=credentials_file)


@pytest.mark.parametrize(
    ("host", "token"),
    [
        ("web1", "web1"),
        ("Web-1_a", "Web-1_a"),
        ("a.example.org", "a_example_org"),
        ("a b>*", "a_b__"),
        ("ö", "_"),
        ("", "_"),
    ],
)
def test_subjects_name_host_and_action(host: str, token: str) -> None:
    """The subject is that of the configuration, the host as one token, and the action."""
    assert sink(host)._message(event()).subject == f"pluginsvc.{token}.enable"
    assert sink(host, subject="a.b")._message(Gap(3, 9)).subject == f"a.b.{token}.gap"


def test_ids_name_daemon_and_number() -> None:
    """An event's message ID is made of the daemon's and the event's number, a gap's of its ends."""
    assert sink()._message(event(seq=41)).headers == {
        "Content-Type": "application/cloudevents+json",
        "Nats-Msg-Id": "0b5c-41",
    }
    assert (sink()._message(Gap(3, 9)).headers or {})["Nats-Msg-Id"] == "0b5c-gap-3-9"


def test_the_content_is_a_cloud_event() -> None:
    """The content is the event in CloudEvents' structured mode."""
    content = json.loads(sink()._message(event()).payload)
    assert (content["specversion"], content["type"], content["id"]) == ("1.0", "pluginsvc.plugin.enable", "7")
    assert content["data"]["action"] == "enable"


@pytest.mark.anyio
async def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nats-py is missing the sink says how to get it."""
    monkeypatch.delitem(sys.modules, "pluginsvc.events.nats_connection")
    monkeypatch.setitem(sys.modules, "nats.aio.client", None)
    with pytest.raises(SinkFailed, match=r"nats.* cannot be loaded: pip install 'pluginsvc\[nats\]'"):
        await sink().send([event()])


def test_a_credentials_file(tmp_path: Path) -> None:
    """A credentials file gives the user's JWT, and signatures."""
    _, file = operated(tmp_path)
    login = read_login(file)
    assert login.jwt.count(b".") == 2
    assert login.sign("nonce") == login.sign("nonce") != login.sign("another")


def test_unusable_credentials_files(tmp_path: Path) -> None:
    """A credentials file that is missing, cut or damaged is named, and nothing of what it holds."""
    _, file = operated(tmp_path)
    text = file.read_text()
    seed = next(line for line in text.splitlines() if line.startswith("SU"))
    for broken in (
        "",
        text[: text.index("-----BEGIN USER")],
        text.replace(seed, seed[:-4]),
        text.replace(seed, "SU!"),
        "ö",
    ):
        file.write_text(broken)
        with pytest.raises(SinkFailed, match="does not hold a user's JWT and seed") as caught:
            read_login(file)
        assert str(file) in caught.value.reason
        assert seed[:10] not in caught.value.reason
    file.unlink()
    with pytest.raises(SinkFailed, match="cannot be read: No such file"):
        read_login(file)
