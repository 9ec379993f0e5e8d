"""How cost grows: with the plugins known, with the layers of a plugin, with the readers of events."""

from tests.bench import bulk, inputs, live, probes, workload
from tests.bench.rows import Curve, Work, in_turn
from tests.bench.sides import Side, known_name
from tests.bench.stage import MIB, Stage


def plugins(stage: Stage) -> None:
    """Measure start, memory, list and inspect with more and more plugins known."""
    axis = "plugins known"
    ready = stage.curve(Curve("start to READY=1", "s", axis, "sd_notify(3); dockerd with containerd"))
    memory = stage.curve(Curve("memory idle", "MB", axis, "PSS; dockerd with containerd"))
    listing = stage.curve(Curve("GET /plugins", "req/CPU s", axis))
    one = stage.curve(Curve("GET /plugins/NAME/json", "req/CPU s", axis))
    for known in stage.size.known:
        found = live.started(stage, known, stage.size.growth_rounds)
        ready.points[known], memory.points[known] = found.ready, found.memory
        stage.tell(f"GET /plugins and one of them, {known} known")
        stage.hold(known)
        for curve, path in ((listing, "/plugins"), (one, f"/plugins/{known_name(0)}/json")):
            works = live.request_works(stage, path, stage.size.seconds / 2)
            in_turn(curve.point(known), stage.size.growth_rounds, stage.top, works)


def layers(stage: Stage) -> None:
    """Measure an install of more and more layers of one size each."""
    size = stage.size
    stage.tell("making the plugins of more and more layers")
    trees = [
        workload.Mixed(f"layer-{number}", size.layer * size.entries // size.size, size.layer, offset=number * 1000)
        for number in range(max(size.upto))
    ]
    curve = stage.curve(Curve("install", "s", "layers", f"of {size.layer // MIB} MiB unpacked each"))
    for count, found in zip(
        size.upto, inputs.publish(stage.registry.host, "growth", trees, counts=size.upto), strict=True
    ):
        stage.tell(f"install by layers: {count}")
        in_turn(curve.point(count), size.growth_rounds, stage.top, bulk.install_works(stage, found))
    stage.unpush("growth")


def event_readers(stage: Stage) -> None:
    """Measure what a delivery costs with more and more readers of `/events`, each of whom must get all."""
    pairs = stage.size.pairs // 4
    note = f"{2 * pairs} events by create and remove, none lost; the CPU time of these changes included"
    curve = stage.curve(Curve("/events", "deliveries/CPU s", "readers", note))
    for readers in stage.size.readers:
        stage.tell(f"/events, {readers} readers")

        def of(side: Side, readers: int = readers) -> Work:
            def work(_: int) -> probes.Figure:
                cpu = live.changes(side, pairs, readers=readers)
                return probes.Figure(2 * pairs * readers / cpu, cpu)

            return work

        works = {side.name: of(side) for side in stage.sides}
        in_turn(curve.point(readers), stage.size.growth_rounds, stage.top, works)
