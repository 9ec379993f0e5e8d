"""Whether a plugin answers: one harmless call, whose answer may be any."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pluginsvc.directory.rpc import Client, PluginFault
from pluginsvc.model.plugin import Capability

_CALLS = {
    "volumedriver": "VolumeDriver.Capabilities",
    "networkdriver": "NetworkDriver.GetCapabilities",
    "ipamdriver": "IpamDriver.GetCapabilities",
    "logdriver": "LogDriver.Capabilities",
}


def probe_call(types: Iterable[Capability]) -> str | None:
    """Return the call that a plugin of these types answers and that changes nothing, if one is known (REF 3.13).

    Args:
        types: from the plugin's config; versions do not count.
    """
    return next((_CALLS[one.name] for one in types if one.prefix == "docker" and one.name in _CALLS), None)


async def alive(path: Path, call: str, *, timeout: float) -> str:
    """Ask once; the plugin is alive if it answers with HTTP, whatever that says: upstream's own say 404 (REF §0.2).

    Args:
        path: of the plugin's socket, which is not trusted.
        call: ``Service.Method``.
        timeout: seconds until the header of the answer is there; its body is not waited for.

    Returns:
        Why it is not alive, or nothing.
    """
    try:
        async with Client(f"unix://{path}").exchange(call, b"{}", timeout=timeout):
            return ""
    except PluginFault as exc:
        return exc.reason
