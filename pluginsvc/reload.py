"""Reading the configuration again while the daemon runs (REF 7.56)."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import msgspec
import structlog
from anyio import to_thread

from pluginsvc import log, wiring
from pluginsvc.api.replies import log_crash
from pluginsvc.api.system import SystemFacts
from pluginsvc.config import RELOADABLE, Settings
from pluginsvc.directory.authz import Chain
from pluginsvc.errors import PluginsvcError
from pluginsvc.registry.client import Registry
from pluginsvc.systemd import Notifier

_log = structlog.get_logger()


class Reloads:
    """Takes over what may change, whenever it is asked to: one reload after another.

    Args:
        settings: as they are at the start.
        read: reads them again; blocks.
        notifier: is told of begin and end.

    Attributes:
        settings: as they are now.
        chain: those that guard the API, once there is one.
        ready: whether the daemon has called itself ready; before there is nothing to tell: a reload ends as a start.
    """

    def __init__(self, settings: Settings, read: Callable[[], Settings], notifier: Notifier) -> None:
        self._read, self._notifier = read, notifier
        self._wanted = anyio.Event()
        self.settings = settings
        self.chain: Chain | None = None
        self.ready = False

    def ask(self) -> None:
        """Have the configuration read again, soon; several that ask before that are one."""
        self._wanted.set()

    async def serve(self, registry: Registry, facts: SystemFacts, stop: anyio.Event) -> None:
        """Reload whenever that is asked for, until ``stop`` is set; then nothing is told any more."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._serve, registry, facts, stop)
            await stop.wait()
            group.cancel_scope.cancel()

    async def _serve(self, registry: Registry, facts: SystemFacts, stop: anyio.Event) -> None:
        while True:
            await self._wanted.wait()
            self._wanted = anyio.Event()
            if self.ready:
                self._notifier.reloading()
            await self._reload(registry, facts)
            if self.ready and not stop.is_set():
                self._notifier.ready("configuration read again")

    async def _reload(self, registry: Registry, facts: SystemFacts) -> None:
        """Apply what may change in a running daemon; a configuration that is wrong changes nothing."""
        try:
            fresh = await to_thread.run_sync(self._read)
            hosts = wiring.hosts(fresh)
            if self.chain is not None:
                await self.chain.use(wiring.guards(fresh))
        except PluginsvcError as exc:
            _log.error("daemon.reload_refused", error=str(exc))
            return
        except Exception as exc:  # noqa: BLE001 - whatever it is, the daemon goes on as it was
            await log_crash("daemon.reload_refused", exc)
            return
        before = self.settings
        changed = {field for field in Settings.__struct_fields__ if getattr(fresh, field) != getattr(before, field)}
        log.configure(level=fresh.log_level, style=before.log_format)
        registry.use(hosts)
        facts.insecure, facts.mirrors = fresh.insecure_registries, fresh.registry_mirrors
        facts.debug = fresh.log_level == "debug"
        facts.authorization = fresh.authorization.plugins
        _log.info("daemon.reloaded", changed=sorted(changed & RELOADABLE), needs_restart=sorted(changed - RELOADABLE))
        self.settings = msgspec.structs.replace(before, **{field: getattr(fresh, field) for field in RELOADABLE})
