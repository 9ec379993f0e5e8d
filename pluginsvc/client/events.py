"""``pluginctl events``: what happens to plugins, over all losses of the connection."""

from __future__ import annotations

import datetime as dt
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import rich_click as click

from pluginsvc.client.answers import GapFound, NativeEvent, Snapshot
from pluginsvc.client.connection import AnswerLost, Connection
from pluginsvc.client.filters import filter_option
from pluginsvc.client.output import complain, say
from pluginsvc.client.when import timestamp
from pluginsvc.errors import NotFound, Unavailable

_PATH = "/pluginsvc/v1/events"
_SILENCE = 60.0
"""Seconds without a byte, heartbeats included, after which the connection is lost: four heartbeats."""

_NUMBER = re.compile(rb"[0-9]{1,19}")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0

_daemon = click.make_pass_decorator(Connection)


class StreamEnded(Unavailable):
    """Events ended before the time that was asked for."""

    def __init__(self, host: str, last: str) -> None:
        self.host, self.last = host, last
        super().__init__(f"the daemon at {host} ended the events, it is stopping: go on later with --after {last}")


class EventsLost(Unavailable):
    """The daemon went away while its events were followed."""

    def __init__(self, host: str, cause: str) -> None:
        self.host = host
        super().__init__(f"{cause or f'the daemon at {host} is stopping'}; waiting for it to go on where this ends")


class EventsMissing(NotFound):
    """Events are no longer kept that should have been shown."""

    def __init__(self, after: int, oldest: int) -> None:
        self.after, self.oldest = after, oldest
        why = "are no longer kept" if oldest > after else "were another journal's: numbers began anew"
        super().__init__(f"events after number {after} {why}; what follows begins with number {oldest}")


class Block(NamedTuple):
    """A block of Server-Sent Events.

    Attributes:
        id: the last event's number.
        kind: ``gap``, ``snapshot``, or empty for an event.
        data: JSON; empty where the block only tells the number.
    """

    id: str
    kind: str
    data: bytes


def blocks(lines: Iterable[bytes]) -> Iterator[Block]:
    """Yield the blocks that are whole.

    Raises:
        ValueError: a number is none, or a text is not UTF-8.
    """
    fields: dict[bytes, bytes] = {}
    for line in lines:
        if line:
            key, _, value = line.partition(b":")
            fields[key] = value.strip()
        elif fields:
            number, data = fields.get(b"id", b""), fields.get(b"data", b"")
            if number and not _NUMBER.fullmatch(number):
                raise ValueError("the number of an event is none")
            data.decode()
            yield Block(number.decode(), fields.get(b"event", b"").decode(), data)
            fields = {}


def follow(daemon: Connection, query: Mapping[str, str]) -> Iterator[Block]:
    """Yield the blocks of the stream; without ``until`` for ever, waiting for a daemon that is away.

    Raises:
        Unavailable: it was never there, or there is an ``until``.
        StreamEnded: it stops before ``until``.
    """
    until = query.get("until")
    last, pause, told = "", _FIRST_PAUSE, False
    while True:
        lost = ""
        try:
            headers = {"Last-Event-ID": last} if last else {}
            for block in blocks(daemon.lines("GET", _PATH, query, headers=headers, timeout=_SILENCE)):
                pause, told = _FIRST_PAUSE, False
                yield block
                last = block.id or last
        except ValueError as exc:
            raise AnswerLost(daemon.host, exc) from exc
        except Unavailable as exc:
            if until is not None or not last:
                raise
            lost = str(exc)
        if until is not None:
            if float(until) > time.time():
                raise StreamEnded(daemon.host, last)
            return
        if not told:
            complain(EventsLost(daemon.host, lost))
            told = True
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


@click.command()
@click.option("--since", metavar="TIME", help="replay from TIME: seconds, a span back (10m) or a date")
@click.option("--until", metavar="TIME", help="end at TIME; by default go on until interrupted")
@click.option("--after", metavar="N", type=click.IntRange(0, 2**63 - 1), help="replay what came after event number N")
@click.option("--snapshot", is_flag=True, help="first the plugins, then what happens to them from then on")
@filter_option
@click.option("--format", "form", type=click.Choice(["json"]), help="for programs: one document a line")
@_daemon
def events(
    daemon: Connection,
    since: str | None,
    until: str | None,
    after: int | None,
    filters: dict[str, str],
    form: str | None,
    *,
    snapshot: bool,
) -> None:
    """Show what happens, as it happens; goes on where it was when the daemon was away."""
    if snapshot and (since is not None or after is not None):
        raise click.UsageError("--snapshot begins with what is now: it goes with neither --since nor --after")
    now = dt.datetime.now(dt.UTC)
    query = {key: timestamp(value, now) for key, value in (("since", since), ("until", until)) if value is not None}
    query |= filters | ({"after": str(after)} if after is not None else {}) | ({"snapshot": "1"} if snapshot else {})
    for block in follow(daemon, query):
        if block.data:
            _show(daemon, block, form)


def _show(daemon: Connection, block: Block, form: str | None) -> None:
    if form == "json":
        say(block.data.decode())
    elif block.kind == "gap":
        found = daemon.decoded(block.data, GapFound).gap
        complain(EventsMissing(found.after, found.oldest))
    elif block.kind == "snapshot":
        for plugin in daemon.decoded(block.data, Snapshot).plugins:
            say(f"plugin {plugin.name} ({plugin.id[:12]}…) desired={plugin.desired} state={plugin.state}")
    else:
        say(daemon.decoded(block.data, NativeEvent).text)
