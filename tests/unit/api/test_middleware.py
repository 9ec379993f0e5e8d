"""What counts as loopback in a Host header."""

import pytest

from pluginsvc.api.middleware import is_loopback


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1", "127.9.9.9:2375", "[::1]", "[::1]:2375"])
def test_loopback(host: str) -> None:
    """Names and addresses of this machine's loopback, with or without a port."""
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.test",
        "localhost.evil.test",
        "127.0.0.1.evil.test",
        "evil.test:127",
        "10.0.0.1",
        "[::2]:1",
        "0.0.0.0",
        "127.0.0.1@evil.test",
        "2130706433",
        "localhost:80:80",
        "::1",
    ],
)
def test_not_loopback(host: str) -> None:
    """Anything else, also what only begins or ends like it."""
    assert not is_loopback(host)
