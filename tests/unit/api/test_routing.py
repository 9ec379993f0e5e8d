"""From method and path to a route."""

import re

import pytest
from aiohttp import web

from pluginsvc.api.routing import Route, Router


async def _handler(_request: web.BaseRequest, _name: str) -> web.Response:
    return web.Response()


async def _other(_request: web.BaseRequest, _name: str) -> web.Response:
    return web.Response()


@pytest.fixture
def router() -> Router:
    """Give a router with one route of each kind."""
    routes = [
        Route("GET", "/plugins", _handler),
        Route("POST", "/plugins/pull", _handler),
        Route("POST", "/plugins/{name}/pull", _handler),
        Route("GET", "/plugins/{name}/json", _handler),
        Route("DELETE", "/plugins/{name}", _handler),
        Route("GET", "/own", _handler, versioned=False),
    ]
    return Router(routes, options=_other, unsupported=(re.compile("POST /containers(/.*)?"), _other))


@pytest.mark.parametrize(
    ("method", "path", "found", "name", "version"),
    [
        ("GET", "/plugins", "/plugins", "", ""),
        ("GET", "/v1.30/plugins", "/plugins", "", "1.30"),
        ("POST", "/plugins/pull", "/plugins/pull", "", ""),
        ("POST", "/v1.30/plugins/pull", "/plugins/pull", "", "1.30"),
        ("POST", "/plugins/pull/pull", "/plugins/{name}/pull", "pull", ""),
        ("GET", "/plugins/a/b:1/json", "/plugins/{name}/json", "a/b:1", ""),
        ("GET", "/plugins/json/json/json", "/plugins/{name}/json", "json/json", ""),
        ("DELETE", "/v1..2/plugins/", "/plugins/{name}", "", "1..2"),
        ("DELETE", "/plugins/x/json", "/plugins/{name}", "x/json", ""),
        ("GET", "/own", "/own", "", ""),
        ("OPTIONS", "/anything", "/", "", ""),
        ("OPTIONS", "/v1.2/x", "/", "", "1.2"),
        ("POST", "/v1.30/containers/create", "", "/containers/create", "1.30"),
    ],
)
def test_found(router: Router, method: str, path: str, found: str, name: str, version: str) -> None:
    """Literal paths win, names are greedy, the version is split off."""
    match = router.find(method, path)
    assert match is not None
    assert (match.route.path, match.name, match.version) == (found, name, version)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("HEAD", "/plugins"),
        ("POST", "/plugins"),
        ("GET", "/plugins/"),
        ("GET", "/plugins/x"),
        ("GET", "/v/plugins"),
        ("GET", "/v1.2x/plugins"),
        ("GET", "/v1.30"),
        ("GET", "/v1.30/v1.30/plugins"),
        ("GET", "/v1.30/own"),
        ("GET", "/plugins/a\nb/json"),
        ("GET", "/containers/json"),
        ("POST", "/containersx"),
        ("GET", "*"),
        ("GET", ""),
    ],
)
def test_not_found(router: Router, method: str, path: str) -> None:
    """Anything else is no page, a wrong method included."""
    assert router.find(method, path) is None


def test_literals_are_what_would_be_found(router: Router) -> None:
    """The table of literal paths says the same as looking each up, and has no path of another version."""
    table = router.literals(["1.24", "1.47"])
    assert ("GET", "/v1.47/plugins") in table
    assert ("GET", "/own") in table
    assert ("GET", "/v1.47/own") not in table
    assert ("GET", "/v1.25/plugins") not in table
    for (method, path), match in table.items():
        assert router.find(method, path) == match
