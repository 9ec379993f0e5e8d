"""The chain of plugins that guard the API: who is asked, what counts as an answer, and what if there is none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from pluginsvc.directory import authz
from pluginsvc.directory.authz import AuthorizationFailed, BadChain, Chain, Denied, Inquiry, Rules
from pluginsvc.directory.directory import Directory
from pluginsvc.directory.legacy import Legacy
from pluginsvc.directory.provider import Provider
from pluginsvc.directory.rpc import Client
from pluginsvc.errors import NotFound
from pluginsvc.model.lease import PluginLease
from pluginsvc.model.plugin import Capability
from tests.unit.directory.peers import Peer, Script, answer, bound, endless, plugin, raw

pytestmark = pytest.mark.anyio

ALLOW = answer(body=b'{"Allow":true}')
INQUIRY = Inquiry(request_method="GET", request_uri="/_ping")


class NobodyError(NotFound):
    pass


class House:
    """The plugins of a daemon, each with a scripted program; and the chain that is tried."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plugins: dict[str, Provider] = {}
        self.stack = AsyncExitStack()
        legacy = Legacy([folder / "legacy"], folder / "sockets")
        self.directory = Directory(self, lambda _: None, legacy)
        self.chain = Chain(self.directory)

    async def add(self, name: str, script: Script = ALLOW, capability: str = "docker.authz/1.0") -> Peer:
        """Run a plugin that is enabled and up."""
        peer = await self.stack.enter_async_context(plugin(script, self.folder / f"{len(self.plugins)}.sock"))
        self.plugins[f"{name}:latest"] = Provider(
            name=f"{name}:latest",
            plugin_id=f"{len(self.plugins):x}" * 64,
            capabilities=(Capability.parse(capability),),
            address=peer.address,
            enabled=True,
            state="running",
            up=True,
            run="1",
            client=Client(peer.address, name=name),
        )
        return peer

    def change(self, name: str, *, enabled: bool = True, up: bool = True) -> None:
        found = self.plugins[f"{name}:latest"]
        state = "running" if up else "backing-off"
        self.plugins[f"{name}:latest"] = replace(found, enabled=enabled, up=up, state=state)

    async def ask(self, *names: str, lenient: bool = False, timeout: float = 5.0) -> None:
        """Guard the API with these, and put a request to them."""
        await self.chain.use(Rules(names, lenient=lenient, timeout=timeout))
        with anyio.fail_after(5):
            await self.chain.ask(INQUIRY)

    async def add_legacy(self, name: str, script: Script) -> Peer:
        """Run a plugin that others run; its script answers activation, too."""
        peer = await self.stack.enter_async_context(plugin(script))
        folder = anyio.Path(self.folder / "legacy")
        await folder.mkdir(exist_ok=True)
        await (folder / f"{name}.spec").write_text(peer.address)
        return peer

    def provider(self, name: str) -> Provider:
        for found in self.plugins.values():
            if name in {found.name, found.name.removesuffix(":latest"), found.plugin_id}:
                return found
        for found in self.plugins.values():
            if found.plugin_id.startswith(name):
                return found
        raise NobodyError(f"plugin {name!r} not found")

    def providers(self) -> Iterable[Provider]:
        return self.plugins.values()

    async def acquire(
        self, name: str, *, holder: str, purpose: str, seconds: float | None, capability: str
    ) -> PluginLease:
        raise NotImplementedError

    async def release(self, name: str, *, holder: str, purpose: str | None, everything: bool) -> int:
        raise NotImplementedError


@pytest.fixture
async def house(tmp_path: Path) -> House:
    return House(tmp_path)


async def test_all_are_asked_in_order(house: House) -> None:
    """Each plugin gets the request, in the configured order, as dockerd words it: what is empty is left out."""
    order: list[str] = []

    def noting(name: str) -> Script:
        async def script(writer: asyncio.StreamWriter) -> None:
            order.append(name)
            await ALLOW(writer)

        return script

    async with house.stack:
        first, second = await house.add("b", noting("b")), await house.add("a", noting("a"))
        await house.ask("b", "a")
    assert order == ["b", "a"]
    (head, body) = first.seen[0]
    assert head.startswith("POST /AuthZPlugin.AuthZReq HTTP/1.1\r\n")
    assert body == second.seen[0][1] == b'{"RequestMethod":"GET","RequestUri":"/_ping"}'


async def test_words_on_the_wire(house: House) -> None:
    """The names of all members are dockerd's, and body and certificates are in base64."""
    async with house.stack:
        peer = await house.add("a")
        await house.chain.use(Rules(("a",)))
        await house.chain.ask(
            Inquiry(
                user="client",
                user_auth_n_method="TLS",
                request_method="POST",
                request_uri="/x?a=b%20c",
                request_body=b'{"a":"<&>"}',
                request_headers={"X-Lower": "1"},
                request_peer_certificates=(b"-----BEGIN CERTIFICATE-----",),
            )
        )
    assert json.loads(peer.seen[0][1]) == {
        "User": "client",
        "UserAuthNMethod": "TLS",
        "RequestMethod": "POST",
        "RequestUri": "/x?a=b%20c",
        "RequestBody": "eyJhIjoiPCY+In0=",
        "RequestHeaders": {"X-Lower": "1"},
        "RequestPeerCertificates": ["LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t"],
    }


async def test_one_denies(house: House) -> None:
    """A plugin that does not allow a request ends the matter with its own message: those behind it are not asked."""
    async with house.stack:
        await house.add("a")
        await house.add("b", answer(body=b'{"Allow":false,"Msg":"not you"}'))
        last = await house.add("c")
        with pytest.raises(Denied) as caught:
            await house.ask("a", "b", "c")
    assert str(caught.value) == "authorization denied by plugin b:latest: not you"
    assert caught.value.status == 403
    assert not last.seen


@pytest.mark.parametrize("body", [b"{}", b'{"Allow":null}', b'{"Msg":null}'])
async def test_what_is_not_said_is_no(house: House, body: bytes) -> None:
    """An answer without Allow denies."""
    async with house.stack:
        await house.add("a", answer(body=body))
        with pytest.raises(Denied):
            await house.ask("a", lenient=True)


async def test_keys_in_any_case(house: House) -> None:
    """Keys count in any case, as in Docker."""
    async with house.stack:
        await house.add("a", answer(body=b'{"allow":true,"MSG":"fine"}'))
        await house.ask("a")


@pytest.mark.parametrize(
    ("script", "text"),
    [
        (answer(body=b'{"Allow":true,"Err":"its own\\ttrouble"}'), "its own trouble"),
        (answer(body=b'{"Allow":false,"Msg":"m","Err":"e"}'), "e"),
        (answer("500 Internal Server Error", b'{"Err":"boom"}'), "boom"),
        (answer("404 Not Found", b"nothing here"), "nothing here"),
        (answer(body=b'{"Allow":1}'), "the answer of plugin a"),
        (answer(body=b'{"Allow":"true"}'), "the answer of plugin a"),
        (answer(body=b'{"Allow":true,"Msg":5}'), "the answer of plugin a"),
        (answer(body=b"[]"), "the answer of plugin a"),
        (answer(body=b""), "the answer of plugin a"),
        (raw(b"SSH-2.0-OpenSSH\r\n"), "the answer of plugin a"),
        (raw(b'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"Allow":true}'), "the answer of plugin a"),
        (endless(b"HTTP/1.1 200 OK\r\n\r\n", b'{"Allow":true}' * 4096), "the answer of plugin a"),
        (endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 4096), "the answer of plugin a"),
    ],
)
async def test_answers_that_do_not_count(house: House, script: Script, text: str) -> None:
    """Errors, garbage and floods are never an allowance, even where requests are passed on if nobody can be asked."""
    async with house.stack:
        await house.add("a", script)
        with pytest.raises(AuthorizationFailed) as caught:
            await house.ask("a", lenient=True)
    assert str(caught.value).startswith(f"plugin a:latest failed with error: AuthZPlugin.AuthZReq: {text}")
    assert caught.value.status == 500


async def test_messages_are_made_fit_to_be_shown(house: House) -> None:
    """Of a megabyte with control characters a few kilobytes are kept, without them."""
    async with house.stack:
        message = "\x1b[2J\n\x00\u202e" + "x" * 1_000_000
        await house.add("a", answer(body=json.dumps({"Allow": False, "Msg": message}).encode()))
        with pytest.raises(Denied) as caught:
            await house.ask("a")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 5000


async def test_one_plugin_by_several_names(house: House) -> None:
    """A plugin that is named in short, in full and by its ID is asked once."""
    async with house.stack:
        peer = await house.add("a")
        await house.ask("a", "a:latest", "a", "0" * 64)
    assert len(peer.seen) == 1


async def test_disabled_is_out_of_the_chain(house: House) -> None:
    """Disabling takes a plugin out of the chain, and enabling puts it back, both from one request to the next."""
    async with house.stack:
        await house.add("a", answer(body=b'{"Allow":false}'))
        house.change("a", enabled=False, up=False)
        await house.ask("a")
        house.change("a")
        with pytest.raises(Denied):
            await house.chain.ask(INQUIRY)
        house.change("a", enabled=False, up=False)
        await house.chain.ask(INQUIRY)


async def test_not_up(house: House) -> None:
    """An enabled plugin that is not up cannot be asked: the request fails, or is passed on to the next if so wished."""
    async with house.stack:
        peer, last = await house.add("a"), await house.add("b")
        house.change("a", up=False)
        with pytest.raises(AuthorizationFailed, match="AuthZReq: it is enabled and not up: its state is backing-off"):
            await house.ask("a", "b")
        assert not last.seen
        await house.ask("a", "b", lenient=True)
        assert len(last.seen) == 1
        assert not peer.seen


async def test_gone(house: House) -> None:
    """A plugin that was removed, or does something else by now, cannot be asked."""
    async with house.stack:
        await house.add("a")
        await house.ask("a")
        found = house.plugins.pop("a:latest")
        with pytest.raises(AuthorizationFailed, match=r"plugin a failed with error: AuthZPlugin.AuthZReq: .*not found"):
            await house.chain.ask(INQUIRY)
        house.plugins["a:latest"] = replace(found, capabilities=())
        with pytest.raises(AuthorizationFailed, match=r'does not provide "authz/1\.0"'):
            await house.chain.ask(INQUIRY)


async def test_nobody_listens(house: House) -> None:
    """A plugin that takes no connection is tried again no longer than the time allows."""
    async with house.stack:
        await house.add("a")
        (house.folder / "0.sock").unlink()
        with pytest.raises(AuthorizationFailed, match=r"AuthZReq: no answer within 0\.1 s"):
            await house.ask("a", timeout=0.1)
        await house.ask("a", timeout=0.1, lenient=True)


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n{"])
async def test_no_answer_in_time(house: House, start: bytes) -> None:
    """A plugin that hangs, before or in its answer, has the time that it is given and no more."""
    async with house.stack:
        await house.add("a", endless(start, b"", every=1.0))
        with pytest.raises(AuthorizationFailed, match=r"AuthZReq: no answer within 0\.1 s"):
            await house.ask("a", timeout=0.1)
        await house.ask("a", timeout=0.1, lenient=True)


async def test_a_plugin_that_does_not_read(house: House) -> None:
    """A plugin that takes a connection and reads nothing has no more time, however much there is to be sent."""
    async with house.stack:
        await house.add("a")
        (house.folder / "0.sock").unlink()
        with bound(house.folder / "0.sock") as deaf:
            deaf.listen()
            await house.chain.use(Rules(("a",), timeout=0.1))
            with pytest.raises(AuthorizationFailed, match=r"no answer within 0\.1 s"), anyio.fail_after(5):
                await house.chain.ask(Inquiry(request_body=b"x" * 4_194_304))


async def test_one_that_hangs_holds_up_nobody_else(house: House) -> None:
    """While a request waits for its answer, others are judged."""
    async with house.stack, anyio.create_task_group() as group:
        release, asked = anyio.Event(), anyio.Event()

        async def first_hangs(writer: asyncio.StreamWriter) -> None:
            if not asked.is_set():
                asked.set()
                await release.wait()
            await ALLOW(writer)

        await house.add("a", first_hangs)
        await house.chain.use(Rules(("a",), timeout=20))
        group.start_soon(house.chain.ask, INQUIRY)
        with anyio.fail_after(5):
            await asked.wait()
            for _ in range(20):
                await house.chain.ask(INQUIRY)
            release.set()


@pytest.mark.parametrize(
    ("bad", "why"), [("nobody/here:v1", "not found"), ("volumes", 'does not provide "authz/1.0" capability')]
)
async def test_a_bad_chain_changes_nothing(house: House, bad: str, why: str) -> None:
    """A chain with a name that is unknown, or of another kind of plugin, is refused whole; the old one stays."""
    async with house.stack:
        await house.add("a", answer(body=b'{"Allow":false}'))
        await house.add("volumes", capability="docker.volumedriver/1.0")
        await house.add("other", capability="docker.authz/2.0")
        await house.chain.use(Rules(("a",)))
        with pytest.raises(BadChain) as caught:
            await house.chain.use(Rules((bad, "a"), lenient=True))
        assert str(caught.value).startswith(f"authorization.plugins: {bad} cannot guard the API: ")
        assert why in str(caught.value)
        with pytest.raises(BadChain):
            await house.chain.use(Rules(("other",)))
        assert house.chain.rules == Rules(("a",))
        with pytest.raises(Denied):
            await house.chain.ask(INQUIRY)


async def test_a_disabled_plugin_may_be_named(house: House) -> None:
    """A plugin that is disabled does not make a chain bad: nobody could enable it otherwise."""
    async with house.stack:
        await house.add("a", answer(body=b'{"Allow":false}'))
        house.change("a", enabled=False, up=False)
        await house.ask("a", "a:latest")
        assert house.chain.rules.plugins == ("a", "a:latest")


async def test_two_changes_at_once(house: House) -> None:
    """Of two changes the later begun counts, however long the earlier one takes."""
    asked, found = anyio.Event(), anyio.Event()

    async def slow(writer: asyncio.StreamWriter) -> None:
        asked.set()
        await found.wait()
        await answer(body=b'{"Implements":["authz"]}')(writer)

    async with house.stack:
        await house.add("a")
        peer = await house.stack.enter_async_context(plugin(slow))
        (house.folder / "legacy").mkdir()
        (house.folder / "legacy" / "old.spec").write_text(peer.address)
        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(house.chain.use, Rules(("old",)))
                await asked.wait()
                group.start_soon(house.chain.use, Rules(("a",)))
                await anyio.wait_all_tasks_blocked()
                assert house.chain.rules.plugins == ()
                found.set()
        assert house.chain.rules == Rules(("a",))


async def test_waiting_for_a_plugin_that_others_start(house: House) -> None:
    """At a start a legacy plugin that is not there yet is waited for; otherwise nobody waits for one."""
    folder = house.folder / "late"
    folder.mkdir()

    async def others_start_it(_: float) -> None:
        await anyio.Path(folder / "late.spec").write_text(peer.address)

    async with house.stack:
        peer = await house.stack.enter_async_context(plugin(answer(body=b'{"Implements":["authz"]}')))
        legacy = Legacy([folder], house.folder / "none", sleep=others_start_it)
        chain = Chain(Directory(house, lambda _: None, legacy))
        with pytest.raises(BadChain, match="could not find plugin late"):
            await chain.use(Rules(("late",)))
        with anyio.fail_after(5):
            await chain.use(Rules(("late",)), wait=True)
        assert chain.rules.plugins == ("late",)


async def test_a_legacy_plugin_cannot_be_hidden(house: House) -> None:
    """A plugin that somebody creates with the name of a legacy one that guards the API does not take its place."""

    async def guard(writer: asyncio.StreamWriter) -> None:
        activated = "Plugin.Activate" in peer.seen[-1][0]
        await answer(body=b'{"Implements":["authz"]}' if activated else b'{"Msg":"no"}')(writer)

    async with house.stack:
        peer = await house.add_legacy("guard", guard)
        with pytest.raises(Denied):
            await house.ask("guard")
        await house.add("guard")
        with pytest.raises(Denied):
            await house.chain.ask(INQUIRY)
        house.change("guard", enabled=False)
        with pytest.raises(Denied):
            await house.chain.ask(INQUIRY)
        # nor at a reload, and a start does not choose between the two
        with pytest.raises(Denied):
            await house.ask("guard", timeout=4)
        with pytest.raises(
            BadChain, match="there is a managed and a legacy plugin of that name: name the managed one by"
        ):
            await Chain(house.directory).use(Rules(("guard",)))
        await Chain(house.directory).use(Rules(("0" * 64,)))


async def test_a_rival_that_does_not_answer(house: House) -> None:
    """A file of the name of a managed plugin is enough not to choose between the two."""
    async with house.stack:
        await house.add("guard")
        await house.add_legacy("guard", raw(b"SSH-2.0-OpenSSH\r\n"))
        with pytest.raises(BadChain, match="there is a managed and a legacy plugin of that name"):
            await house.ask("guard")


async def test_a_plugin_named_as_the_beginning_of_an_id(house: House) -> None:
    """A plugin that is named by the beginning of its ID is not replaced by one that somebody gives that name."""
    async with house.stack:
        await house.add("a", answer(body=b'{"Allow":false}'))
        with pytest.raises(Denied):
            await house.ask("00000000")
        await house.add("00000000", capability="docker.volumedriver/1.0")
        house.change("00000000", enabled=False)
        with pytest.raises(Denied):
            await house.chain.ask(INQUIRY)
        with pytest.raises(Denied):
            await house.ask("00000000", timeout=4)
        with pytest.raises(BadChain, match="the ID of a:latest begins so: name that by its whole ID"):
            await Chain(house.directory).use(Rules(("00000000",)))


async def test_a_name_that_begins_an_id(house: House) -> None:
    """When a plugin is gone, one whose ID begins with its name is not taken for it."""
    async with house.stack:
        await house.add("111", answer(body=b'{"Allow":false}'))
        with pytest.raises(Denied):
            await house.ask("111")
        await house.add("other", capability="docker.volumedriver/1.0")
        house.change("other", enabled=False)
        del house.plugins["111:latest"]
        with pytest.raises(AuthorizationFailed, match=r"plugin 111 failed with error: .* not found"):
            await house.chain.ask(INQUIRY)


async def test_a_name_goes_on_to_be_a_name(house: House) -> None:
    """A plugin that is named by its name and installed anew, with another ID, is asked as the one before."""
    async with house.stack:
        await house.add("a")
        await house.ask("a")
        await house.add("b", answer(body=b'{"Allow":false}'))
        house.plugins["a:latest"] = replace(house.plugins.pop("b:latest"), name="a:latest")
        with pytest.raises(Denied):
            await house.chain.ask(INQUIRY)


async def test_all_are_looked_for_at_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plugins are looked for side by side, all within one time; the first that is not found is told."""
    asked: list[str] = []
    all_asked = anyio.Event()

    def together(name: str) -> Script:
        async def script(writer: asyncio.StreamWriter) -> None:
            asked.append(name)
            if len(asked) == 3:
                all_asked.set()
            await all_asked.wait()
            await answer(body=b'{"Implements":["authz"]}')(writer)

        return script

    async with house.stack:
        for name in ("x", "y", "z"):
            await house.add_legacy(name, together(name))
        with anyio.fail_after(4):
            await house.chain.use(Rules(("x", "y", "z", "x")))
        assert sorted(asked) == ["x", "y", "z"]
        monkeypatch.setattr(authz, "_FOUND_WITHIN", 0.2)
        for name in ("v", "w"):
            await house.add_legacy(name, endless(b"", b"", every=1.0))
        with pytest.raises(BadChain, match=r"plugins: v cannot guard the API: it was not found within 0\.2 s"):
            await house.chain.use(Rules(("x", "v", "w")))
        assert house.chain.rules.plugins == ("x", "y", "z", "x")
