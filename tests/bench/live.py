"""The rows about a daemon at work: start, memory, enable, requests, events."""

import secrets
import time

from tests.bench import bare, floors, load, probes, wire, workload
from tests.bench.rows import FLOOR, Goal, Row, Work, in_turn
from tests.bench.sides import NotDoneError, Side
from tests.bench.stage import MB, Stage, Starts
from tests.support import parts, procs, sample

_IDLE_AFTER = 0.5
"""Seconds after its first answer at which a daemon counts as idle."""
_IDLE_MEMORY = 80
_FEW, MANY = 2, 100
"""Plugins known, in the rows about few and many."""


def idle(stage: Stage) -> None:
    """Measure the memory of daemons that have done nothing yet."""
    row = stage.row(Row("memory idle, nothing done yet", "MB", Goal(limit=_IDLE_MEMORY)))
    row.note = "PSS; dockerd with containerd"
    time.sleep(_IDLE_AFTER)
    works = {side.name: _memory(side) for side in stage.sides}
    in_turn(row, stage.size.rounds, stage.top, works)


def starts(stage: Stage) -> None:
    """Measure a start with many plugins known, and the memory of a daemon that knows them and does nothing."""
    found = started(stage, MANY, stage.size.rounds)
    for row in (found.answering, found.alone, found.memory):
        stage.row(row)


def started(stage: Stage, known: int, rounds: int) -> Starts:
    """Return what starts with so many plugins cost, measured now if it was not before."""
    if known in stage.starts:
        return stage.starts[known]
    stage.tell(f"making {known} plugins known")
    stage.hold(known)
    words = f"{known} plugins known"
    found = stage.starts[known] = Starts(
        ready=Row(f"start to READY=1, {words}", "s"),
        answering=Row(f"start to answering, {words}", "s", Goal(peer=1)),
        alone=Row(f"start to answering, {words}, containerd up already", "s"),
        memory=Row(f"memory idle, {words}", "MB", Goal(limit=_IDLE_MEMORY)),
    )
    found.answering.note = "until GET /_ping is answered; dockerd with containerd, without which it does not start"
    found.memory.note = f"PSS {_IDLE_AFTER:g} s after the start; dockerd with containerd"
    stage.tell(found.answering.name)

    def of(side: Side) -> Work:
        def work(number: int) -> probes.Figure:
            start = side.restart()
            found.ready.add(side.name, probes.Figure(start.ready))
            found.alone.add(side.name, probes.Figure(start.alone))
            time.sleep(_IDLE_AFTER)
            found.memory.add(side.name, _memory(side)(number))
            if (there := len(side.engine.plugins())) != known:
                raise NotDoneError(f"{side.name} knows {there} plugins instead of {known}")
            return probes.Figure(start.answering)

        return work

    in_turn(found.answering, rounds, stage.top, {side.name: of(side) for side in stage.sides})
    return found


def _memory(side: Side) -> Work:
    return lambda _: probes.Figure(probes.pss(side.roots()) / MB)


def enable(stage: Stage) -> None:
    """Measure `enable` until the plugin has answered on its socket."""
    row = stage.row(Row("enable to usable", "s", Goal(peer=5), note="until /Plugin.Activate is answered"))
    program = ("sample-volume-plugin", 0o755, sample.sample_plugin_binary().read_bytes())
    name = "bench/enable:latest"
    ids = {}
    for side in stage.sides:
        body = workload.body(workload.head(f"enable {side.name}", files=[program]))
        side.engine.create(name, body)
        ids[side.name] = side.engine.inspect(name)["Id"]

    def of(side: Side) -> Work:
        socket = side.plugin_socket(ids[side.name])

        def work(_: int) -> probes.Figure:
            def begin() -> None:
                side.engine.enable(name)
                wire.activate(socket)

            try:
                cost = probes.cost(begin, side.roots)
            finally:
                side.engine.disable(name)
            return cost.figure()

        return work

    container = floors.Container(stage.top / "container")

    def floor(_: int) -> probes.Figure:
        try:
            return probes.own_cost(container.start)
        finally:
            container.end()

    works = {FLOOR: floor} | {side.name: of(side) for side in stage.sides}
    in_turn(row, stage.size.rounds * stage.size.starts, stage.top, works)
    for side in stage.sides:
        side.forget(name)


def requests(stage: Stage, path: str, *, known: int) -> None:
    """Measure how many requests for a path are answered per CPU second, with so many plugins known."""
    stage.hold(known)
    body = stage.top / "body.json"
    body.write_bytes(stage.ours.engine.call("GET", "/plugins"))
    socket = stage.top / "bare.sock"
    words: list[str] = [str(parts.PROJECT / ".venv/bin/python"), "-m", "tests.bench.bare", str(socket), str(body)]
    title = f"GET {path}" if path == "/_ping" else f"GET {path}, {known} known"
    row = stage.row(Row(title, "req/CPU s", Goal(peer=4 if known >= MANY else None, floor=0.9)))
    size = len(stage.peer.engine.call("GET", path)), len(stage.ours.engine.call("GET", path))
    row.note = f"{load.CONNECTIONS} connections; body {size[1]} bytes, dockerd's {size[0]}; "
    row.note += f"floor: bare aiohttp on {bare.LOOP} with our bytes"
    log = stage.top / "bare.log"
    with procs.running(words, log=log, answers=lambda: procs.accepts(socket), env=parts.env()) as server:
        seconds = stage.size.seconds
        works: dict[str, Work] = {
            FLOOR: lambda _: load.requests(socket, path, seconds=seconds, roots=lambda: [server.pid])
        }
        in_turn(row, stage.size.rounds, stage.top, works | request_works(stage, path, seconds))
    socket.unlink(missing_ok=True)


def request_works(stage: Stage, path: str, seconds: float) -> dict[str, Work]:
    """Return what counts the answers of each daemon for so long."""

    def of(side: Side) -> Work:
        return lambda _: load.requests(side.engine.socket, path, seconds=seconds, roots=side.roots)

    return {side.name: of(side) for side in stage.sides}


def changes(side: Side, pairs: int, *, readers: int) -> float:
    """Make and remove so many plugins under the eyes of so many readers; return the daemon's CPU seconds."""

    def burst() -> None:
        for number in range(pairs):
            name = f"bench/event-{number}:latest"
            side.engine.create(name, workload.tiny(secrets.token_hex(8)))
            side.engine.remove(name)

    found = load.fan_out(side.engine.socket, burst, expected=2 * pairs, readers=readers, roots=side.roots)
    assert found.cpu is not None
    return found.cpu


def events(stage: Stage) -> None:
    """Measure what 200 readers of `/events` cost, and count what somebody who comes late still gets."""
    stage.hold(_FEW)
    pairs = stage.size.pairs
    row = stage.row(Row("/events, 200 readers", "deliveries/CPU s", Goal(peer=1)))
    row.note = f"{2 * pairs} events by create and remove; less the CPU time of the same changes with nobody reading"
    late = stage.row(Row("/events, replay to a late reader", "of all events", Goal(peer=1)))
    late.note = "part of this row's events that `since` still gives at its end"
    began = f"{time.time():.9f}"

    def of(side: Side) -> Work:
        def work(_: int) -> probes.Figure:
            alone, watched = (changes(side, pairs, readers=n) for n in (0, load.SUBSCRIBERS))
            if watched <= alone:
                raise NotDoneError(f"too short to tell: {watched:.3f} CPU s with readers, {alone:.3f} without")
            return probes.Figure(2 * pairs * load.SUBSCRIBERS / (watched - alone), watched - alone)

        return work

    in_turn(row, stage.size.rounds, stage.top, {side.name: of(side) for side in stage.sides})
    for side in stage.sides:
        query = {"since": began, "until": f"{time.time():.9f}", "filters": '{"type":["plugin"]}'}
        found = side.engine.call("GET", "/events", query=query).count(b'"Action":"')
        if made := 4 * pairs * len(row.figures.get(side.name, [])):
            late.add(side.name, probes.Figure(found / made))
