"""From settings to what they describe."""

from pathlib import Path

from pluginsvc import wiring
from pluginsvc.api.listeners import FdListener, TcpListener, TlsFiles, UnixListener
from pluginsvc.config import Authorization, Settings, Tls
from pluginsvc.directory.authz import Rules


def test_listeners_with_tls() -> None:
    """With files for TLS every address that may be TCP gets them, those from systemd too; without none does."""
    hosts = ("unix:///s", "tcp://127.0.0.1:2376", "fd://")
    files = TlsFiles(Path("/ca"), Path("/cert"), Path("/key"))
    tls = Tls(ca_file="/ca", cert_file="/cert", key_file="/key")
    found = wiring.listeners(Settings(hosts=hosts, tls=tls), [3])
    assert found == [
        UnixListener(Path("/s"), group="root"),
        TcpListener("127.0.0.1", 2376, files),
        FdListener(3, files),
    ]
    plain = wiring.listeners(Settings(hosts=hosts), [3])
    assert plain == [UnixListener(Path("/s"), group="root"), TcpListener("127.0.0.1", 2376), FdListener(3)]


def test_guards() -> None:
    """Requests are passed on by guards that cannot be asked only where that is configured."""
    assert wiring.guards(Settings()) == Rules()
    table = Authorization(plugins=("a", "b"), on_failure="allow", timeout=3.0)
    assert wiring.guards(Settings(authorization=table)) == Rules(("a", "b"), lenient=True, timeout=3.0)
