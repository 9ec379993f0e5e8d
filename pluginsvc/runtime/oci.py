"""The OCI runtime as a command: runc, crun or what speaks like them (runtime-spec, "Operations")."""

from __future__ import annotations

from pathlib import Path

from anyio import to_thread

from pluginsvc.errors import Internal
from pluginsvc.runtime.command import CommandFailed, run
from pluginsvc.runtime.logs import clean

_MAX_OUTPUT = 4096


class RuntimeFailed(Internal):
    """The runtime, its monitor or the machine did not do what starting or clearing a plugin takes."""

    def __init__(self, plugin: str, step: str, reason: str) -> None:
        self.plugin, self.step, self.reason = plugin, step, reason
        super().__init__(f"cannot {step} plugin {plugin}: {reason}")


def last_lines(log: Path) -> str:
    """Return the end of a runtime's log file, or nothing. Blocks."""
    try:
        data = log.read_bytes()
    except OSError:
        return ""
    return "; ".join(clean(line) for line in data[-_MAX_OUTPUT:].splitlines()[-3:])


class Runtime:
    """Runs the runtime's operations.

    Args:
        name: ``runc``, ``crun`` or a path.
        root: directory for its state, ours alone, so that nothing else of that runtime is ever touched.
    """

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.root = root

    def options(self, log: Path) -> list[str]:
        """Return the options that stand before every operation."""
        return [f"--root={self.root}", f"--log={log}"]

    def knows(self, container_id: str) -> bool:
        """Tell whether there is state of a container. Blocks."""
        return (self.root / container_id).exists()

    async def start(self, container_id: str, *, log: Path, within: float) -> None:
        """Let a created container run.

        Raises:
            CommandFailed: with what the runtime says.
        """
        await self._run("start", container_id, log=log, within=within)

    async def delete(self, container_id: str, *, log: Path, within: float) -> None:
        """Kill what lives in a container, and forget it.

        Raises:
            CommandFailed: with what the runtime says.
        """
        await self._run("delete", "--force", container_id, log=log, within=within)

    async def _run(self, *words: str, log: Path, within: float) -> None:
        try:
            ended = await run([self.name, *self.options(log), *words], within=within)
        except TimeoutError as exc:
            raise CommandFailed(f"{self.name} {words[0]} did not end within {within:g} s and was killed") from exc
        except OSError as exc:
            raise CommandFailed(f"{self.name} could not be run: {exc.strerror}") from exc
        if ended.code != 0:
            said = clean(ended.said) or await to_thread.run_sync(last_lines, log)
            raise CommandFailed(f"{self.name} {words[0]}: {said or f'exit code {ended.code}'}")
