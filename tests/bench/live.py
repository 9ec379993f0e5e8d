"""The rows about a daemon at work: start, memory, enable, requests, events."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.bench import bare, floors, load, probes, wire, workload
from tests.bench.rows import FLOOR, Goal, Row, Work, in_turn
from tests.bench.sides import NotDoneError, Peer, Side
from tests.bench.stage import MB, Stage, tiny
from tests.support import parts, procs, sample

_IDLE_AFTER = 0.5
"""Seconds after its first answer at which a daemon counts as idle."""
_IDLE_MEMORY = 80


def idle(stage: Stage) -> None:
    """Measure the memory of daemons that have done nothing yet."""
    row = stage.row(Row("memory idle, nothing done yet", "MB", Goal(limit=_IDLE_MEMORY)))
    row.note = "PSS; dockerd with containerd"
    time.sleep(_IDLE_AFTER)
    works = {side.name: _memory(side) for side in stage.sides}
    in_turn(row, stage.size.rounds, stage.top, works)


def starts(stage: Stage) -> None:
    """Measure a start with many plugins known, and the memory of a daemon that knows them and does nothing."""
    known = stage.size.known
    start = stage.row(Row(f"start to answering, {known} plugins known", "s", Goal(peer=1)))
    start.note = "until GET /_ping is answered; dockerd with containerd, without which it does not start"
    alone = stage.row(Row(f"start to answering, {known} plugins known, containerd up already", "s"))
    memory = stage.row(Row(f"memory idle, {known} plugins known", "MB", Goal(limit=_IDLE_MEMORY)))
    memory.note = f"PSS {_IDLE_AFTER:g} s after the start; dockerd with containerd"

    def of(side: Side) -> Work:
        def work(number: int) -> probes.Figure:
            seconds = side.restart()
            alone.add(side.name, probes.Figure(side.alone if isinstance(side, Peer) else seconds))
            time.sleep(_IDLE_AFTER)
            memory.add(side.name, _memory(side)(number))
            if (found := len(side.engine.plugins())) != known:
                raise NotDoneError(f"{side.name} knows {found} plugins instead of {known}")
            return probes.Figure(seconds)

        return work

    in_turn(start, stage.size.rounds, stage.top, {side.name: of(side) for side in stage.sides})


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


def requests(stage: Stage, known: int, *, ping: bool) -> None:
    """Measure how many requests are answered per CPU second; `known` plugins must be there on both sides.

    Args:
        stage: where.
        known: how many plugins there are.
        ping: also measure `/_ping`.

    """
    body = stage.top / "body.json"
    body.write_bytes(stage.ours.engine.call("GET", "/plugins"))
    socket = stage.top / "bare.sock"
    words: list[str] = [str(parts.PROJECT / ".venv/bin/python"), "-m", "tests.bench.bare", str(socket), str(body)]
    log = stage.top / "bare.log"
    with procs.running(words, log=log, answers=lambda: procs.accepts(socket), env=parts.env()) as server:

        def of(side: Side, path: str) -> Work:
            return lambda _: load.requests(side.engine.socket, path, seconds=stage.size.seconds, roots=side.roots)

        def floor(path: str) -> Work:
            return lambda _: load.requests(socket, path, seconds=stage.size.seconds, roots=lambda: [server.pid])

        rows = [(f"GET /plugins, {known} known", "/plugins", Goal(peer=4 if known >= 100 else None, floor=0.9))]
        if ping:
            rows.append(("GET /_ping", "/_ping", Goal(floor=0.9)))
        for title, path, goal in rows:
            row = stage.row(Row(title, "req/CPU s", goal))
            size = len(stage.peer.engine.call("GET", path)), len(stage.ours.engine.call("GET", path))
            row.note = f"{load.CONNECTIONS} connections; body {size[1]} bytes, dockerd's {size[0]}; "
            row.note += f"floor: bare aiohttp on {bare.LOOP} with our bytes"
            works = {FLOOR: floor(path)} | {side.name: of(side, path) for side in stage.sides}
            in_turn(row, stage.size.rounds, stage.top, works)
    socket.unlink(missing_ok=True)


def events(stage: Stage) -> None:
    """Measure what 200 readers of `/events` cost, and count what somebody who comes late still gets."""
    pairs = stage.size.pairs
    row = stage.row(Row("/events, 200 readers", "deliveries/CPU s", Goal(peer=1)))
    row.note = f"{2 * pairs} events by create and remove; less the CPU time of the same changes with nobody reading"
    late = stage.row(Row("/events, replay to a late reader", "of all events", Goal(peer=1)))
    late.note = "part of this row's events that `since` still gives at its end"
    began = str(int(time.time()))

    def burst(side: Side, title: str) -> Callable[[], None]:
        def work() -> None:
            for number in range(pairs):
                name = f"bench/event-{number}:latest"
                side.engine.create(name, tiny(f"{side.name} {title} {number}"))
                side.engine.remove(name)

        return work

    def of(side: Side) -> Work:
        def work(number: int) -> probes.Figure:
            alone, watched = (
                load.fan_out(
                    side.engine.socket,
                    burst(side, f"{number}/{readers}"),
                    expected=2 * pairs,
                    readers=readers,
                    roots=side.roots,
                )
                for readers in (0, load.SUBSCRIBERS)
            )
            assert alone.cpu is not None
            assert watched.cpu is not None
            extra = watched.cpu - alone.cpu
            if extra <= 0:
                raise RuntimeError(f"too short to tell: {watched.cpu} CPU s with readers, {alone.cpu} without")
            return probes.Figure(2 * pairs * load.SUBSCRIBERS / extra, extra)

        return work

    in_turn(row, stage.size.rounds, stage.top, {side.name: of(side) for side in stage.sides})
    for side in stage.sides:
        query = {"since": began, "until": f"{time.time():.9f}", "filters": '{"type":["plugin"]}'}
        found = side.engine.call("GET", "/events", query=query).count(b'"Action":"')
        made = 4 * pairs * len(row.figures.get(side.name, []))
        if made:
            late.add(side.name, probes.Figure(found / made))


def populate(stage: Stage, upto: int) -> None:
    """Make plugins on both sides until there are `upto`."""
    stage.tell(f"making {upto} plugins on each side")

    def fill(side: Side) -> None:
        for number in range(len(side.engine.plugins()), upto):
            side.engine.create(f"bench/known-{number:03}:latest", tiny(f"{side.name} known {number}"))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fill, stage.sides))
