"""The configuration: defaults, file, flags, refusals."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from pluginsvc.config import InvalidConfig, Settings, load
from pluginsvc.registry.hosts import Hosts

SAMPLE = Path(__file__).parents[2] / "config" / "pluginsvc.toml"


def test_sample_file_shows_every_key_at_its_default() -> None:
    """config/pluginsvc.toml, its comments taken off, is exactly the defaults of the code."""
    text = re.sub(r"^#(?=[a-z-]+ = )", "", SAMPLE.read_text(), flags=re.MULTILINE)
    assert msgspec.toml.decode(text) == msgspec.json.decode(msgspec.json.encode(Settings()))
    assert load(SAMPLE, {}) == Settings()


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    """A flag beats the file, the file beats the default."""
    file = tmp_path / "c.toml"
    file.write_text('root = "/a"\nrun-root = "/b"\n')
    settings = load(file, {"root": "/flag", "insecure_registries": ["10.0.0.0/8"]})
    assert (settings.root, settings.run_root, settings.runtime) == ("/flag", "/b", "runc")
    assert settings.insecure_registries == ("10.0.0.0/8",)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("rot = '/a'", "rot"),
        ("root = 5", "$.root"),
        ("root = 'a'", "root: 'a' is not an absolute path"),
        ("run-root = '/var/lib/pluginsvc/'", "run-root: must be another directory"),
        ("publish-dir = 'a'", "publish-dir: 'a' is neither an absolute path nor none"),
        ("legacy-dirs = ['/a', 'b']", "legacy-dirs: 'b' is not an absolute path"),
        (r'legacy-dirs = ["/a\u0000"]', r"legacy-dirs: '/a\x00' has a NUL in it"),
        ("publish-dir = '/run/pluginsvc/plugins'", "publish-dir: must not be in root or run-root"),
        ("podman-conf = 'a.conf'", "podman-conf: 'a.conf' is not an absolute path"),
        ("podman-conf = '/etc/a'", "podman-conf: Podman does not read '/etc/a', its name has to end in .conf"),
        ("podman-conf = '/run/pluginsvc/a.conf'", "podman-conf: must not be in root or run-root"),
        ("podman-conf = '/etc/aconf'", "podman-conf: Podman does not read '/etc/aconf'"),
        ("podman-conf = '/a.conf'\npublish-dir = 'none'", "podman-conf: it goes with the sockets in publish-dir"),
        ("podman-conf = '/a.conf'\npublish-dir = '/a b'", "publish-dir: '/a b' has characters that engines"),
        ("spec-dir = 'a'", "spec-dir: 'a' is not an absolute path"),
        ("spec-dir = '/var/lib/pluginsvc'", "spec-dir: must not be in root or run-root"),
        ("spec-dir = '/a'\npublish-dir = 'none'", "spec-dir: it goes with the sockets in publish-dir, which is none"),
        ("spec-dir = '/a'\npublish-dir = '/%41'", "publish-dir: '/%41' has characters that engines do not take"),
        ("publish-mounts = '/mnt'", "$.publish-mounts"),
        ("publish-mounts = ['/a', 'mnt']", "publish-mounts: 'mnt' is not an absolute path"),
        ("publish-mounts = ['']", "publish-mounts: '' is not an absolute path"),
        ("publish-mounts = ['/']", "publish-mounts: '/' is / or has '..'"),
        ("publish-mounts = ['//']", "publish-mounts: '//' is / or has '..'"),
        ("publish-mounts = ['/./']", "publish-mounts: '/./' is / or has '..'"),
        ("publish-mounts = ['/a/../mnt']", "publish-mounts: '/a/../mnt' is / or has '..'"),
        ("publish-mounts = ['/run/pluginsvc']", "publish-mounts: must not be in root or run-root"),
        ("publish-mounts = ['//var/lib//pluginsvc/a']", "publish-mounts: must not be in root or run-root"),
        ("publish-mounts = ['/srv', \"/a\\u0000b\"]", "publish-mounts: '/a\\x00b' has a NUL in it"),
        ('spec-dir = "/a\\u0000"', "spec-dir: '/a\\x00' has a NUL in it"),
        ('podman-conf = "/\\u0000.conf"', "podman-conf: '/\\x00.conf' has a NUL in it"),
        ('publish-dir = "/\\u0000"', "publish-dir: '/\\x00' has a NUL in it"),
        ("spec-dir = '/a/../var/lib/./pluginsvc/x'", "spec-dir: must not be in root or run-root"),
        ("publish-dir = '/run/x/../pluginsvc/plugins'", "publish-dir: must not be in root or run-root"),
        ("root = '/a/x/..'\npodman-conf = '/a/p.conf'", "podman-conf: must not be in root or run-root"),
        ("publish-mounts = ['/mnt']\npublish-dir = 'none'", "publish-mounts: it goes with the sockets in publish-dir"),
        ("hosts = []", "hosts: give at least one"),
        ("hosts = ['tcp://0.0.0.0:1']", "not on loopback"),
        ("hosts = ['tcp://example.org:1']", "none of"),
        ("hosts = ['tcp://127.0.0.1']", "none of"),
        ("hosts = ['unix://relative']", "none of"),
        ("gzip-level = 9", "$.gzip-level"),
        ("journal-age = inf", "$.journal-age"),
        ("journal-age = nan", "$.journal-age"),
        ("journal-events = 9999999999999999999", "$.journal-events"),
        ("journal-size = 18446744073709551616", "$.journal-size"),
        ("reader-timeout = inf", "$.reader-timeout"),
        ("max-concurrent-downloads = 0", "$.max-concurrent-downloads"),
        ("log-level = 'loud'", "$.log-level"),
        ("insecure-registries = ['http://x']", "insecure-registries"),
        ("registry-mirrors = ['ftp://x']", "registry-mirrors"),
        ("registry-mirrors = ['http://u:p@x/']", "registry-mirrors"),
        ("registry-mirrors = ['https://m.test/path']", "registry-mirrors"),
        ("registry-mirrors = ['http://m.test:99999']", "registry-mirrors"),
        ("registry-mirrors = ['http://[::1']", "registry-mirrors"),
        ("insecure-registries = ['reg.test:99999']", "insecure-registries"),
        ("hosts = ['tcp://[::1']", "none of"),
        ("[sinks.file]\npath = 'events'", "sinks.file.path: 'events' is not an absolute path"),
        ("[sinks.file]\nsize = 1", "$.sinks.file.size"),
        ("[sinks.webhook]\nurl = 'ftp://x'", "sinks.webhook.url"),
        ("[sinks.webhook]\nurl = 'https://'", "sinks.webhook.url"),
        ("[sinks.webhook]\nurl = 'https://x:0/'", "sinks.webhook.url"),
        ("[sinks.webhook]\nurl = 'https://x:y/'", "sinks.webhook.url"),
        ("[sinks.webhook]\nurl = 'https://x/'\ntoken-file = 't'", "sinks.webhook.token-file: 't' is not an absolute"),
        ("[sinks.webhook]\nurl = 'https://u:p@x/'\ntoken-file = '/t'", "not both"),
        ("= nonsense", "c.toml"),
        ("authorization.plugins = ['']", "authorization.plugins: '' is neither the name nor the ID"),
        ("authorization.plugins = ['a b']", "authorization.plugins: 'a b' is neither"),
        ("authorization.on-failure = 'maybe'", "$.authorization.on-failure"),
        ("authorization.timeout = 0", "$.authorization.timeout"),
        ("[tls]\nca-file = '/a'\ncert-file = '/b'", "tls.key-file: give all three files or none"),
        ("[tls]\nca-file = '/a'\ncert-file = 'b'\nkey-file = '/c'", "tls.cert-file: 'b' is not an absolute path"),
        ("sinks.nats.servers = ['http://x']", "sinks.nats.servers: 'http://x' is not nats://"),
        ("sinks.nats.servers = ['x:4222']", "sinks.nats.servers"),
        ("sinks.nats.servers = ['nats://x:99999']", "sinks.nats.servers"),
        ("sinks.nats.servers = ['nats://x/path']", "sinks.nats.servers"),
        ("sinks.nats.servers = ['nats://user:se/cret@x']", "sinks.nats.servers: 'nats://x' is not"),
        ("sinks.nats.servers = ['nats://user:secret@']", "sinks.nats.servers: 'nats://' is not"),
        ("sinks.nats.subject = 'a..b'", "sinks.nats.subject: 'a..b' is not"),
        ("sinks.nats.subject = 'a.>'", "sinks.nats.subject"),
        ("sinks.nats.stream = 'A.B'", "sinks.nats.stream: 'A.B' is not"),
        ("sinks.nats.credentials-file = 'a.creds'", "sinks.nats.credentials-file: 'a.creds' is not an absolute path"),
    ],
)
def test_refusals_name_the_key(tmp_path: Path, text: str, named: str) -> None:
    """A wrong file is refused with its path and the key that is wrong."""
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(InvalidConfig) as caught:
        load(file, {})
    assert named in str(caught.value)
    assert str(file) in str(caught.value)


def test_publish_mounts(tmp_path: Path) -> None:
    """Directories for links to volumes may be several, beside root, above it, and written with too many slashes."""
    file = tmp_path / "c.toml"
    places = ("/mnt", "/srv/vol/", "//mnt", "/var/lib", "/var/lib/pluginsvc2")
    file.write_text(f"publish-mounts = {list(places)}\n")
    assert load(file, {}).publish_mounts == places


def test_nats_servers(tmp_path: Path) -> None:
    """Servers of NATS may have a log-in, a port and TLS."""
    file = tmp_path / "c.toml"
    servers = ("nats://a.test", "tls://user:pass@b.test:4222", "nats://[::1]:4222")
    file.write_text(f"sinks.nats.servers = {list(servers)}\n")
    assert load(file, {}).sinks.nats.servers == servers


def test_nats_needs_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of NATS without nats-py are refused with the way to get it; without servers nobody asks for it."""
    monkeypatch.setattr("pluginsvc.sink_settings.find_spec", lambda _name: None)
    file = tmp_path / "c.toml"
    file.write_text("sinks.nats.servers = ['nats://x']\n")
    with pytest.raises(InvalidConfig, match=r"pip install 'pluginsvc\[nats\]'"):
        load(file, {})
    file.write_text("sinks.nats.servers = []\n")
    load(file, {})


def test_unreadable_file(tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(InvalidConfig, match="cannot be read: No such file"):
        load(tmp_path / "none.toml", {})


@pytest.mark.parametrize("mirror", ["https://m.test", "http://m.test:5000/", "https://[::1]:5000"])
def test_mirrors(tmp_path: Path, mirror: str) -> None:
    """A mirror is a scheme, a host and perhaps a port; the registry room takes what is accepted here."""
    file = tmp_path / "c.toml"
    file.write_text(f"registry-mirrors = ['{mirror}']\n")
    Hosts(mirrors=load(file, {}).registry_mirrors)


def test_refusals_of_sinks_name_all_and_no_secret(tmp_path: Path) -> None:
    """Every wrong value of the sinks is named at once, and the webhook's URL, which may hold a secret, is not shown."""
    file = tmp_path / "c.toml"
    file.write_text("[sinks.file]\npath = 'a'\n[sinks.webhook]\nurl = 'hxxp://u:hush@x/?key=hush'\ntoken-file = 'b'\n")
    with pytest.raises(InvalidConfig) as caught:
        load(file, {})
    assert len(caught.value.problems) == 3
    assert "hush" not in str(caught.value)
