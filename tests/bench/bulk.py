"""The rows about bytes: create, install, push."""

from collections.abc import Sequence
from pathlib import Path

from tests.bench import floors, inputs, probes, wire, workload
from tests.bench.rows import FLOOR, Goal, Row, Work, in_turn
from tests.bench.sides import NotDoneError, Side
from tests.bench.stage import MB, MIB, Stage

_LAYER_MEMORY = 170


def create(stage: Stage) -> None:
    """Measure `create` of the tree."""
    row = Row("create", "s", Goal(peer=10, floor=1.5, memory_only=True))
    _create(stage, row, workload.Mixed("rootfs/tree", stage.size.entries, stage.size.size))


def create_tiny(stage: Stage) -> None:
    """Measure `create` of many tiny files."""
    _create(stage, Row(f"create, {stage.size.tiny} tiny files", "s"), workload.Tiny("rootfs/tiny", stage.size.tiny))


def _create(stage: Stage, row: Row, tree: workload.Tree) -> None:
    stage.tell("making the tar to create from")
    archive = stage.top / "tree.tar"
    with archive.open("wb") as file:
        entries = tree.write(file)
    row.note = f"{archive.stat().st_size / MIB:.0f} MiB tar, {entries} entries; produced: the layer's blob"

    def of(side: Side) -> Work:
        def work(number: int) -> probes.Figure:
            name = f"bench/create-{number}:latest"
            body = workload.body(workload.head(f"{side.name} {number}"), archive)
            before = _bytes(side)
            cost = probes.cost(lambda: side.engine.create(name, body), side.roots)
            produced = _bytes(side) - before
            side.check_entries(side.engine.inspect(name)["Id"], entries)  # without rootfs itself, with the salt
            side.forget(name)
            return cost.figure(produced=produced)

        return work

    def floor(_: int) -> probes.Figure:
        with stage.scratch() as scratch:
            found = probes.own_cost(lambda: floors.create(archive, scratch))
            return probes.Figure(found.value, found.cpu, produced=(scratch / "blob").stat().st_size)

    in_turn(stage.row(row), stage.size.rounds, stage.top, {FLOOR: floor} | {s.name: of(s) for s in stage.sides})
    archive.unlink()


def install_one(stage: Stage) -> None:
    """Measure an install of the tree in one layer."""
    tree = workload.Mixed("tree", stage.size.entries, stage.size.size)
    row = Row("install, 1 layer", "s", Goal(peer=4, floor=1.5, memory_only=True))
    _install(stage, row, published(stage, "one", [tree]))


def install_tiny(stage: Stage) -> None:
    """Measure an install of many tiny files in one layer."""
    tree = workload.Tiny("tiny", stage.size.tiny)
    _install(stage, Row(f"install, {stage.size.tiny} tiny files", "s"), published(stage, "tiny", [tree]))


def install_eight(stage: Stage) -> None:
    """Measure an install of eight layers, its time and its memory."""
    row = Row("install, 8 layers", "s", Goal(peer=5))
    _install(stage, row, eight(stage))
    _peaks(stage, row)


def eight(stage: Stage) -> inputs.Published:
    """Return the plugin of eight layers."""
    size = stage.size
    trees = [
        workload.Mixed(f"layer-{number}", layer * size.entries // size.size, layer, offset=number * 1000)
        for number, layer in enumerate(size.layers)
    ]
    return published(stage, "eight", trees)


def published(stage: Stage, repository: str, trees: Sequence[workload.Tree]) -> inputs.Published:
    """Return a plugin of these layers that is in the registry, and put it there the first time."""
    if repository not in stage.published:
        stage.tell(f"making the plugin {repository}")
        stage.published[repository] = inputs.publish(stage.registry.host, repository, trees)[0]
    return stage.published[repository]


def _install(stage: Stage, row: Row, found: inputs.Published) -> None:
    packed, entries = (sum(getattr(layer, kind) for layer in found.layers) for kind in ("size", "entries"))
    row.note = f"{packed / MIB:.0f} MiB gzip, {entries} entries; privileges and pull; produced: bytes fetched"
    in_turn(stage.row(row), stage.size.rounds, stage.top, install_works(stage, found))


def install_works(stage: Stage, found: inputs.Published) -> dict[str, Work]:
    """Return what each side does to install a plugin, and what is checked and removed after it."""
    packed = sum(layer.size for layer in found.layers)
    entries = sum(layer.entries for layer in found.layers)
    digests = [layer.digest for layer in found.layers]

    def of(side: Side) -> Work:
        def work(number: int) -> probes.Figure:
            name = f"bench/{found.repository}-{number}:latest"
            before = stage.served(found.repository)
            cost = probes.cost(lambda: side.engine.install(found.remote, name), side.roots)
            fetched = stage.served(found.repository) - before
            if fetched < packed:
                raise NotDoneError(f"{side.name} fetched {fetched} bytes of {packed}: it had some of them")
            side.check_entries(side.engine.inspect(name)["Id"], entries)
            side.forget(name, digests)
            return cost.figure(produced=fetched)

        return work

    def floor(_: int) -> probes.Figure:
        with stage.scratch() as scratch:
            return probes.own_cost(lambda: floors.install(stage.registry.host, found, scratch))

    return {FLOOR: floor} | {side.name: of(side) for side in stage.sides}


def _peaks(stage: Stage, install: Row) -> None:
    """Make a row of the memory that the 8-layer install took."""
    row = stage.row(Row("memory during the 8-layer install", "MB", Goal(limit=_LAYER_MEMORY), note="highest PSS seen"))
    for side, figures in install.figures.items():
        for figure in figures:
            if figure.peak:
                row.add(side, probes.Figure(figure.peak / MB))
    row.failed |= {side: why for side, why in install.failed.items() if side != FLOOR}


def push(stage: Stage) -> None:
    """Measure a push of bytes that do not compress."""
    archive = stage.top / "push.tar"
    workload.noise(archive, stage.size.push, "rootfs/noise")
    row = Row("push", "s", Goal(peer=1, floor=1.3), note=f"{stage.size.push / MB:.0f} MB; produced: bytes stored")
    repository = {side.name: f"push-{side.name}" for side in stage.sides}
    name = {side.name: f"{stage.registry.host}/{repository[side.name]}:latest" for side in stage.sides}
    for side in stage.sides:
        side.engine.create(name[side.name], workload.body(workload.head(side.name), archive))

    def of(side: Side) -> Work:
        def work(_: int) -> probes.Figure:
            cost = probes.cost(lambda: side.engine.push(name[side.name]), side.roots)
            stored = stage.stored(repository[side.name])
            stage.unpush(repository[side.name])
            if stored < stage.size.push:
                raise NotDoneError(f"{side.name} pushed {stored} bytes of {stage.size.push}")
            return cost.figure(produced=stored)

        return work

    def floor(_: int) -> probes.Figure:
        blob = _largest(stage.ours)

        def put() -> None:
            wire.put_blob(stage.registry.host, "push-floor", f"sha256:{blob.name}", blob)

        found = probes.own_cost(put)
        stage.unpush("push-floor")
        return probes.Figure(found.value, found.cpu, produced=blob.stat().st_size)

    works = {FLOOR: floor} | {side.name: of(side) for side in stage.sides}
    in_turn(stage.row(row), stage.size.rounds, stage.top, works)
    for side in stage.sides:
        side.forget(name[side.name])
    archive.unlink()


def _bytes(side: Side) -> int:
    return sum(path.stat().st_size for path in side.blob_folder().glob("*"))


def _largest(side: Side) -> Path:
    return max(side.blob_folder().glob("*"), key=lambda path: path.stat().st_size)
