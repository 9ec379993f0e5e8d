"""How one plugin is to be kept: restarts, probes, limits, confinement; what Docker has no word for (design D11).

An option has one spelling everywhere, that of the configuration: ``start-timeout``.

The daemon's configuration has one set of these for all plugins; each plugin may have some of its own, which win.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

import msgspec

from pluginsvc.errors import InvalidParameter

_LEAST_MEMORY = 6 << 20
"""As Docker: runc 1.1 itself takes 2.5 MiB while it starts a container, and fails where the limit is lower."""

_FIELD = re.compile(r"`\$\.([\w-]+)`")
_FORMS = {
    "restart": "always, on-failure[:MAX] or no",
    "probe": "auto, none, or a call such as Plugin.Activate",
    "seccomp": "the absolute path of a file, or nothing",
}
"""What is behind the patterns below, for people."""

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Restart = Annotated[str, msgspec.Meta(pattern=r"^(no|always|on-failure(:[1-9][0-9]{0,5})?)\Z")]
Probe = Annotated[str, msgspec.Meta(pattern=r"^(auto|none|[A-Za-z0-9_]{1,64}\.[A-Za-z0-9_]{1,64})\Z")]
File = Annotated[str, msgspec.Meta(pattern=r"^(|/[^\0\n]*)\Z", max_length=4096)]


class InvalidOptions(InvalidParameter):
    """Options cannot be what was asked for; nothing was changed."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"invalid options: {problem}")


class Options(msgspec.Struct, frozen=True, kw_only=True, rename="kebab", forbid_unknown_fields=True):
    """All options, each with a value.

    Attributes:
        restart: ``always``, ``on-failure[:MAX]`` (exit code other than 0, at most MAX times in a row) or ``no``.
        burst: failures in a row from which on the plugin counts as in a crash loop; it is still tried, at the longest
            delay.
        start_timeout: seconds to wait for the socket where the request to enable does not say; 0: 12.5, as Docker.
        probe: what to ask a running plugin: ``auto`` (a harmless call of its interface type, nothing for types we do
            not know), ``none``, or a call such as ``Plugin.Activate``.
        probe_interval: seconds between two probes.
        probe_timeout: seconds an answer may take.
        probe_failures: unanswered probes in a row that make a plugin unhealthy.
        memory: most bytes of memory, swap included where the kernel counts it; 0: no limit.
        pids: most processes and threads; 0: no limit.
        cpu_weight: share of the CPU beside others, 1 to 10000, where 100 is everybody's; 0: as everybody.
        seccomp: file on the host with a seccomp profile in the runtime's own format; empty: none.
        no_new_privileges: no setuid program or file capability gives the plugin more than it started with.
        read_only: the plugin cannot write to its rootfs, ``/tmp`` included.
        config_user: run as the user that the plugin's config names, instead of root; of the capabilities it then has
            only those that its config asks for.
    """

    restart: Restart = "always"
    burst: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 10
    start_timeout: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 0.0
    probe: Probe = "auto"
    probe_interval: Seconds = 10.0
    probe_timeout: Seconds = 5.0
    probe_failures: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 3
    memory: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0
    pids: Annotated[int, msgspec.Meta(ge=0, le=1 << 22)] = 0
    cpu_weight: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 0
    seccomp: File = ""
    no_new_privileges: bool = False
    read_only: bool = False
    config_user: bool = False

    def __post_init__(self) -> None:
        """Refuse what no type can tell.

        Raises:
            ValueError: memory in which nothing could start.
        """
        if 0 < self.memory < _LEAST_MEMORY:
            raise ValueError(
                f"memory: {self.memory} bytes are too few to start anything; 0, or {_LEAST_MEMORY} and more"
            )

    def with_own(self, own: dict[str, Any]) -> Self:
        """Return these options with those of one plugin laid over them.

        Args:
            own: name → value, as ``changed`` returns it.
        """
        return msgspec.convert(msgspec.to_builtins(self) | own, type(self))


def changed(own: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a plugin's own options after a change.

    Args:
        own: those it has.
        changes: name → new value; ``None`` takes the plugin's own value away, so that the daemon's counts.

    Raises:
        InvalidOptions: an unknown name, or a value that it cannot have.
    """
    merged = {name: value for name, value in (own | changes).items() if value is not None}
    names = Options.__struct_encode_fields__
    if unknown := sorted(set(changes).difference(names)):
        raise InvalidOptions(f"{unknown[0]!r} is none of {', '.join(names)}")
    try:
        checked = msgspec.convert(merged, Options)
    except msgspec.ValidationError as exc:
        found = _FIELD.search(str(exc))
        if found and found[1] in _FORMS and isinstance(merged[found[1]], str):
            raise InvalidOptions(f"{found[1]} cannot be {merged[found[1]]!r}, but {_FORMS[found[1]]}") from exc
        raise InvalidOptions(_FIELD.sub(r"\1", str(exc))) from exc
    everything = msgspec.to_builtins(checked)
    return {name: everything[name] for name in merged}
