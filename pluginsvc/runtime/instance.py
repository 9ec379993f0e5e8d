"""A plugin that runs, or has run: waiting for its socket and its end, and stopping it (REF 3.6)."""

from __future__ import annotations

import signal

import anyio
import msgspec
import structlog
from anyio import to_thread

from pluginsvc.errors import Internal
from pluginsvc.runtime import cgroup, logs
from pluginsvc.runtime.bundle import Place, Record
from pluginsvc.runtime.readiness import SocketWatch
from pluginsvc.runtime.spec import SOCKETS_INSIDE, cgroup_name
from pluginsvc.watches import Watches

_log = structlog.get_logger()
_UNKNOWN = 255
"""Exit code where nobody is left to tell: the monitor was killed."""


class Exit(msgspec.Struct, frozen=True):
    """How a plugin ended.

    Attributes:
        code: its exit code, or 128 and the signal, as in a shell.
        signal: what killed it, if anything did.
        oom: whether the kernel ran out of memory for it, and killed it or any of its children.
    """

    code: int
    signal: int | None
    oom: bool


class PluginDied(Internal):
    """A plugin ended before its socket accepted a connection."""

    def __init__(self, plugin: str, status: Exit, output: list[str]) -> None:
        self.plugin, self.exit, self.output = plugin, status, output
        how = f"was killed by signal {status.signal}" if status.signal else f"exited with code {status.code}"
        why = " after the kernel ran out of memory for it" if status.oom else ""
        super().__init__(f"plugin {plugin} {how}{why} before its socket accepted a connection{_last(output)}")


class StartTimeout(Internal):
    """A plugin runs, but its socket accepted no connection in time."""

    def __init__(self, plugin: str, socket: str, seconds: float, trouble: str, output: list[str]) -> None:
        self.plugin, self.socket, self.seconds, self.output = plugin, socket, seconds, output
        super().__init__(
            f"plugin {plugin} did not become ready within {seconds:g} s: "
            f"dial unix {SOCKETS_INSIDE}/{socket}: connect: {trouble.lower()}{_last(output)}"
        )


async def _cut_short(hurry: anyio.Event, limit: anyio.CancelScope) -> None:
    await hurry.wait()
    limit.cancel()


def _last(output: list[str]) -> str:
    return "; its last output:\n" + "\n".join(output) if output else "; it printed nothing"


class Instance:
    """One start of a plugin; made by the executor.

    Attributes:
        plugin_id: 64 hex digits.
        container_id: unique to this start.
        pid: of its first process.
        started_ns: wall clock.
    """

    def __init__(self, place: Place, record: Record, watches: Watches) -> None:
        self.plugin_id = place.plugin_id
        self.container_id = record.container_id
        self.pid = record.container.pid
        self.started_ns = record.started_ns
        self._place, self._record, self._watches = place, record, watches
        self._lock = anyio.Lock()
        self._exit: Exit | None = None

    async def wait(self) -> Exit:
        """Return how it ended, once it has; any number of tasks may wait.

        The monitor writes the exit file and then ends, so its end is what is waited for, by a pidfd: should it be
        killed, there is no exit file to come. Then the plugin, with nobody to read its output, is killed as well.
        """
        if self._exit is None:
            await self._record.monitor.wait()
            # whoever is second must not look for a file that the first one's clean-up has deleted
            async with self._lock:
                if self._exit is None:
                    self._exit = await to_thread.run_sync(self._read_exit)
        return self._exit

    async def running(self) -> bool:
        """Tell whether it has not ended yet: then ``wait`` would wait."""
        return not await to_thread.run_sync(self._record.monitor.ended)

    def _read_exit(self) -> Exit:
        code = self._place.exit_code(self.container_id)
        if code is None:
            _log.warning("plugin.monitor_lost", plugin=self.plugin_id, pid=self.pid)
            self._record.container.send(signal.SIGKILL)
            cgroup.signal_members(cgroup_name(self.container_id), signal.SIGKILL)
            code = _UNKNOWN
        killer = code - 128 if 128 < code <= 128 + signal.NSIG - 1 else None
        # on v1 the monitor may end before it has noticed what killed the plugin; the kernel's own count is never late
        oom = self._place.oom.exists() or cgroup.ran_out_of_memory(cgroup_name(self.container_id))
        return Exit(code, killer, oom)

    async def ready(self, socket: str, deadline: float) -> None:
        """Return once the plugin's socket accepts a connection. Nothing is sent to it.

        Args:
            socket: plain file name of the socket.
            deadline: seconds to wait.

        Raises:
            PluginDied: it ended; at once when it does.
            StartTimeout: it lives but does not listen.
        """
        status: Exit | None = None

        async def watch_process() -> None:
            nonlocal status
            status = await self.wait()
            group.cancel_scope.cancel()

        with self.watch(socket) as watch:
            with anyio.move_on_after(deadline) as limit:
                async with anyio.create_task_group() as group:
                    group.start_soon(watch_process)
                    await watch.accepted()
                    group.cancel_scope.cancel()
        if status is not None:
            raise PluginDied(self._record.name, status, await self.tail())
        if limit.cancelled_caught:
            raise StartTimeout(self._record.name, socket, deadline, watch.trouble, await self.tail())

    def watch(self, socket: str) -> SocketWatch:
        """Return a watch, to be entered, of the socket with this plain file name; one at a time."""
        return SocketWatch(self._watches, self._place.sockets, socket)

    async def stop(
        self, *, grace: float = 10.0, kill_wait: float = 10.0, hurry: anyio.Event | None = None
    ) -> Exit | None:
        """End the plugin with TERM, then with KILL, and whatever else is in its cgroup; ended already is fine.

        Args:
            grace: seconds between TERM and KILL.
            kill_wait: seconds that dying may take after KILL.
            hurry: set when KILL may not wait for the grace to pass.

        Returns:
            How it ended; ``None``, with a warning in the log, when it would not.
        """
        name = cgroup_name(self.container_id)
        status = self._exit
        if status is None:
            await to_thread.run_sync(self._record.container.send, signal.SIGTERM)
            with anyio.move_on_after(grace) as limit:
                async with anyio.create_task_group() as group:
                    if hurry is not None:
                        group.start_soon(_cut_short, hurry, limit)
                    status = await self.wait()
                    group.cancel_scope.cancel()
        if status is None:
            await to_thread.run_sync(self._record.container.send, signal.SIGKILL)
            await to_thread.run_sync(cgroup.signal_members, name, signal.SIGKILL)
            with anyio.move_on_after(kill_wait):
                status = await self.wait()
        gone = await to_thread.run_sync(lambda: cgroup.remove(name, within=kill_wait))
        if status is None or not gone:
            _log.warning("plugin.will_not_die", plugin=self.plugin_id, pid=self.pid)
        return status

    async def tail(self, lines: int = 20) -> list[str]:
        """Return the last lines that this start of the plugin has printed."""
        return await to_thread.run_sync(logs.tail, self._place.logs, self._record.log, lines)
