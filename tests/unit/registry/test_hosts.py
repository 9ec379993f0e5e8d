"""Hosts: trust, mirrors, certs.d."""

import ssl
from pathlib import Path

import anyio
import pytest
from aiohttp import web

from pluginsvc.registry.errors import TLS, RegistryBusy
from pluginsvc.registry.hosts import HUB, Endpoint, Hosts, InvalidCertificates, InvalidHost
from tests.support.registry import start_registry
from tests.unit.registry import scripted

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1:5000", True),
        ("127.9.9.9", True),
        ("[::1]:5000", True),
        ("localhost", True),
        ("LOCALHOST:5000", True),
        ("reg.localhost:1", True),
        ("10.1.2.3:5000", True),
        ("10.2.2.3:5000", False),
        ("named.test", True),
        ("NAMED.test", True),
        ("named.test:444", False),
        ("ported.test:5000", True),
        ("ported.test", False),
        ("nowhere.invalid", False),
        ("127.0.0.1.nowhere.invalid", False),
        (HUB, False),
    ],
)
async def test_insecure_is_loopback_named_hosts_and_networks(host: str, *, expected: bool) -> None:
    """Loopback, exactly named hosts and addresses in named networks are insecure, nothing else is."""
    hosts = Hosts(insecure=["named.test", "ported.test:5000", "10.1.0.0/16"])
    assert await hosts.insecure(host) is expected


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (["127.0.0.1", "::1"], True),
        (["127.0.0.1", "93.184.216.34"], False),
        (["93.184.216.34"], False),
        (["fe80::1%eth0"], False),
        ([], False),
    ],
)
async def test_a_name_is_insecure_by_all_its_addresses(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str], *, expected: bool
) -> None:
    """One foreign address is enough to make a name secure: whoever adds a loopback one must not switch TLS off."""

    async def look_up(*_args: object, **_options: object) -> list[tuple[object, ...]]:
        return [(None, None, None, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(anyio, "getaddrinfo", look_up)
    hosts = Hosts()
    assert await hosts.insecure("name.test:5000") is expected
    addresses.append("203.0.113.1")
    assert await hosts.insecure("name.test:5000") is expected  # one look-up serves for a while
    for number in range(1000):
        await hosts.insecure(f"{number}.test")
    assert len(hosts._looked_up) <= 256


async def test_endpoints_follow_trust() -> None:
    """A secure host is spoken to over HTTPS alone, an insecure one also over HTTP."""
    hosts = Hosts(insecure=["named.test"])
    assert await hosts.endpoints("10.0.0.1:5000", push=False) == [Endpoint(host="10.0.0.1:5000", schemes=("https",))]
    (found,) = await hosts.endpoints("named.test", push=True)
    assert found.schemes == ("https", "http")
    assert not found.secure


async def test_mirrors_serve_hub_pulls_only() -> None:
    """Mirrors come before Docker Hub on a pull, and neither on a push nor for another registry."""
    hosts = Hosts(mirrors=["https://10.0.0.9/", "http://10.0.0.8:5000", "https://localhost:5001"])
    hub = Endpoint(host=HUB, schemes=("https",))
    assert await hosts.endpoints("docker.io", push=False) == [
        Endpoint(host="10.0.0.9", schemes=("https",), mirror=True),
        Endpoint(host="10.0.0.8:5000", schemes=("http",), mirror=True),
        Endpoint(host="localhost:5001", schemes=("https", "http"), mirror=True),
        hub,
    ]
    assert await hosts.endpoints("docker.io", push=True) == [hub]
    assert [e.mirror for e in await hosts.endpoints("10.0.0.1", push=False)] == [False]


@pytest.mark.parametrize("entry", ["", "http://x", "x/y", "x y", "x:999999", "10.0.0.0/99", "-x", "x\n", "a@b"])
def test_bad_insecure_entries_are_refused(entry: str) -> None:
    """An insecure entry that is neither host nor network is refused when it is read, not when it is used."""
    with pytest.raises(InvalidHost):
        Hosts(insecure=[entry])


@pytest.mark.parametrize(
    "entry", ["", "mirror.test", "ftp://m", "https://u:p@m", "https://m/path", "https://m?x", "https://"]
)
def test_bad_mirrors_are_refused(entry: str) -> None:
    """A mirror is a bare base URL."""
    with pytest.raises(InvalidHost):
        Hosts(mirrors=[entry])


async def test_a_port_no_socket_has_is_the_callers_mistake() -> None:
    """A reference may hold a port that cannot exist; that is bad input and no crash."""
    with pytest.raises(InvalidHost):
        await Hosts().endpoints("host.test:99999999999", push=False)


async def test_certs_d_authority_is_trusted_and_needed(tmp_path: Path) -> None:
    """A secure registry with a private authority works with its `.crt` in certs.d and fails without."""
    with start_registry(tmp_path, tls=True) as running:
        certs = tmp_path / "certs.d"
        async with scripted.registry(scripted.strict_hosts(certs)) as client:
            with pytest.raises(RegistryBusy) as failed:
                await client.pusher(scripted.reference(running.host), scripted.access()).exists(scripted.blob(b"x"))
            assert failed.value.code == TLS
            assert not failed.value.temporary
            assert running.ca_path
            folder = certs / running.host
            folder.mkdir(parents=True)
            (folder / "ca.crt").write_bytes(running.ca_path.read_bytes())
            # the same client: a file that appears is seen
            pusher = client.pusher(scripted.reference(running.host), scripted.access())
            assert await pusher.exists(scripted.blob(b"x")) is False


async def test_certs_d_client_pair_is_shown(tmp_path: Path) -> None:
    """A registry that wants client certificates gets the pair from certs.d."""
    tls, ca, certificate, key = scripted.certificates(tmp_path)
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_verify_locations(ca)
    certs = tmp_path / "certs.d"

    async def script(request: web.BaseRequest, seen: scripted.Seen) -> web.StreamResponse:
        return web.Response(status=200)

    async with scripted.serve(script, tls=tls) as server, scripted.registry(scripted.strict_hosts(certs)) as client:
        folder = certs / server.host
        folder.mkdir(parents=True)
        (folder / "ca.crt").write_bytes(ca.read_bytes())
        pusher = client.pusher(scripted.reference(server.host), scripted.access())
        with pytest.raises(RegistryBusy):
            await pusher.exists(scripted.blob(b"x"))
        (folder / "me.cert").write_bytes(certificate.read_bytes())
        (folder / "me.key").write_bytes(key.read_bytes())
        assert await pusher.exists(scripted.blob(b"x")) is True


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({"x.crt": "no pem"}, "x.crt"),
        ({"x.cert": "no pem"}, "x.key is missing"),
        ({"x.key": "no pem"}, "x.cert is missing"),
        ({"x.cert": "no pem", "x.key": "no pem"}, "x.cert"),
    ],
)
async def test_unusable_certificates_are_named(tmp_path: Path, files: dict[str, str], text: str) -> None:
    """What cannot be used in certs.d is an error that names the file."""
    folder = tmp_path / "reg.test"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    hosts = Hosts(certs_dirs=(tmp_path,), insecure=["reg.test"])
    with pytest.raises(InvalidCertificates, match=text):
        await hosts.tls("reg.test", verify=False)


async def test_contexts_are_shared_and_bounded() -> None:
    """Hosts without files of their own share one context, however many hosts a registry names."""
    hosts = Hosts(certs_dirs=(Path("/nonexistent"),))
    contexts = {id(await hosts.tls(f"127.0.0.1:{port}", verify=False)) for port in range(1000, 1020)}
    assert len(contexts) == 1
    assert (await hosts.tls("127.0.0.1", verify=False)).verify_mode == ssl.CERT_NONE
    assert (await hosts.tls("127.0.0.1", verify=True)).verify_mode == ssl.CERT_REQUIRED
    assert (await hosts.tls("10.0.0.1", verify=False)).verify_mode == ssl.CERT_REQUIRED
    await hosts.tls("..", verify=False)
