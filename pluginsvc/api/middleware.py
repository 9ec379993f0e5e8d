"""The edge: one request id, one answer whatever happens, one line in the log.

Nothing else turns an error into a status. The order in which headers are set is Moby's (REF 1.1): a version error
has no ``Docker-Experimental``, what is refused or not found has none of the common headers.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import logging
import os
import time
from collections.abc import Awaitable, Callable
from urllib.parse import quote

import structlog
from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage

from pluginsvc import log
from pluginsvc.api.guard import Guard
from pluginsvc.api.params import API_VERSIONS, MAX_API_VERSION, MIN_API_VERSION, check_query, clean_path, version_key
from pluginsvc.api.replies import CONTEXT, Context, describe, empty, error_reply, log_crash
from pluginsvc.api.routing import Route, Router
from pluginsvc.directory.authz import Chain
from pluginsvc.errors import Forbidden, InvalidParameter, NotFound

Edge = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
"""Answers a request, whatever happens."""

_log = structlog.get_logger()
_OURS = frozenset({500, 503})
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_MIN, _MAX = version_key(MIN_API_VERSION), version_key(MAX_API_VERSION)
_numbers = itertools.count(1)
_PROCESS = os.urandom(4).hex()


class PageNotFound(NotFound):
    """No route; the text makes ``docker inspect`` go on to the next kind of object (REF 1.8)."""

    def __init__(self) -> None:
        super().__init__("page not found")


class UnsupportedVersion(InvalidParameter):
    """The API version in the path is not served, or lacks the endpoint (REF 1.2)."""


class ForeignRequest(Forbidden):
    """A request over TCP that a web page may have sent."""


def make_edge(router: Router, server: str, chain: Chain) -> Edge:
    """Return what answers every request.

    Args:
        router: the routes.
        server: the ``Server`` header.
        chain: is asked about every request that has a route.
    """
    dispatch = _make_dispatch(router, server, chain)

    async def edge(request: web.BaseRequest) -> web.StreamResponse:
        started = time.perf_counter()
        context = request[CONTEXT] = Context(f"{_PROCESS}-{next(_numbers)}")
        log.request_id.set(context.request_id)
        text = ""
        try:
            response = await dispatch(request, context)
            text = context.failure
        except asyncio.CancelledError:
            _summary(request, 499, started, "the client went away")
            raise
        except Exception as exc:
            status, text, ours = describe(exc, request)
            if _is_gone(request):
                _summary(request, 499, started, text)
                raise ConnectionResetError("the client went away") from exc
            if not ours:
                await log_crash("request.crashed", exc)
            if request.writer.output_size:
                # the headers are out: breaking the connection is the only way not to look complete
                _summary(request, status, started, text)
                raise ConnectionResetError("failed in the middle of an answer") from exc
            response = error_reply(status, text, version=context.version)
        _summary(request, response.status, started, text)
        return response

    return edge


def _is_gone(request: web.BaseRequest) -> bool:
    return request.transport is None or request.transport.is_closing()


def _summary(request: web.BaseRequest, status: int, started: float, text: str) -> None:
    """Log the one line of a request; a read that went well only at debug: such come thousands in a second."""
    quiet = not text and request.method in _READS
    if quiet and not log.debugging():
        return
    facts = {
        "method": request.method,
        "path": request.rel_url.path,
        "status": status,
        "ms": round((time.perf_counter() - started) * 1000, 1),
    }
    if quiet:
        _log.debug("request", **facts)
    elif text:
        _log.log(logging.ERROR if status in _OURS else logging.INFO, "request", **facts, error=text)
    else:
        _log.info("request", **facts)


class ApiRequest(web.BaseRequest):
    """A request whose answer, a stream included, gets the headers collected for it, and no ``Server`` of aiohttp's."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        # aiohttp's own hook for this is part of its router and middleware, which cost as much again as all of ours;
        # the golden exchanges of the tests notice if it is ever called otherwise
        response.headers.popall("Server", None)
        context = self.get(CONTEXT)
        if context is not None:
            response.headers.update(context.headers)


def request_factory(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: web.RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> ApiRequest:
    """Make a request, for ``web.Server``."""
    return ApiRequest(message, payload, protocol, writer, task, asyncio.get_running_loop())


def _make_dispatch(
    router: Router, server: str, chain: Chain
) -> Callable[[web.BaseRequest, Context], Awaitable[web.StreamResponse]]:
    """Return what guards, finds the route, has the request judged, negotiates the version and calls the handler."""
    always = {"Api-Version": MAX_API_VERSION, "Ostype": "linux", "Server": server}
    # nearly all requests are for one of these: they need neither be taken apart nor looked at again
    known = router.literals(API_VERSIONS)
    guard = Guard(chain)

    async def dispatch(request: web.BaseRequest, context: Context) -> web.StreamResponse:
        _refuse_foreign(request)
        match = known.get((request.method, request.raw_path))
        if match is None:
            # what follows is cut off here, and is part of the path to a plugin that judges by it, as to Go
            if "#" in request.raw_path:
                raise PageNotFound
            path = request.rel_url.path
            cleaned = clean_path(path)
            if cleaned != path:
                return _moved(request, cleaned)
            match = router.find(request.method, path)
            if match is None:
                raise PageNotFound
            check_query(request.raw_path.partition("?")[2])
        context.version = match.version
        # before all that depends on the request (REF 1.1): who is refused learns nothing else
        if chain.rules.plugins:
            await guard.authorize(request, match.route)
        context.headers.update(always)
        _negotiate(match.version)
        context.headers["Docker-Experimental"] = "false"
        _check_since(match.route, match.version)
        return await match.route.handler(request, match.name)

    return dispatch


def _moved(request: web.BaseRequest, path: str) -> web.Response:
    query = request.rel_url.raw_query_string
    response = empty(301)
    response.headers["Location"] = quote(path, safe="/:@!$&'()*+,;=~") + (f"?{query}" if query else "")
    return response


def _negotiate(version: str) -> None:
    if not version or version in API_VERSIONS:
        return
    key = version_key(version)
    if key < _MIN:
        raise UnsupportedVersion(
            f"client version {version} is too old. Minimum supported API version is {MIN_API_VERSION}, "
            "please upgrade your client to a newer version"
        )
    if key > _MAX:
        raise UnsupportedVersion(
            f"client version {version} is too new. Maximum supported API version is {MAX_API_VERSION}"
        )


def _check_since(route: Route, version: str) -> None:
    if version and route.since and version_key(version) < version_key(route.since):
        shown = route.path.replace("{name}", "{name:.*}")
        raise UnsupportedVersion(f"{route.method} {shown} requires minimum API version {route.since}")


def _refuse_foreign(request: web.BaseRequest) -> None:
    """Refuse, over TCP, what a browser could be made to send: no page may reach a port of the host behind it."""
    # asked once for a connection, and kept by its protocol
    if not isinstance(request.protocol.sockname, tuple):
        return
    if "Origin" in request.headers:
        raise ForeignRequest("requests from web pages (with an Origin header) are refused over TCP")
    hosts = request.headers.getall("Host", ())
    if len(hosts) != 1 or not is_loopback(hosts[0]):
        raise ForeignRequest("over TCP this daemon answers only to a loopback Host, such as localhost or 127.0.0.1")


def is_loopback(host: str) -> bool:
    """Tell whether a ``Host`` header, with or without a port, names this machine's loopback."""
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdigit():
        name = host
    name = name.removeprefix("[").removesuffix("]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
