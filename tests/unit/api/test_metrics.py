"""The form in which metrics are sent."""

from typing import get_args

import pytest
from aiohttp.test_utils import make_mocked_request
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST

from pluginsvc.api.metrics import Metrics
from pluginsvc.model.lifecycle import State
from tests.support.memory_manager import MemoryManager
from tests.support.scrape import Scrape

pytestmark = pytest.mark.anyio
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;"
    "q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
"""What Prometheus 3 sends."""
TEXT = "text/plain; version=0.0.4; charset=utf-8"


async def scraped(accept: str | None, **streams: list[None]) -> tuple[Scrape, str]:
    memory = MemoryManager()
    served = Metrics(memory, memory.events, streams, version="1.2.3")
    request = make_mocked_request("GET", "/metrics", headers={} if accept is None else {"Accept": accept})
    answer = await served.serve(request, "")
    assert isinstance(answer.body, bytes)
    kind = answer.headers["Content-Type"]
    return Scrape(answer.body.decode(), kind), kind


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, TEXT),
        ("*/*", TEXT),
        ("text/plain;version=0.0.4", TEXT),
        ("text/html, text/plain;version=1.x", TEXT),
        (PROMETHEUS, CONTENT_TYPE_LATEST),
        ("application/openmetrics-text", CONTENT_TYPE_LATEST),
        ('Application/OpenMetrics-Text; version="1.0.0"', CONTENT_TYPE_LATEST),
    ],
)
async def test_form(accept: str | None, kind: str) -> None:
    """Who names OpenMetrics gets it, all others the plain text; either can be parsed, whatever version is asked for."""
    found, given = await scraped(accept)
    assert given == kind
    assert found("pluginsvc_build_info", version="1.2.3") == 1


async def test_states() -> None:
    """Every state of a plugin is there, also without a plugin."""
    found, _ = await scraped(None)
    assert {found("pluginsvc_plugins", state=state) for state in get_args(State)} == {0}


async def test_streams() -> None:
    """Streams are counted by kind at the moment of the question."""
    found, _ = await scraped(None, engine=[None, None], native=[])
    assert found("pluginsvc_event_streams", kind="engine") == 2
    assert found("pluginsvc_event_streams", kind="native") == 0


async def test_process() -> None:
    """The process shows what it uses."""
    found, _ = await scraped(PROMETHEUS)
    assert found("process_open_fds") > 2
    assert found("process_resident_memory_bytes") > 1e6
    assert found("process_start_time_seconds") > 1e9
