"""From method and path to a handler, as Moby's router does it (REF 1.1).

aiohttp's own router is not used: names are greedy and may hold encoded slashes, and a wrong method is a 404.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from aiohttp import web

Handler = Callable[[web.BaseRequest, str], Awaitable[web.StreamResponse]]
"""Takes the request and the ``{name}`` of its path, empty where the path has none."""

_PREFIX = re.compile(r"/v([0-9.]+)(/.*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint.

    Attributes:
        method: the only method it answers.
        path: literal, or with ``{name}``, which takes any characters but line ends, slashes included.
        handler: what serves it.
        since: lowest API version that has it, empty for all.
        versioned: whether it also exists under ``/v<version>``.
    """

    method: str
    path: str
    handler: Handler
    since: str = ""
    versioned: bool = True


@dataclass(frozen=True, slots=True)
class Match:
    """A route that was found.

    Attributes:
        route: the route.
        name: the ``{name}`` of the path.
        version: the API version in the path, empty for none.
    """

    route: Route
    name: str
    version: str


class Router:
    """Finds routes: literal paths first, then patterns in the order given."""

    def __init__(
        self, routes: Iterable[Route], *, options: Handler, unsupported: tuple[re.Pattern[str], Handler]
    ) -> None:
        self._literal: dict[tuple[str, str], Route] = {}
        self._patterns: list[tuple[str, re.Pattern[str], Route]] = []
        for route in routes:
            before, brace, after = route.path.partition("{name}")
            if brace:
                pattern = re.compile(f"{re.escape(before)}(.*){re.escape(after)}")
                self._patterns.append((route.method, pattern, route))
            else:
                self._literal[route.method, route.path] = route
        self._options = Route("OPTIONS", "/", options)
        self._other, handler = unsupported
        self._unsupported = Route("*", "", handler)

    def literals(self, versions: Iterable[str]) -> dict[tuple[str, str], Match]:
        """Return what ``find`` finds for each method and literal path, plain and below each of these versions."""
        found = {(route.method, route.path): Match(route, "", "") for route in self._literal.values()}
        for version in versions:
            for route in self._literal.values():
                if route.versioned:
                    found[route.method, f"/v{version}{route.path}"] = Match(route, "", version)
        return found

    def find(self, method: str, path: str) -> Match | None:
        """Return the route for a method and a decoded, cleaned path; None is "page not found"."""
        version = ""
        if route := self._literal.get((method, path)):
            return Match(route, "", "")
        if prefix := _PREFIX.fullmatch(path):
            version, path = prefix.groups()
        if method == "OPTIONS":
            return Match(self._options, "", version)
        found = self._lookup(method, path)
        if found is None or (version and not found[0].versioned):
            return None
        return Match(*found, version)

    def _lookup(self, method: str, path: str) -> tuple[Route, str] | None:
        if route := self._literal.get((method, path)):
            return route, ""
        for wanted, pattern, route in self._patterns:
            if method == wanted and (found := pattern.fullmatch(path)):
                return route, found[1]
        if self._other.fullmatch(f"{method} {path}"):
            return self._unsupported, path
        return None
