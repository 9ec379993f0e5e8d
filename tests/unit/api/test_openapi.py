"""docs/openapi.yaml is valid, is what is served, and names every route and no other."""

import json
import re
from typing import Any

import pytest
from openapi_spec_validator import validate

from pluginsvc.api.directory import DirectoryHandlers
from pluginsvc.api.events import EventStreams
from pluginsvc.api.handlers import PluginHandlers
from pluginsvc.api.leases import LeaseHandlers
from pluginsvc.api.logs import OutputHandlers
from pluginsvc.api.metrics import Metrics
from pluginsvc.api.native import OPENAPI, NativeHandlers
from pluginsvc.api.native_events import NativeEvents
from pluginsvc.api.params import MAX_API_VERSION, MIN_API_VERSION
from pluginsvc.api.routing import Route
from pluginsvc.api.system import SystemHandlers
from pluginsvc.api.volumes import VolumeHandlers
from pluginsvc.directory.volume_use import Volumes
from tests.functional.conftest import FACTS
from tests.support import openapi
from tests.support.memory_manager import MemoryManager


def _routes() -> list[Route]:
    memory = MemoryManager()
    return [
        *PluginHandlers(memory).routes(),
        *SystemHandlers(memory, FACTS, listening=[], event_streams=()).routes(),
        *NativeHandlers(memory).routes(),
        *LeaseHandlers(memory).routes(),
        *DirectoryHandlers(memory.directory, timeout=1).routes(),
        *VolumeHandlers(Volumes(memory.directory, memory)).routes(),
        *OutputHandlers(memory).routes(),
        Route("GET", "/metrics", Metrics(memory, memory.events, {}, version="1").serve, versioned=False),
        Route("GET", "/events", EventStreams(memory.events, timeout=1).serve),
        Route("GET", "/pluginsvc/v1/events", NativeEvents(memory.events, memory, timeout=1).serve),
    ]


def test_valid() -> None:
    """The document is valid OpenAPI 3.1."""
    validate(openapi.document())


def test_served_is_the_source() -> None:
    """What the package serves is the source; else run `python -m tests.support.openapi`."""
    assert openapi.as_json().encode() == OPENAPI


def test_routes() -> None:
    """Each route is described, and nothing else is."""
    described = {(method.upper(), path) for path, item in openapi.document()["paths"].items() for method in item}
    assert described == {(route.method, route.path) for route in _routes()}


def test_versions() -> None:
    """The document names the versions that the code negotiates."""
    text = openapi.SOURCE.read_text()
    assert set(re.findall(r"/v(1\.\d+)", text)) == {MIN_API_VERSION, MAX_API_VERSION}
    assert set(re.findall(r"ersion: \{const: '(1\.\d+)'\}", text)) == {MIN_API_VERSION, MAX_API_VERSION}


def _references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*map(_references, node.values()))
    return set().union(*map(_references, node)) if isinstance(node, list) else set()


def test_no_dead_components() -> None:
    """Each component is referred to, and each reference leads somewhere."""
    document = json.loads(OPENAPI)
    there = {f"#/components/{kind}/{name}" for kind, found in document["components"].items() for name in found}
    assert _references(document) == there


@pytest.mark.parametrize("schema", ["Plugin", "Event", "ProgressLine", "Version"])
def test_schemas_refuse(schema: str) -> None:
    """The schemas that the functional tests rely on do refuse what is foreign to them."""
    with pytest.raises(Exception, match=r"Failed validating"):
        openapi.check(schema, {"Foreign": 1})
