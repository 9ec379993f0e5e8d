"""The Engine's filters and its shape of an event (REF 1.7)."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pluginsvc.events.bus import everything
from pluginsvc.events.filters import UnknownTerm, engine_filter, native_filter
from pluginsvc.events.forms import engine_message
from pluginsvc.model.event import EngineView
from tests.support.records import event, plugin_id

SEEN = event(1, engine=EngineView(actor=plugin_id(10), name="a/ok:latest"))


@pytest.mark.parametrize(
    ("filters", "shown"),
    [
        ({}, True),
        ({"type": ["plugin"]}, True),
        ({"type": ["container"]}, False),
        ({"type": ["container", "plugin"]}, True),
        ({"type": ["plug"]}, False),
        ({"type": []}, True),
        ({"event": ["enable"]}, True),
        ({"event": ["enab"]}, False),
        ({"event": ["disable", "enable"]}, True),
        ({"scope": ["local"]}, True),
        ({"scope": ["swarm"]}, False),
        ({"plugin": [plugin_id(10)]}, True),
        ({"plugin": ["0000"]}, True),
        ({"plugin": ["a/ok:latest"]}, True),
        ({"plugin": ["a/ok"]}, True),
        ({"plugin": ["ok"]}, False),
        ({"plugin": ["nope", "a/"]}, True),
        ({"plugin": ["a/ok:latest2"]}, False),
        ({"label": ["name"]}, True),
        ({"label": ["name=a/ok:latest"]}, True),
        ({"label": ["name=a"]}, False),
        ({"label": ["other"]}, False),
        ({"label": ["other", "name"]}, True),
        ({"unknown": ["x"], "container": ["y"]}, True),
        ({"type": ["plugin"], "event": ["enable"], "plugin": ["a"], "scope": ["local"]}, True),
        ({"type": ["plugin"], "event": ["create"], "plugin": ["a"], "scope": ["local"]}, False),
    ],
)
def test_terms(filters: dict[str, list[str]], *, shown: bool) -> None:
    """Terms are ANDed, values ORed, unknown and empty terms say nothing."""
    assert engine_filter(json.dumps(filters))(SEEN) is shown


@given(st.dictionaries(st.sampled_from(["type", "event", "plugin", "label", "scope", "x"]), st.lists(st.text())))
def test_hidden_events_are_never_shown(filters: dict[str, list[str]]) -> None:
    """An event without an Engine view is shown by no filter."""
    assert engine_filter(json.dumps(filters))(event(1, engine=None)) is False


def test_message_is_golden() -> None:
    """The JSON has exactly Moby's members, in its order, with nothing escaped that Moby leaves."""
    found = event(
        1, action="enable", engine=EngineView(actor="ab" * 32, name="<o&k>é"), seq=5, time_ns=1795341949385363917
    )
    assert engine_message(found).decode() == (
        '{"Type":"plugin","Action":"enable","Actor":{"ID":"' + "ab" * 32 + '","Attributes":{"name":"<o&k>é"}},'
        '"scope":"local","time":1795341949,"timeNano":1795341949385363917}'
    )


@pytest.mark.parametrize(
    ("filters", "shown"),
    [
        ("", True),
        ("{}", True),
        ('{"event":[]}', True),
        ('{"event":["enable","exit"]}', True),
        ('{"event":{"enable":true}}', True),
        ('{"event":{"enable":false,"exit":true}}', False),
        ('{"event":["exit"]}', False),
        ('{"plugin":["p1"]}', True),
        ('{"plugin":["p1:latest"]}', True),
        ('{"plugin":["00"]}', True),
        ('{"plugin":["p2"]}', False),
        ('{"plugin":["p1"],"event":["exit"]}', False),
    ],
)
def test_native_terms(filters: str, *, shown: bool) -> None:
    """Our own stream is filtered by action and plugin, also where Docker's would not show the event."""
    assert native_filter(filters)(event(1, engine=None)) is shown


@pytest.mark.parametrize("filters", ['{"typ":["plugin"]}', '{"label":["a"]}', '{"event":["enable"],"x":["y"]}'])
def test_native_filter_refuses_what_it_does_not_know(filters: str) -> None:
    """A term that is misspelt is an error, since it would show everything."""
    with pytest.raises(UnknownTerm, match="events are filtered by event and plugin"):
        native_filter(filters)


def test_the_same_text_is_the_same_filter() -> None:
    """Readers who ask the same share a predicate, which the bus asks once for all of them."""
    text = '{"event":["enable"]}'
    assert native_filter(text) is native_filter(text)
    assert engine_filter(text) is engine_filter(text)
    assert native_filter("") is native_filter("{}") is everything
    huge = json.dumps({"event": ["enable"], "plugin": ["x" * 5000]})
    assert native_filter(huge) is not native_filter(huge), "what is kept has to stay small"
    assert engine_filter(huge) is not engine_filter(huge)
