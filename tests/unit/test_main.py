"""The command line, and what starting the daemon loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pluginsvc import __main__, daemon
from pluginsvc.config import Settings

NEVER = {"rich", "pygments", "click", "rich_click", "cryptography", "opentelemetry", "pluginsvc.client"}
"""What a daemon has no use for: terminals, tracing, signatures, its own client."""

START = """
import gc, os, ssl, sys
os.environ.pop("SSL_CERT_FILE", None)
os.geteuid = lambda: 1000
from pluginsvc.__main__ import main
try:
    main(["serve"])
except SystemExit as refused:
    assert "as root" in str(refused), refused
import aiohttp.connector, uvloop
assert gc.isenabled()
assert gc.get_freeze_count() > 10_000
assert "SSL_CERT_FILE" not in os.environ
print(*sys.modules)
"""
"""The start of the daemon up to the point where it refuses for want of root."""


def test_the_start_loads_little() -> None:
    """No terminal, tracing or signature library is loaded to start, and what was held back for it is as before."""
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "pluginsvc.daemon" in loaded
    assert {name for name in loaded if name in NEVER or name.split(".")[0] in NEVER} == set()


def test_authorities_are_read_when_they_are_needed() -> None:
    """After such a start a TLS context that the registry client makes still knows the CAs of the host."""
    made = START + "print(len(ssl.create_default_context().get_ca_certs()) == int(sys.argv[1]))"
    count = "import ssl; print(len(ssl.create_default_context().get_ca_certs()))"
    known = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, check=True, env={}).stdout
    done = subprocess.run([sys.executable, "-c", made, known], capture_output=True, text=True, check=True, env={})
    assert done.stdout.split()[-1] == "True"


def test_flags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Flags go over the file, and repeatable ones are collected."""
    ran: list[Settings] = []
    monkeypatch.setattr(daemon, "run", lambda settings, reload: ran.extend([settings, reload()]))
    file = tmp_path / "c.toml"
    file.write_text('root = "/from/file"\nrun-root = "/run/from/file"\n')
    words = ["--root", "/r", "--host", "unix:///a", "--host", "tcp://127.0.0.1:1", "--log-level", "error"]
    words += ["--publish-dir", "none", "--insecure-registry", "h:5000"]
    __main__.main(["serve", "--config", str(file), *words])
    settings, again = ran
    assert settings == again
    assert (settings.root, settings.run_root, settings.log_level) == ("/r", "/run/from/file", "error")
    assert settings.publish_dir == "none"
    assert list(settings.hosts) == ["unix:///a", "tcp://127.0.0.1:1"]
    assert list(settings.insecure_registries) == ["h:5000"]


@pytest.mark.parametrize(
    "words",
    [[], ["sevre"], ["serve", "--log-level", "loud"], ["serve", "--ro", "/r"], ["serve", "extra"], ["check-config"]],
)
def test_misuse(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be understood is refused with the usage and exit code 2; flags have no short forms."""
    with pytest.raises(SystemExit) as ended:
        __main__.main(words)
    assert ended.value.code == 2
    assert "usage: pluginsvc" in capsys.readouterr().err


def test_bad_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A configuration that is wrong is told in one line; one that is right is called so."""
    file = tmp_path / "c.toml"
    file.write_text("colour = 1\n")
    for command in (["check-config", str(file)], ["serve", "--config", str(file)]):
        with pytest.raises(SystemExit, match=r"pluginsvc: .*colour"):
            __main__.main(command)
    file.write_text("")
    __main__.main(["check-config", str(file)])
    assert capsys.readouterr().out == f"{file}: ok\n"
