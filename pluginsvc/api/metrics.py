"""``GET /metrics``: what Prometheus and its like scrape."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sized
from typing import Final, get_args

from aiohttp import web
from anyio import to_thread
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from pluginsvc import metrics
from pluginsvc.api.feed import EventLog
from pluginsvc.api.handlers import Manager
from pluginsvc.api.replies import Answer
from pluginsvc.model.lifecycle import State

_OPENMETRICS: Final = "application/openmetrics-text"


class Metrics:
    """Serves the metrics.

    Args:
        manager: knows the plugins.
        events: knows the journal and the bus.
        streams: the event streams that are open, by kind.
        version: of pluginsvc.
    """

    def __init__(self, manager: Manager, events: EventLog, streams: Mapping[str, Sized], *, version: str) -> None:
        self._manager, self._events, self._streams = manager, events, streams
        metrics.BUILD.info({"version": version})

    async def serve(self, request: web.BaseRequest, _name: str) -> web.Response:
        """Send all metrics, as OpenMetrics 1.0 to who asks for that, else in Prometheus' text format 0.0.4."""
        states = self._manager.states()
        for state in get_args(State):
            metrics.PLUGINS.labels(state).set(states.get(state, 0))
        for kind, streams in self._streams.items():
            metrics.EVENT_STREAMS.labels(kind).set(len(streams))
        metrics.TASKS.set(len(asyncio.all_tasks()))
        await self._events.measure()
        # the library's own choice by Accept fails on versions that are no numbers
        wants_open = _OPENMETRICS in request.headers.get("Accept", "").lower()
        encode, kind = (
            (openmetrics.generate_latest, openmetrics.CONTENT_TYPE_LATEST)
            if wants_open
            else (generate_latest, CONTENT_TYPE_PLAIN_0_0_4)
        )
        # in a thread: what the process uses is read from files
        body = await to_thread.run_sync(encode, metrics.REGISTRY)
        return Answer(body=body, headers={"Content-Type": kind})
