"""Hostile and broken input through the real API: a clear refusal, nothing half made, nothing left (REF 7.32)."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import socket
import struct
import subprocess
import tarfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from backports import zstd

from pluginsvc.model.digest import Digest
from pluginsvc.model.manifest import DOCKER_LAYER, DOCKER_MANIFEST, PLUGIN_CONFIG, Descriptor, build_manifest
from tests.support import procs, remains
from tests.support.daemon import Daemon
from tests.support.registry import Registry
from tests.support.sample import build_sample_plugin
from tests.support.wire import Answer, Api, pack, tar
from tests.unit.transfer.faults import Cut, Fault, FaultRegistry, Hold, Instead, Status

pytestmark = pytest.mark.root

CONFIG: dict[str, Any] = {
    "description": "small",
    "entrypoint": ["/x"],
    "interface": {"socket": "p.sock", "types": ["docker.volumedriver/1.0"]},
    "env": [{"name": "A", "value": "1", "settable": ["value"]}],
}
RAW = json.dumps(CONFIG).encode()
ARCHIVE = tar({"config.json": RAW, "rootfs": None, "rootfs/x": bytes(range(256)) * 2000})
HEX = "a" * 64
DIGEST = f"sha256:{HEX}"


@pytest.fixture
def api(daemon: Daemon) -> Iterator[Api]:
    """Give calls to the module's daemon; afterwards nothing may be left that was not there before."""
    api = Api(daemon.socket)
    before, logged = api.plugins(), len(daemon.log())
    yield api
    assert api.plugins() == before
    remains.check(daemon, logged=logged)


@pytest.fixture
def plugin(daemon: Daemon) -> Iterator[str]:
    """Give a plugin that is there, and must be afterwards."""
    api = Api(daemon.socket)
    assert api.create("there", ARCHIVE).status == 204
    yield "there"
    assert api.call("DELETE", "/plugins/there", {"force": 1}).status == 200


def refused(answer: Answer, status: int, says: str = "") -> None:
    """Assert a refusal with this status and a text for people."""
    assert answer.status == status, answer
    assert answer.error
    assert "internal error" not in answer.error
    assert re.search(says, answer.error), answer.error


# Names, filters, documents

BAD_NAMES = [
    "",
    "UPPER",
    "a b",
    "-x",
    HEX,
    "x:",
    "x:-y",
    "../x",
    "x//y",
    "a/" * 130 + "b",
    "é",
    "x\0y",
    "x\ny",
    "\udcff",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names(api: Api, name: str) -> None:
    """A name that is none is refused by create and by pull, whatever else is wrong."""
    query = {"name": name.encode(errors="surrogateescape")}
    refused(api.call("POST", "/plugins/create", query, body=ARCHIVE), 400)
    if name:
        refused(api.call("POST", "/plugins/pull", query | {"remote": "127.0.0.1:1/x"}), 400)
    refused(api.call("POST", "/plugins/pull", {"remote": query["name"]}), 400)
    refused(api.call("GET", "/plugins/privileges", {"remote": query["name"]}), 400)


def test_digests_where_they_do_not_belong(api: Api) -> None:
    """A local name has no digest; the texts are Docker's."""
    answer = api.call("POST", "/plugins/create", {"name": f"x@{DIGEST}"}, body=ARCHIVE)
    refused(answer, 400, "canonical references are not permitted")
    answer = api.call("POST", "/plugins/pull", {"remote": "127.0.0.1:1/x", "name": f"x@{DIGEST}"})
    refused(answer, 400, "cannot use digest in plugin tag")


@pytest.mark.parametrize("name", ["nope", "UPPER", "a%20b", "%ff", "a%00b", HEX, f"there@{DIGEST}", "%22", "x" * 5000])
def test_plugins_that_are_not_there(api: Api, plugin: str, name: str) -> None:
    """What cannot be a plugin, or is none, is 404 for every verb."""
    refused(api.call("GET", f"/plugins/{name}/json"), 404, "not found")
    refused(api.call("DELETE", f"/plugins/{name}"), 404, "not found")
    for verb in ("enable?timeout=1", "disable", "set", "push", "upgrade?remote=127.0.0.1:1/x"):
        body: list[str] | None = [] if verb.startswith(("set", "upgrade")) else None
        refused(api.call("POST", f"/plugins/{name}/{verb}", document=body), 404, "not found")


@pytest.mark.parametrize(
    "filters",
    [
        "x",
        "[]",
        '{"nope":["x"]}',
        '{"enabled":["potato"]}',
        '{"enabled":["true","false"]}',
        '{"enabled":{}}',
        '{"enabled":true}',
        "{" * 5000,
        '{"capability":[1]}',
        "\xff",
    ],
)
def test_bad_filters(api: Api, filters: str) -> None:
    """A filter that is malformed, unknown or without sense is refused."""
    refused(api.call("GET", "/plugins", {"filters": filters}), 400, "invalid filter")


@pytest.mark.parametrize("path", ["/plugins/pull?remote=127.0.0.1:1/x", "/plugins/there/set", "/plugins/there/upgrade"])
@pytest.mark.parametrize(
    ("kind", "body", "says"),
    [
        ("application/json", b"{invalid json", "invalid JSON: invalid character"),
        ("application/json", b" ", "got EOF while reading request body"),
        ("application/json", b"[] trailing", "unexpected content after JSON"),
        ("application/json", b'["a', "invalid JSON"),
        ("application/json", b'[{"Name":7}]', "cannot unmarshal"),
        ("application/json", b"[" * 100_000, "invalid JSON"),
        ("application/json", b'["\xff\xfe"', "invalid JSON"),
        ("application/json", b"[" + b" " * (2 << 20), "larger than"),
        ("text/plain", b"[]", "unsupported Content-Type"),
        ("", b"[]", "malformed Content-Type"),
    ],
)
def test_bad_documents(api: Api, plugin: str, path: str, kind: str, body: bytes, says: str) -> None:
    """A body that is not the JSON an endpoint takes is refused before anything else is looked at."""
    refused(api.call("POST", path, body=body, headers={"Content-Type": kind} if kind else {}), 400, says)


@pytest.mark.parametrize(
    "argument", ["nope=1", "=x", "A.foo=1", ".value=1", "A=\0", "A=\ud800", "", "config", "A" * 100_000]
)
def test_bad_settings(api: Api, plugin: str, argument: str) -> None:
    """A setting that cannot be made is refused, and those beside it are not made either."""
    before = api.ok("GET", "/plugins/there/json")
    refused(api.call("POST", "/plugins/there/set", document=["A=2", argument]), 400)
    assert api.ok("GET", "/plugins/there/json") == before


@pytest.mark.parametrize("timeout", ["", "x", "1.5", "9" * 30, "٣"])
def test_bad_timeouts(api: Api, plugin: str, timeout: str) -> None:
    """A time-out has to be a number that fits."""
    refused(api.act("enable", plugin, timeout=timeout), 400, "strconv.Atoi")


def test_what_cannot_run(api: Api, plugin: str) -> None:
    """A program that the kernel cannot run fails enable with the runtime's words, whatever the time-out says."""
    for timeout in (0, -1, 2**63 - 1):
        answer = api.act("enable", plugin, timeout=timeout)
        refused(answer, 500, "exec")
    assert not api.ok("GET", "/plugins/there/json")["Enabled"]


# Archives


def _broken_header() -> bytes:
    raw = bytearray(ARCHIVE)
    raw[150] ^= 1  # in the first header's checksum
    return bytes(raw)


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b"") -> bytes:
    """Return an archive that is good but for one member."""
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for good, content in (("config.json", RAW), ("rootfs/good", b"x")):
            member = tarfile.TarInfo(good)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, link, len(data)
        archive.addfile(member, BytesIO(data))
    return out.getvalue()


def _huge_member() -> bytes:
    """Return an archive whose last member claims more bytes than there are on earth."""
    header = bytearray(tarfile.TarInfo("rootfs/huge").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\x80" + (1 << 60).to_bytes(11)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return ARCHIVE[:-1024].rstrip(b"\0").ljust(-(-len(ARCHIVE[:-1024].rstrip(b"\0")) // 512) * 512, b"\0") + header


def _config(**changes: object) -> bytes:
    return tar({"config.json": json.dumps(CONFIG | changes).encode(), "rootfs": None})


GZIP = gzip.compress(ARCHIVE, 1, mtime=0)
ARCHIVES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", ""),
    "garbage": (os.urandom(40_000), ""),
    "text": (b"hello world" * 100, ""),
    "zeros only": (bytes(10_240), "config not found"),
    "cut in the first header": (ARCHIVE[:300], ""),
    "cut between members": (ARCHIVE[:1024], ""),
    "cut in a member": (ARCHIVE[:100_000], ""),
    "cut before the end marks": (ARCHIVE[: len(ARCHIVE.rstrip(b"\0")) // 512 * 512], ""),
    "broken header": (_broken_header(), ""),
    "huge member": (_huge_member(), ""),
    "gzip cut": (GZIP[: len(GZIP) // 2], ""),
    "gzip without its trailer": (GZIP[:-8], ""),
    "gzip with a wrong sum": (GZIP[:-8] + struct.pack("<I", 7) + GZIP[-4:], ""),
    "gzip of garbage": (gzip.compress(os.urandom(40_000)), ""),
    "gzip header only": (GZIP[:10], ""),
    "zlib": (zlib.compress(ARCHIVE), ""),
    "zstd cut": (zstd.compress(ARCHIVE)[:-20], ""),
    "no config": (tar({"rootfs/x": b"x"}), "config not found"),
    "config in a folder": (tar({"a/config.json": RAW, "rootfs/x": b"x"}), "config not found"),
    "no rootfs": (tar({"config.json": RAW, "other/x": b"x"}), "no rootfs found"),
    "rootfs is a file": (tar({"config.json": RAW, "rootfs": b"x"}), ""),
    "rootfs is a link": (_member("rootfs", tarfile.SYMTYPE, "/etc"), ""),
    "config is a folder": (tar({"config.json": None, "rootfs": None}), "config"),
    "config is a link": (tar({"rootfs": None}) and _member("config.json", tarfile.SYMTYPE, "/etc/passwd"), ""),
    "config is no JSON": (tar({"config.json": b"{", "rootfs": None}), "failed to parse config"),
    "config is no text": (tar({"config.json": b'{"description":"\xff"}', "rootfs": None}), "failed to parse config"),
    "config has half a character": (tar({"config.json": b'{"workdir":"/\\ud800"}', "rootfs": None}), "parse config"),
    "config is a list": (tar({"config.json": b"[]", "rootfs": None}), "failed to parse config"),
    "config is deep": (tar({"config.json": b'{"x":' * 200_000, "rootfs": None}), "failed to parse config"),
    "config is large": (tar({"config.json": RAW + b" " * (5 << 20), "rootfs": None}), ""),
    "wrong types": (_config(entrypoint="x", env=[{"name": 7}], pidhost="yes"), "(?s)Entrypoint.*Env.*PidHost"),
    "socket outside": (_config(interface={"socket": "../x"}), "Interface.Socket"),
    "relative mount": (_config(mounts=[{"destination": "x"}]), r"Mounts\[0\].Destination"),
    "device without a path": (_config(linux={"devices": [{"name": "d", "path": None}]}), "Linux.Devices"),
    "escape by dots": (_member("rootfs/../../../etc/evil", data=b"x"), "evil"),
    "escape by a hard link": (_member("rootfs/evil", tarfile.LNKTYPE, "../../etc/passwd"), "evil"),
    "hard link to nothing": (_member("rootfs/evil", tarfile.LNKTYPE, "rootfs/none"), "evil"),
    "name too long for a file": (_member("rootfs/" + "n" * 300, data=b"x"), ""),
    "unknown kind of member": (_member("rootfs/evil", b"Z", data=b"x"), ""),
}


@pytest.mark.parametrize("label", ARCHIVES)
def test_bad_archives(api: Api, daemon: Daemon, label: str) -> None:
    """An archive that is broken, incomplete or means harm is refused, and the same name can be created after."""
    archive, says = ARCHIVES[label]
    refused(api.create("bad", archive), 400, says)
    assert remains.names(daemon.root / "staging") == set()
    assert not Path("/etc/evil").exists()


def test_a_body_that_lies_about_itself(api: Api, daemon: Daemon) -> None:
    """Chunks that are no chunks, and a second request in the body, are refused or not read."""
    head = b"POST /plugins/create?name=bad HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(daemon.socket))
        sock.sendall(head + b"200\r\n" + ARCHIVE[:512] + b"\r\nzz\r\n")
        assert b" 400 " in sock.recv(1000)


# Registries


@pytest.fixture(scope="module")
def faults() -> Iterator[FaultRegistry]:
    """Give a registry that fails as it is told."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(FaultRegistry().running()) as found:
        yield found


@pytest.fixture(autouse=True)
def _no_faults(request: pytest.FixtureRequest) -> Iterator[None]:
    """Forget the faults of the test before."""
    yield
    if "faults" in request.fixturenames:
        request.getfixturevalue("faults").faults.clear()


LAYER = gzip.compress(tar({"x": os.urandom(300_000), "y": b"y"}), 1, mtime=0)


def _descriptor(data: bytes, kind: str, size: int | None = None) -> Descriptor:
    return Descriptor(media_type=kind, digest=Digest.of(data), size=len(data) if size is None else size)


def publish(
    registry: FaultRegistry,
    *,
    tag: str = "latest",
    config: bytes = RAW,
    config_kind: str = PLUGIN_CONFIG,
    layer: bytes = LAYER,
    kind: str = DOCKER_LAYER,
    size: int | None = None,
) -> str:
    """Put a plugin into the registry; return its reference."""
    for data in (config, layer):
        registry.add(data)
    raw = build_manifest(_descriptor(config, config_kind), [_descriptor(layer, kind, size)])
    registry.publish(tag, DOCKER_MANIFEST, raw)
    return f"{registry.host}/bad/plugin:{tag}"


def pull(api: Api, remote: str, name: str = "bad", granted: Iterable[object] = ()) -> Answer:
    return api.call("POST", "/plugins/pull", {"remote": remote, "name": name}, document=list(granted))


RETRY = {"Retry-After": "0"}
BASIC = {"WWW-Authenticate": 'Basic realm="r"'}


@pytest.mark.parametrize(
    ("fault", "status", "says"),
    [
        (Status(401, BASIC), 401, "error resolving plugin reference: .*(denied|no basic auth|authoriz)"),
        (Status(401), 401, "error resolving"),
        (Status(403), 403, "error resolving"),
        (Status(404), 404, "error resolving"),
        (Status(429, RETRY), 503, "error resolving"),
        (Status(500, RETRY), 503, "error resolving"),
        (Status(503, RETRY), 503, "error resolving"),
        (Status(418), 500, "error resolving"),
        (Status(307, {"Location": "http://127.0.0.1:1/x"}), 503, "error resolving"),
        (Status(301, {"Location": "/v2/bad/plugin/manifests/latest"}), 500, "error resolving"),
    ],
    ids=str,
)
def test_a_registry_that_refuses(api: Api, faults: FaultRegistry, fault: Fault, status: int, says: str) -> None:
    """What a registry says no to is told with a status that fits, by privileges and by pull, before any line."""
    remote = publish(faults)
    faults.faults["MANIFEST"] = [fault] * 100
    refused(pull(api, remote), status, says)
    if status != 503:  # what is tried again takes its time
        refused(api.call("GET", "/plugins/privileges", {"remote": remote}), status, says)


def test_no_registry_at_all(api: Api) -> None:
    """A host that does not answer is 503 and named."""
    refused(pull(api, f"127.0.0.1:{procs.free_port()}/x"), 503, "error resolving plugin reference")


def test_bad_manifests(api: Api, faults: FaultRegistry) -> None:
    """A manifest that is too large, none, of another kind or with unknown layers is refused before any line."""
    image = publish(faults, tag="image", config_kind="application/vnd.docker.container.image.v1+json")
    refused(pull(api, image), 400, "did not find plugin config for specified reference")
    refused(pull(api, publish(faults, tag="kind", kind="application/x-strange")), 400, "application/x-strange")
    refused(pull(api, publish(faults, tag="typed", config=b'{"entrypoint":7}')), 400, "Entrypoint")
    refused(pull(api, publish(faults, tag="negative", size=-1)), 400)
    for label, raw in {
        "large": b'{"schemaVersion":2,"x":"' + b"x" * (5 << 20) + b'"}',
        "garbage": b"\xff\xfe",
        "list": b"[]",
        "empty": b"{}",
        "old": b'{"schemaVersion":1}',
        "text": b'{"schemaVersion":2,"mediaType":"\xff"}',
        "escape": b'{"schemaVersion":2,"config":{"mediaType":"x","digest":"sha256:../../x","size":1},"layers":[]}',
    }.items():
        faults.publish(label, DOCKER_MANIFEST, raw)
        answer = pull(api, f"{faults.host}/bad/plugin:{label}")
        refused(answer, 500 if label == "large" else 400)
    other = {
        "mediaType": DOCKER_MANIFEST,
        "digest": DIGEST,
        "size": 9,
        "platform": {"os": "plan9", "architecture": "z"},
    }
    index = {"schemaVersion": 2, "manifests": [other]}
    faults.publish("index", "application/vnd.docker.distribution.manifest.list.v2+json", json.dumps(index).encode())
    refused(pull(api, f"{faults.host}/bad/plugin:index"), 404, "platform")


SAME_LENGTH = bytes(len(LAYER))


@pytest.mark.parametrize("verb", ["pull", "upgrade"])
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Status(404), "404|not found"),
        (Status(403), "403|denied|forbidden"),
        (Status(429, RETRY), "429|busy|many"),
        (Instead(SAME_LENGTH), "digest"),
        (Instead(LAYER[:-9]), "bytes|size|length|ended"),
        (Instead(LAYER + b"more"), "bytes|size|length"),
    ],
    ids=["404", "403", "429", "other bytes", "short", "long"],
)
def test_bad_layers(
    api: Api, daemon: Daemon, plugin: str, faults: FaultRegistry, verb: str, fault: Fault, says: str
) -> None:
    """A layer that cannot be had, or is not what the manifest says, ends the stream with an error, and that is all."""
    remote = publish(faults)
    faults.faults[str(Digest.of(LAYER))] = [fault] * 100
    before = api.plugins()
    answer = pull(api, remote) if verb == "pull" else api.upgrade(plugin, remote)
    assert answer.status == 200
    assert re.search(says, answer.error), answer.error
    assert api.plugins() == before
    assert remains.names(daemon.root / "staging") == set()
    api.collect()
    assert Digest.of(LAYER).hex not in daemon.blobs()


def test_a_connection_cut_again_and_again(api: Api, faults: FaultRegistry) -> None:
    """Cut connections are resumed from where they broke off; when no byte comes any more, the pull says so."""
    remote = publish(faults)
    faults.faults[str(Digest.of(LAYER))] = [Cut(100_000)] * 2
    assert not pull(api, remote).error
    assert api.call("DELETE", "/plugins/bad").status == 200
    api.collect()
    faults.faults[str(Digest.of(LAYER))] = [Status(503, RETRY)] * 100
    assert pull(api, remote).error


@pytest.mark.parametrize(
    "layer",
    [
        b"no archive at all" * 100,
        gzip.compress(ARCHIVE[:100_000]),
        LAYER[:-9],
        gzip.compress(tar({"../evil": b"x"})),
        gzip.compress(b"\x01" * 5000),
    ],
    ids=["text", "cut tar", "cut gzip", "escape", "garbage in gzip"],
)
def test_layers_with_the_right_digest(api: Api, faults: FaultRegistry, layer: bytes) -> None:
    """A layer that is what its digest says, and no usable archive, ends the pull with the layer's name."""
    answer = pull(api, publish(faults, layer=layer))
    assert Digest.of(layer).short in answer.error, answer


def test_privileges_that_differ(api: Api, faults: FaultRegistry) -> None:
    """Less, more or other than the plugin asks for is refused, and no layer was asked for."""
    config = json.dumps(CONFIG | {"network": {"type": "host"}, "linux": {"capabilities": ["CAP_SYS_ADMIN"]}}).encode()
    remote = publish(faults, tag="asks", config=config)
    right: list[dict[str, Any]] = api.ok("GET", "/plugins/privileges", {"remote": remote})
    assert len(right) == 2
    for granted in ([], right[:1], [*right, right[0]], [right[0], right[1] | {"Value": ["CAP_NET_ADMIN"]}]):
        refused(pull(api, remote, granted=granted), 400, "incorrect privileges")
    assert faults.gets(str(Digest.of(LAYER))) == [] or not faults.requests[-1][1].endswith(Digest.of(LAYER).hex)
    assert not pull(api, remote, granted=reversed(right)).error
    assert api.call("DELETE", "/plugins/bad").status == 200


@pytest.mark.parametrize(
    ("key", "fault"),
    [("PUT", Status(401)), ("PUT", Status(403)), ("PUT", Status(500, RETRY)), ("MANIFEST", Status(500, RETRY))],
    ids=["401", "403", "500", "manifest 500"],
)
def test_a_push_that_is_refused(api: Api, faults: FaultRegistry, key: str, fault: Fault) -> None:
    """A push that the registry refuses ends with an error line and leaves the tag as it was; then it works."""
    name = f"{faults.host}/bad/push{time.monotonic_ns()}"
    assert api.create(name, ARCHIVE).status == 204
    faults.blobs.clear()
    faults.manifests.clear()
    faults.faults[key] = [fault] * 100
    answer = api.act("push", name)
    assert answer.error.startswith("error pushing plugin: "), answer
    assert faults.manifests == {}
    faults.faults.clear()
    assert not api.act("push", name).error
    assert "latest" in faults.manifests
    assert api.call("DELETE", f"/plugins/{name}").status == 200


# Clients that go away


def eventually(answers: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not answers():
        assert time.monotonic() < deadline
        time.sleep(procs.POLL)


def consistent(daemon: Daemon) -> bool:
    try:
        remains.check_files(daemon)
        assert remains.leased(daemon) == []
    except (AssertionError, FileNotFoundError):
        return False
    return True


def leave(daemon: Daemon, request: bytes, *, read: int = 0, reset: bool = False, after: float = 0) -> bytes:
    """Send a request, read so many bytes of the answer at least, and go.

    Args:
        daemon: the server.
        request: raw.
        read: how much of the answer to wait for.
        reset: end the connection at once instead of in order.
        after: seconds to stay on.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(daemon.socket))
        sock.sendall(request)
        got = b""
        while len(got) < read and (data := sock.recv(65536)):
            got += data
        time.sleep(after)
        if not reset:
            sock.shutdown(socket.SHUT_RDWR)
    return got


def request(method: str, path: str, body: bytes = b"", length: int | None = None, kind: str = "") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n" + (f"Content-Type: {kind}\r\n" if kind else "")
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


@pytest.mark.parametrize("sent", [0, 1, 511, 5000, 200_000, len(ARCHIVE) - 1])
def test_gone_while_sending(api: Api, daemon: Daemon, sent: int) -> None:
    """A client that goes away in the middle of an archive has created nothing, and the name is free at once."""
    leave(daemon, request("POST", "/plugins/create?name=gone", ARCHIVE[:sent], length=len(ARCHIVE)))
    eventually(lambda: remains.names(daemon.root / "staging") == set())
    eventually(lambda: api.create("gone", ARCHIVE).status == 204)
    assert api.call("DELETE", "/plugins/gone").status == 200


@pytest.mark.parametrize("after", [0, 0.002, 0.01, 0.05])
def test_gone_before_the_answer(api: Api, daemon: Daemon, after: float) -> None:
    """A client that goes away after all is sent finds a whole plugin or none."""
    leave(daemon, request("POST", "/plugins/create?name=gone", ARCHIVE), after=after)
    eventually(lambda: consistent(daemon))
    if any(found["Name"] == "gone:latest" for found in api.plugins()):
        assert api.call("DELETE", "/plugins/gone").status == 200


@pytest.mark.parametrize("read", [0, 1, 250, 400])
def test_gone_during_a_pull(api: Api, daemon: Daemon, faults: FaultRegistry, read: int) -> None:
    """A client that goes away during a pull stops it; the next pull goes on where it ended."""
    remote = publish(faults)
    hold = Hold(after=100_000)
    faults.faults[str(Digest.of(LAYER))] = [hold]
    path = f"/plugins/pull?remote={remote}&name=gone"
    leave(daemon, request("POST", path, b"[]", kind="application/json"), read=read)
    eventually(lambda: remains.names(daemon.root / "staging") == set())
    assert not any(found["Name"] == "gone:latest" for found in api.plugins())
    faults.faults.clear()
    eventually(lambda: not pull(api, remote, "gone").error)
    assert api.call("DELETE", "/plugins/gone").status == 200


@pytest.mark.parametrize("read", [0, 1, 300])
def test_gone_during_a_push(api: Api, daemon: Daemon, faults: FaultRegistry, read: int) -> None:
    """A client that goes away during a push stops it; the plugin is as it was and can be pushed."""
    name = f"{faults.host}/bad/gone"
    assert api.create(name, ARCHIVE).status == 204
    faults.blobs.clear()
    hold = Hold(after=0)
    faults.faults["PUT"] = [hold]
    leave(daemon, request("POST", f"/plugins/{name}/push"), read=read)
    eventually(lambda: not remains.leased(daemon))
    faults.faults.clear()
    assert not api.act("push", name).error
    assert api.call("DELETE", f"/plugins/{name}").status == 200


@pytest.mark.parametrize("fault", ["", "nosocket"])
@pytest.mark.parametrize("after", [0, 0.02, 0.1, 0.3])
def test_gone_during_an_enable(api: Api, daemon: Daemon, tmp_path: Path, fault: str, after: float) -> None:
    """A client that goes away while a plugin starts leaves it running and wished, or neither."""
    assert api.create("gone", pack(build_sample_plugin(tmp_path / "p"))).status == 204
    assert api.call("POST", "/plugins/gone/set", document=[f"FAULT={fault}"]).status == 204
    leave(daemon, request("POST", "/plugins/gone/enable?timeout=5"), after=after, reset=True)
    eventually(lambda: consistent(daemon))
    enabled = api.ok("GET", "/plugins/gone/json")["Enabled"]
    assert not (enabled and fault)
    assert api.call("DELETE", "/plugins/gone", {"force": 1}).status == 200


def test_slow_senders_do_not_stop_the_others(api: Api, daemon: Daemon, registry: Registry) -> None:
    """While many archives hang half sent, everything else goes on; no name of theirs can be taken."""
    socks = []
    for number in range(12):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(daemon.socket))
        sock.sendall(request("POST", f"/plugins/create?name=slow{number}", ARCHIVE[:2000], length=len(ARCHIVE)))
        socks.append(sock)
    try:
        eventually(lambda: api.create("slow0", ARCHIVE).status == 409)
        assert api.ok("GET", "/_ping") == "OK"
        assert api.plugins() == []
    finally:
        for sock in socks:
            sock.close()
    eventually(lambda: remains.names(daemon.root / "staging") == set())


# A full disk


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Daemon]:
    """Give a daemon whose ROOT is a memory disk of 6 MiB."""
    daemon = Daemon(tmp_path / "top")
    daemon.root = tmp_path / "disk"  # beside the rest, so that this mount of ours is not taken for a leftover
    for folder in (daemon.top, daemon.root):
        folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", daemon.root], check=True)
    try:
        daemon.start()
        yield daemon
        assert daemon.stop() == 0
    finally:
        if daemon.proc:
            daemon.kill()
        remains.purge(daemon)
        subprocess.run(["umount", "--lazy", "--recursive", daemon.root], check=True)


def fill(daemon: Daemon, leave: int) -> None:
    """Take room until so many bytes are left."""
    facts = os.statvfs(daemon.root)
    # the daemon may be quicker than we are to take what is left
    with suppress(OSError):
        (daemon.root / "filler").write_bytes(bytes(max(0, facts.f_bavail * facts.f_frsize - leave)))


def test_full_at_every_point(small: Daemon, faults: FaultRegistry) -> None:
    """However little room is left, create and pull are done whole or refused with the reason, and leave no trace."""
    api = Api(small.socket)
    data = os.urandom(300_000)
    archive = tar({"config.json": RAW, "rootfs": None, "rootfs/x": data})
    remote = publish(faults, layer=gzip.compress(tar({"x": data}), 1, mtime=0))
    acts: dict[str, Callable[[], Answer]] = {
        "create": lambda: api.create("full", archive),
        "pull": lambda: pull(api, remote, "full"),
    }
    for verb, act in acts.items():
        outcomes = []
        for leave in range(0, 1_000_000, 50_000):
            fill(small, leave)
            answer = act()
            made = bool(api.plugins())
            outcomes.append(made)
            assert made == (answer.status < 300 and not answer.error), answer
            if not made:
                assert answer.status in {200, 500}, answer
                assert re.search("full|space", answer.error), f"{verb} with {leave} left: {answer}"
            (small.root / "filler").unlink()
            if made:
                assert api.call("DELETE", "/plugins/full").status == 200
            remains.check(small)
        assert set(outcomes) == {False, True}, f"{verb}: {outcomes}"


def running_pid(daemon: Daemon) -> int:
    """Return the process of the one plugin, 0 when there is none at the moment."""
    files = list((daemon.run / "instances").glob("*/instance.json"))
    return int(json.loads(files[0].read_bytes())["container"]["pid"]) if files else 0


@pytest.mark.parametrize("running", [True, False])
def test_full_for_the_state(small: Daemon, tmp_path: Path, running: bool) -> None:  # noqa: FBT001 - pytest's own way
    """With no byte left, changes of state are made or refused with the reason; a running plugin goes on."""
    api = Api(small.socket)
    assert api.create("full", pack(build_sample_plugin(tmp_path / "p"))).status == 204
    if running:
        assert api.act("enable", "full", timeout=5).status == 200
    fill(small, 0)
    refusals = set()
    for number in range(12):
        for verb in ("disable",) if running else ("set", "enable"):
            before = api.plugins()
            document = [f"DEBUG={number}" + "x" * 9000] if verb == "set" else None
            answer = api.call("POST", f"/plugins/full/{verb}?timeout=5", document=document)
            if answer.status >= 300:
                assert answer.status in {409, 500}, answer
                assert api.plugins() == before
            if answer.status == 500:
                assert re.search("full|space", answer.error), answer
                refusals.add(verb)
        if api.plugins()[0]["Enabled"] != running:
            api.act("enable" if running else "disable", "full", timeout=5)
    assert refusals == ({"disable"} if running else {"set", "enable"})
    if running:
        # its end and its new start cannot be written down, and are no reason to give up on it
        eventually(lambda: running_pid(small) != 0)
        victim = running_pid(small)
        assert victim
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: running_pid(small) not in {0, victim})
    (small.root / "filler").unlink()
    if not api.plugins()[0]["Enabled"]:
        assert api.act("enable", "full", timeout=5).status == 200
    remains.check(small)
    assert api.call("DELETE", "/plugins/full", {"force": 1}).status == 200
    remains.check(small)
