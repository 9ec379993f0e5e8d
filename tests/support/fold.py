"""The list of plugins that a consumer of events keeps for itself, to compare with what the daemon lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any


class FoldError(AssertionError):
    """An event does not fit to those before it: one was lost, or came out of order."""


@dataclass(frozen=True, slots=True)
class View:
    """What events say of a plugin."""

    id: str
    name: str
    desired: str
    reference: str
    digest: str


def listed(plugins: Iterable[Mapping[str, Any]]) -> dict[str, View]:
    """Return what ``GET /pluginsvc/v1/plugins`` lists, by ID."""
    return {one["Id"]: View(one["Id"], one["Name"], one["Desired"], one["Reference"], one["Digest"]) for one in plugins}


class Fold:
    """A list of plugins made of events in the native form.

    Attributes:
        plugins: by ID.
        seq: number of the last event that is in it; one that is in it already changes nothing.
    """

    def __init__(self) -> None:
        self.plugins: dict[str, View] = {}
        self.seq = 0

    def snapshot(self, plugins: Iterable[Mapping[str, Any]], seq: int = 0) -> None:
        """Begin anew with a list of the daemon's, as of event ``seq``."""
        self.plugins, self.seq = listed(plugins), seq

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take one event.

        Raises:
            FoldError: it cannot follow those before it.
        """
        if event["seq"] <= self.seq:
            return
        self.seq = event["seq"]
        about, key, more = event["plugin"], event["plugin"]["id"], event["attributes"]
        match event["action"]:
            case "create":
                if key in self.plugins:
                    raise FoldError(f"created twice: {event}")
                self.plugins[key] = View(key, about["name"], "disabled", more["reference"], more["digest"])
            case "enable" | "disable" as action:
                self._change(event, desired=f"{action}d")
            case "upgrade":
                self._change(event, reference=more["reference"], digest=more["digest"])
            case "remove":
                self._change(event)
                del self.plugins[key]
            case _:
                pass  # says nothing of what is kept here

    def _change(self, event: Mapping[str, Any], **fields: str) -> None:
        key = event["plugin"]["id"]
        if key not in self.plugins:
            raise FoldError(f"there is no such plugin: {event}")
        self.plugins[key] = replace(self.plugins[key], **fields)
