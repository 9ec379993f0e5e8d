"""The HTTP application, and serving it on sockets."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from pluginsvc.api.directory import DirectoryHandlers
from pluginsvc.api.events import EventStreams
from pluginsvc.api.feed import EventLog
from pluginsvc.api.handlers import Manager, PluginHandlers
from pluginsvc.api.leases import LeaseHandlers
from pluginsvc.api.listeners import BACKLOG, Bound, Listener, bind
from pluginsvc.api.logs import OutputHandlers
from pluginsvc.api.metrics import Metrics
from pluginsvc.api.middleware import Edge, make_edge, request_factory
from pluginsvc.api.native import NativeHandlers
from pluginsvc.api.native_events import HEARTBEAT, NativeEvents
from pluginsvc.api.routing import Route, Router
from pluginsvc.api.system import SystemFacts, SystemHandlers, nothing, unsupported
from pluginsvc.api.volumes import VolumeHandlers
from pluginsvc.directory.authz import Chain
from pluginsvc.directory.directory import Directory
from pluginsvc.directory.volume_use import Volumes


@dataclass(frozen=True, slots=True)
class Api:
    """The application.

    Attributes:
        edge: answers requests.
        streams: the Engine's event streams that are open.
        native: those of our own.
        capabilities: those that tell who provides something.
        output: the streams of plugins' output that are open.
        listening: the addresses it is served on without TLS, as URIs.
    """

    edge: Edge
    streams: EventStreams
    native: NativeEvents
    capabilities: DirectoryHandlers
    output: OutputHandlers
    listening: list[str]


_log = structlog.get_logger()

_MAX_HEADER = 64 * 1024
"""Longest request line and header, in bytes: identity tokens of registries outgrow aiohttp's 8 KiB."""

_READ_BUFFER = 1024 * 1024

_CHANGES_ELSEWHERE = re.compile(
    "(POST|PUT|DELETE) /(build|commit|configs|containers|exec|grpc|images|networks|nodes|secrets|services|session|swarm"
    "|tasks|volumes)(/.*)?"
)
"""Engine calls that change something that is no plugin. Its reads are unknown paths: ``docker inspect`` wants 404s."""


def make_app(
    *,
    manager: Manager,
    directory: Directory,
    system: SystemFacts,
    events: EventLog,
    chain: Chain | None = None,
    reader_timeout: float = 300.0,
    heartbeat: float = HEARTBEAT,
) -> Api:
    """Build the application.

    Args:
        manager: does the work.
        directory: finds who provides what.
        system: what ``/version`` and ``/info`` tell.
        events: feeds the event streams.
        chain: is asked about each request; ``None``: nobody is.
        reader_timeout: seconds after which a reader of events that reads nothing is cut off.
        heartbeat: seconds without an event after which a reader of our own stream is told how far it is.
    """
    listening: list[str] = []
    streams, output = EventStreams(events, timeout=reader_timeout), OutputHandlers(manager)
    native = NativeEvents(events, manager, timeout=reader_timeout, heartbeat=heartbeat)
    capabilities = DirectoryHandlers(directory, timeout=reader_timeout, heartbeat=heartbeat)
    measured = Metrics(manager, events, {"engine": streams, "native": native}, version=system.version)
    routes = [
        *PluginHandlers(manager).routes(),
        *SystemHandlers(manager, system, listening=listening, event_streams=(streams, native)).routes(),
        *NativeHandlers(manager).routes(),
        *LeaseHandlers(manager).routes(),
        *capabilities.routes(),
        *VolumeHandlers(Volumes(directory, manager)).routes(),
        *output.routes(),
        Route("GET", "/events", streams.serve),
        Route("GET", "/pluginsvc/v1/events", native.serve, versioned=False),
        Route("GET", "/metrics", measured.serve, versioned=False),
    ]
    router = Router(routes, options=nothing, unsupported=(_CHANGES_ELSEWHERE, unsupported))
    edge = make_edge(router, f"Docker/{system.engine_version} (linux)", chain or Chain(directory))
    return Api(edge, streams, native, capabilities, output, listening)


class _Forward(logging.Handler):
    """Takes what aiohttp logs: requests that are no HTTP, in one line each, and bugs."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record of aiohttp as ours."""
        cause = record.exc_info[1] if record.exc_info else None
        if isinstance(cause, HttpProcessingError):
            # its text quotes the request, credentials included
            _log.info("http.malformed", error=type(cause).__name__)
        elif isinstance(cause, ConnectionError):
            # a client that is gone: the edge has logged the request
            return
        elif record.levelno >= logging.WARNING:
            # no traceback: formatting one reads files, and we are on the loop
            _log.error("http.crashed", what=record.getMessage(), error=repr(cause))


def _http_logger() -> logging.Logger:
    logger = logging.getLogger("pluginsvc.http")
    logger.propagate = False
    logger.handlers[:] = [_Forward()]
    return logger


async def _cut_short(hurry: anyio.Event, server: web.Server) -> None:
    """Break all connections once there is no more time: their handlers are cancelled by that."""
    await hurry.wait()
    for connection in list(server.connections):
        if connection.transport is not None:
            connection.transport.abort()


@asynccontextmanager
async def serve(
    app: Api, listeners: Iterable[Listener], *, grace: float = 10.0, hurry: anyio.Event | None = None
) -> AsyncIterator[list[str]]:
    """Serve ``app`` while the block runs.

    On the way out no new connection is taken, streams without end are ended, and handlers may finish.

    Args:
        app: from ``make_app``.
        listeners: where; all are opened before the first is served.
        grace: seconds handlers may take to finish before they are cancelled, and again to end after that.
        hurry: set when they get no more time.

    Yields:
        The addresses, as URIs, with the ports they really got.

    Raises:
        CannotListen: one of them is not to be had; none is left open.
    """
    bound: list[Bound] = []
    server = web.Server(
        app.edge,
        request_factory=request_factory,
        handler_cancellation=True,
        access_log=None,
        logger=_http_logger(),
        auto_decompress=False,
        read_bufsize=_READ_BUFFER,
        max_line_size=_MAX_HEADER,
        max_field_size=_MAX_HEADER,
    )
    runner = web.ServerRunner(server, shutdown_timeout=grace)
    try:
        for listener in listeners:
            # a socket that is bound while we are cancelled must not get lost
            with anyio.CancelScope(shield=True):
                bound.append(await anyio.to_thread.run_sync(bind, listener))
        app.listening[:] = [each.address for each in bound if each.tls is None]
        await runner.setup()
        for each in bound:
            await web.SockSite(runner, each.socket, backlog=BACKLOG, ssl_context=each.tls).start()
        yield [each.address for each in bound]
    finally:
        with anyio.CancelScope(shield=True):
            try:
                for site in runner.sites:
                    await site.stop()
                app.streams.close()
                app.native.close()
                app.capabilities.close()
                app.output.close()
                async with anyio.create_task_group() as group:
                    if hurry is not None:
                        group.start_soon(_cut_short, hurry, server)
                    await runner.cleanup()
                    group.cancel_scope.cancel()
            finally:
                for each in bound:
                    await anyio.to_thread.run_sync(each.remove)
