"""How events look to programs."""

import datetime as dt
import json

from hypothesis import given
from hypothesis import strategies as st

from pluginsvc.events.forms import Origin, cloud_event, native_message, timestamp
from pluginsvc.model.event import Gap
from tests.support.records import event

SEEN = event(1, seq=5, time_ns=1795341949385363917, attributes={"n": "é<1>"})
ORIGIN = Origin("0b1c", "web-1.example")


def test_native_is_golden() -> None:
    """Our own form has sequence, time with nine digits, action, plugin and attributes, and nothing else."""
    assert native_message(SEEN).decode() == (
        '{"seq":5,"time":"2026-11-22T10:05:49.385363917Z","action":"enable",'
        '"plugin":{"id":"' + f"{1:064x}" + '","name":"p1:latest"},"attributes":{"n":"é<1>"}}'
    )
    assert native_message(Gap(3, 100)) == b'{"gap":{"after":3,"oldest":100}}'


def test_cloud_events_carry_the_native_form() -> None:
    """A CloudEvent names its host and number outside, and has the event as we would send it inside."""
    found = json.loads(cloud_event(SEEN, ORIGIN))
    assert found.pop("data") == json.loads(native_message(SEEN))
    assert found == {
        "specversion": "1.0",
        "id": "5",
        "source": "urn:uuid:0b1c",
        "type": "pluginsvc.plugin.enable",
        "subject": "p1:latest",
        "time": "2026-11-22T10:05:49.385363917Z",
        "datacontenttype": "application/json",
        "host": "web-1.example",
        "sequence": "5",
    }
    gap = json.loads(cloud_event(Gap(3, 100), ORIGIN))
    assert (gap["type"], gap["id"], gap["data"]) == ("pluginsvc.gap", "gap-3-100", {"after": 3, "oldest": 100})


@given(st.integers(0, 4_000_000_000_000_000_000))
def test_timestamp_is_the_time(time_ns: int) -> None:
    """The text is RFC 3339 of that very nanosecond."""
    text = timestamp(time_ns)
    whole = dt.datetime.fromisoformat(text[:19] + "+00:00")
    assert int(whole.timestamp()) * 1_000_000_000 + int(text[20:29]) == time_ns
    assert (text[19], text[29:]) == (".", "Z")
