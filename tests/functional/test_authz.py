"""Plugins that guard the API, through the socket: legacy ones, and clients that are known by a certificate."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest

from pluginsvc.api.app import make_app, serve
from pluginsvc.api.listeners import TcpListener, TlsFiles, UnixListener
from pluginsvc.directory.authz import Chain, Rules
from pluginsvc.directory.directory import Directory
from pluginsvc.directory.legacy import Legacy
from tests.functional.conftest import FACTS
from tests.support.docker_cli import DockerCLI, docker_clis
from tests.support.engine import CONFIG, Engine
from tests.support.memory_manager import MemoryManager
from tests.support.pki import Authority, Pair
from tests.unit.directory.peers import Peer, answer, plugin

pytestmark = pytest.mark.anyio

ALLOW: dict[str, Any] = {"Allow": True}


class Guard:
    """A legacy plugin.

    Attributes:
        refuses: part of the target of a request → what it is answered with.
    """

    def __init__(self) -> None:
        self.peer = Peer("")
        self.refuses: dict[str, dict[str, Any]] = {}

    async def script(self, writer: asyncio.StreamWriter) -> None:
        head, body = self.peer.seen[-1]
        document: dict[str, Any] = {"Implements": ["authz"]}
        if "Plugin.Activate" not in head:
            target = json.loads(body)["RequestUri"]
            document = next((reply for part, reply in self.refuses.items() if part in target), ALLOW)
        await answer(body=json.dumps(document).encode())(writer)

    def asked(self) -> list[dict[str, Any]]:
        """Return what it was asked since it was asked last."""
        found = [json.loads(body) for head, body in self.peer.seen if "AuthZPlugin.AuthZReq" in head]
        self.peer.seen.clear()
        return found

    def targets(self) -> list[str]:
        return [asked["RequestUri"] for asked in self.asked()]


@dataclass(frozen=True)
class House:
    """A guarded daemon."""

    engine: Engine
    guard: Guard
    authority: Authority
    port: int
    folder: Path

    def tls_cli(self, client: Pair) -> DockerCLI:
        """Return a docker CLI that speaks TLS."""
        folder = self.folder / f"cli-{client.cert.name}"
        folder.mkdir()
        files = {"ca.pem": self.authority.file, "cert.pem": client.cert, "key.pem": client.key}
        for name, path in files.items():
            (folder / name).write_bytes(path.read_bytes())
        return DockerCLI(docker_clis()[-1], f"tcp://127.0.0.1:{self.port}", folder)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    authority = Authority(tmp_path / "pki")
    server = authority.server()
    folder, guard, memory = tmp_path / "specs", Guard(), MemoryManager()
    folder.mkdir()
    chain = Chain(Directory(memory, memory.watchers.append, Legacy([folder], tmp_path / "none")))
    app = make_app(manager=memory, directory=memory.directory, system=FACTS, events=memory.events, chain=chain)
    tcp = TcpListener("127.0.0.1", 0, TlsFiles(authority.file, server.cert, server.key))
    async with plugin(guard.script) as guard.peer:
        (folder / "guard.spec").write_text(guard.peer.address)
        await chain.use(Rules(("guard", "guard")))
        async with serve(app, [UnixListener(tmp_path / "s"), tcp], grace=2) as addresses:
            engine = Engine(tmp_path / "s", memory.publish)
            yield House(engine, guard, authority, int(addresses[1].rpartition(":")[2]), tmp_path)


async def test_allowed(house: House) -> None:
    """Each request is put to a plugin once, though it is named twice, and served when that allows it."""
    assert (await house.engine.call("GET", "/version"))[0] == 200
    assert house.guard.targets() == ["/version"]
    await house.engine.install("some", CONFIG)
    assert [(asked["RequestMethod"], asked["RequestUri"].partition("?")[0]) for asked in house.guard.asked()] == [
        ("GET", "/plugins/privileges"),
        ("POST", "/plugins/pull"),
    ]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/_ping"),
        ("GET", "/version"),
        ("GET", "/v1.41/plugins"),
        ("GET", "/events"),
        ("GET", "/metrics"),
        ("POST", "/auth"),
        ("POST", "/plugins/create?name=x"),
        ("POST", "/containers/create"),
        ("OPTIONS", "/anything"),
        ("GET", "/pluginsvc/v1/events"),
        ("GET", "/pluginsvc/v1/plugins"),
        ("POST", "/pluginsvc/v1/gc"),
    ],
)
async def test_denied(house: House, method: str, path: str) -> None:
    """Whatever has a route can be denied, with Docker's text and the plugin's; nothing of it is done."""
    house.guard.refuses["/"] = {"Allow": False, "Msg": "not today"}
    status, body = await house.engine.call(method, path)
    assert status == 403
    assert body == {"message": "authorization denied by plugin guard: not today"}
    assert house.guard.targets() == [path]


async def test_denied_heads(house: House) -> None:
    """A HEAD can be denied as anything else."""
    house.guard.refuses["/"] = {}
    raw = b"HEAD /_ping HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    assert (await house.engine.exchange(raw)).startswith(b"HTTP/1.1 403 ")


async def test_what_a_plugin_says_went_wrong(house: House) -> None:
    """An error of the plugin is a 500 with its text, even if it allows at the same time (REF 7.41)."""
    house.guard.refuses["/version"] = {"Allow": True, "Err": "no connection to my server"}
    text = "plugin guard failed with error: AuthZPlugin.AuthZReq: no connection to my server"
    assert await house.engine.call("GET", "/version") == (500, {"message": text})
    assert (await house.engine.call("GET", "/_ping"))[0] == 200


async def test_streams(house: House) -> None:
    """A stream of events is asked about when it begins, and then goes through."""
    async with house.engine.session() as session, session.get("/events") as stream:
        assert stream.status == 200
        assert house.guard.targets() == ["/events"]
        await house.engine.install("some", CONFIG)
        with anyio.fail_after(5):
            assert json.loads(await stream.content.readline())["Action"] == "pull"


async def test_a_plugin_that_went_away(house: House) -> None:
    """A legacy plugin whose file is gone lets nothing pass, and is asked again when it is back."""
    (spec,) = (house.folder / "specs").iterdir()
    spec.rename(house.folder / "aside")
    status, body = await house.engine.call("GET", "/_ping")
    assert status == 500
    assert "could not find plugin guard in v1 plugin registry" in body["message"]
    (house.folder / "aside").rename(spec)
    assert (await house.engine.call("GET", "/_ping"))[0] == 200


async def test_the_cli_with_a_certificate(house: House) -> None:
    """The docker CLI with --tlsverify works, is known by its certificate, and shows people why it is denied."""
    cli = house.tls_cli(house.authority.client("client"))
    await house.engine.install("some", CONFIG)
    house.guard.asked()
    done = await cli.run_async("--tlsverify", "plugin", "ls", "--format", "{{.Name}}", check=True)
    assert done.stdout == "some:latest\n"
    asked = house.guard.asked()
    assert {(one["User"], one["UserAuthNMethod"]) for one in asked} == {("client", "TLS")}
    assert all(len(one["RequestPeerCertificates"]) == 1 for one in asked)
    house.guard.refuses["/plugins/some/enable"] = {"Allow": False, "Msg": "client may not"}
    done = await cli.run_async("--tlsverify", "plugin", "enable", "some")
    assert done.returncode == 1
    assert "authorization denied by plugin guard: client may not" in done.stderr


async def test_over_tls_without_or_with_another_certificate(house: House) -> None:
    """Who has no certificate of the authority gets no answer at all, and nobody is asked."""
    stranger = Authority(house.folder / "other").client("client")
    done = await house.tls_cli(stranger).run_async("--tlsverify", "version")
    assert done.returncode == 1
    plain = DockerCLI(docker_clis()[-1], f"tcp://127.0.0.1:{house.port}", house.folder / "plain")
    assert (await plain.run_async("version")).returncode == 1
    assert house.guard.asked() == []


async def test_web_pages_are_refused_without_asking(house: House) -> None:
    """What a browser could be made to send over TCP is refused before the plugins, TLS or not."""
    client = house.authority.client("client")
    context = await asyncio.to_thread(ssl.create_default_context, cafile=str(house.authority.file))
    await asyncio.to_thread(context.load_cert_chain, client.cert, client.key)
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port, ssl=context)
    writer.write(b"GET /version HTTP/1.1\r\nHost: localhost\r\nOrigin: http://x\r\nConnection: close\r\n\r\n")
    with anyio.fail_after(5):
        assert (await reader.read()).startswith(b"HTTP/1.1 403 ")
    writer.close()
    assert house.guard.asked() == []
