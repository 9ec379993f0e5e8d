"""``pluginctl logs`` and ``pluginctl top``: what plugins print and run."""

from __future__ import annotations

import codecs
import datetime as dt
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

import rich_click as click

from pluginsvc.client.connection import AnswerLost, Connection
from pluginsvc.client.output import complain, harmless, table
from pluginsvc.client.paths import native_path, plugin_path
from pluginsvc.client.when import timestamp
from pluginsvc.errors import NotFound, Unavailable
from pluginsvc.model.output import Top
from pluginsvc.model.plugin import Plugin

_HEADER = struct.Struct(">BxxxL")
_STDERR = 2
_SECOND = 1_000_000_000
_DROPPED = "output may be missing here: its log file was dropped while the daemon could not be reached"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0

_daemon = click.make_pass_decorator(Connection)
_plugin = click.argument("name", metavar="PLUGIN")


class FollowLost(Unavailable):
    """The daemon went away while its answer was followed."""

    def __init__(self, host: str, cause: str) -> None:
        self.host = host
        super().__init__(f"{cause or f'the daemon at {host} is stopping'}; waiting for it to go on where this ends")


class Frame(NamedTuple):
    """A line of output, or a piece of a long one.

    Attributes:
        stream: 1 for stdout, 2 for stderr.
        at: the time, as the daemon wrote it.
        data: with the end of the line, if it ends.
    """

    stream: int
    at: bytes
    data: bytes


def frames(chunks: Iterable[bytes]) -> Iterator[list[Frame]]:
    """Decode an answer with time stamps; what one chunk completes comes together."""
    held = b""
    for chunk in chunks:
        held += chunk
        found, begin = [], 0
        while len(held) >= begin + _HEADER.size:
            stream, size = _HEADER.unpack_from(held, begin)
            end = begin + _HEADER.size + size
            if len(held) < end:
                break
            at, _, data = held[begin + _HEADER.size : end].partition(b" ")
            found.append(Frame(stream, at, data))
            begin = end
        held = held[begin:]
        yield found


class Progress:
    """Knows what was shown, so that a second request goes on exactly after it.

    Lines may have one time in common: so the last time is asked for again, and as many lines as were shown with it are
    left out.

    Args:
        since: where to begin, for the first request.
        tail: the same.

    Attributes:
        dropped: whether what was shown last was not there any more, so that what followed it may be gone as well.
    """

    def __init__(self, since: str | None, tail: str) -> None:
        self._first = {"tail": tail} | ({"since": since} if since else {})
        self.dropped = False
        self._asked = False
        self._started_ns = time.time_ns()
        self._last = b""
        self._shown = 0
        self._skip = 0

    def query(self) -> dict[str, str]:
        """Return the parameters for the next request."""
        if not self._asked:
            self._asked = True
            return self._first
        self._skip = self._shown
        if self._last:
            at = dt.datetime.fromisoformat(self._last[:19].decode()).replace(tzinfo=dt.UTC)
            return {"since": f"{int(at.timestamp())}.{self._last[20:29].decode()}"}
        if self._first["tail"] == "0":
            # nothing has come since then, and nothing before it is wanted
            return {"since": f"{self._started_ns // _SECOND}.{self._started_ns % _SECOND:09}"}
        return self._first | {"tail": "all"}

    def new(self, batch: Iterable[Frame]) -> list[Frame]:
        """Return what was not shown yet; the caller shows it."""
        found = []
        for frame in batch:
            if frame.at == self._last and self._skip:
                self._skip -= 1
                continue
            if frame.at != self._last:
                self.dropped |= self._skip == self._shown > 0
                self._last, self._shown = frame.at, 0
            self._skip = 0
            self._shown += 1
            found.append(frame)
        return found


class _Outlet:
    """Where one stream of a plugin goes; on a terminal it cannot do harm."""

    def __init__(self, file: IO[bytes], *, stamped: bool) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace") if file.isatty() else None
        self._stamped = stamped
        self._begun = False

    def write(self, frame: Frame) -> None:
        """Write a line or a piece; the time goes before lines only."""
        data = frame.data
        if self._decoder is not None:
            data = harmless(self._decoder.decode(data)).encode()
        if self._stamped and not self._begun:
            data = frame.at + b" " + data
        self._begun = not frame.data.endswith(b"\n")
        self._file.write(data)

    def flush(self) -> None:
        """Show what was written."""
        self._file.flush()


@click.command()
@click.option("-f", "--follow", is_flag=True, help="go on until the plugin is disabled or removed")
@click.option("-n", "--tail", metavar="LINES", default="all", show_default=True, help="only the last ones")
@click.option("--since", metavar="TIME", help="begin at TIME: seconds, a span back (10m) or a date")
@click.option("--until", metavar="TIME", help="end at TIME")
@click.option("-t", "--timestamps", is_flag=True, help="show when each line was printed")
@click.option("--stdout", is_flag=True, help="only what went to standard output")
@click.option("--stderr", is_flag=True, help="only what went to standard error")
@_plugin
@_daemon
def logs(
    daemon: Connection,
    name: str,
    tail: str,
    since: str | None,
    until: str | None,
    *,
    follow: bool,
    timestamps: bool,
    stdout: bool,
    stderr: bool,
) -> None:
    """Show what a plugin has printed, over all its starts; with -f also over restarts of it and of the daemon."""
    now = dt.datetime.now(dt.UTC)
    end = timestamp(until, now) if until else ""
    query = {"timestamps": "1", "stdout": str(int(stdout or not stderr)), "stderr": str(int(stderr or not stdout))}
    query |= {"until": end} if end else {}
    query |= {"follow": "1"} if follow else {}
    progress = Progress(timestamp(since, now) if since else None, tail)
    outlets = [_Outlet(file.buffer, stamped=timestamps) for file in (sys.stdout, sys.stderr)]
    pause, told, reached = _FIRST_PAUSE, False, False
    while True:
        lost = ""
        try:
            for batch in frames(daemon.chunks("GET", native_path(name, "logs"), query | progress.query())):
                pause, told, reached = _FIRST_PAUSE, False, True
                fresh = progress.new(batch)
                if progress.dropped:
                    progress.dropped = False
                    click.echo(f"pluginctl: {_DROPPED}", err=True)
                for frame in fresh:
                    outlets[frame.stream == _STDERR].write(frame)
                for outlet in outlets:
                    outlet.flush()
            if not follow or (end and float(end) <= time.time()) or not _goes_on(daemon, name):
                return
        except Unavailable as exc:
            reached = reached or isinstance(exc, AnswerLost)
            if not follow or not reached:
                raise
            lost = str(exc)
        if not told:
            complain(FollowLost(daemon.host, lost))
            told = True
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _goes_on(daemon: Connection, name: str) -> bool:
    """Tell whether a plugin may print more: then its output was ended by the end of the daemon."""
    try:
        return daemon.decoded(daemon.call("GET", plugin_path(name, "json")), Plugin).enabled
    except NotFound:
        return False


@click.command()
@_plugin
@_daemon
def top(daemon: Connection, name: str) -> None:
    """Show the processes of a plugin, with the host's numbers."""
    found = daemon.decoded(daemon.call("GET", native_path(name, "top")), Top)
    table(found.titles, found.processes)
