"""How events look to programs: as Docker's stream has them, as our own has them, and as CloudEvents."""

from __future__ import annotations

import time
from typing import NamedTuple

import msgspec

from pluginsvc.model.event import Event, Gap

_ENCODER = msgspec.json.Encoder()


class Origin(NamedTuple):
    """Who tells of an event, where events of many hosts come together.

    Attributes:
        id: a UUID, the journal's: where numbers begin anew it is another.
        host: name of the machine.
    """

    id: str
    host: str


def engine_message(event: Event) -> bytes:
    """Return the JSON of an event that Docker's stream shows; exactly Moby's members, no newline (REF 1.7).

    Args:
        event: written to the journal, with an Engine view.
    """
    assert event.engine is not None
    return _ENCODER.encode(
        {
            "Type": "plugin",
            "Action": event.action,
            "Actor": {"ID": event.engine.actor, "Attributes": {"name": event.engine.name}},
            "scope": "local",
            "time": event.time_ns // 1_000_000_000,
            "timeNano": event.time_ns,
        }
    )


def native_message(item: Event | Gap) -> bytes:
    """Return the JSON of an event, or of a gap, in our own form; no newline (docs/events.md)."""
    if isinstance(item, Gap):
        return _ENCODER.encode({"gap": item})
    return _ENCODER.encode(_native(item))


def cloud_event(item: Event | Gap, origin: Origin) -> bytes:
    """Return an event, or a gap, as a CloudEvent in JSON (CloudEvents 1.0.2, JSON format); no newline.

    ``source`` and ``id`` together name an event among those of all hosts; ``sequence`` orders those of one source.
    """
    envelope = {
        "specversion": "1.0",
        "source": f"urn:uuid:{origin.id}",
        "host": origin.host,
        "datacontenttype": "application/json",
    }
    if isinstance(item, Gap):
        about = {"id": f"gap-{item.after}-{item.oldest}", "type": "pluginsvc.gap", "data": item}
    else:
        about = {
            "id": str(item.seq),
            "type": f"pluginsvc.plugin.{item.action}",
            "subject": item.plugin_name,
            "time": timestamp(item.time_ns),
            "sequence": str(item.seq),
            "data": _native(item),
        }
    return _ENCODER.encode(envelope | about)


def timestamp(time_ns: int) -> str:
    """Return nanoseconds since the epoch as RFC 3339 in UTC, with all nine digits."""
    seconds, nanos = divmod(time_ns, 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanos:09d}Z"


def _native(event: Event) -> dict[str, object]:
    return {
        "seq": event.seq,
        "time": timestamp(event.time_ns),
        "action": event.action,
        "plugin": {"id": event.plugin_id, "name": event.plugin_name},
        "attributes": event.attributes,
    }
