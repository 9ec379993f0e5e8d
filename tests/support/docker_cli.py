"""Run the real docker CLI, each against one daemon and with a configuration folder of its own."""

import base64
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from anyio import to_thread

from tests.support import parts


class CLIFailedError(AssertionError):
    """A command of the CLI did not end with 0; the message has its whole output."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.done = done
        super().__init__(f"{done.args!r} ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def docker_clis() -> list[Path]:
    """Return every docker CLI there is: the unpacked one (20.10 on Debian 12), then the machine's own if another."""
    found = [path for path in (parts.unpacked("docker"),) if path]
    if there := shutil.which("docker"):
        found.append(Path(there))
    if not found:
        raise parts.MissingPartError("docker")
    return found


@dataclass(frozen=True)
class DockerCLI:
    """One docker CLI.

    Attributes:
        path: the program.
        host: the daemon, `unix:///…` or `tcp://…`.
        config: its configuration folder (DOCKER_CONFIG), never the user's own.

    """

    path: Path
    host: str
    config: Path

    def run(
        self, *args: str, check: bool = False, answer: str = "", timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run `docker ARGS…` and return its outcome.

        Args:
            args: the words after `docker`.
            check: raise `CLIFailedError` when it does not end with 0.
            answer: what the user types; by default end of file.
            timeout: seconds until `subprocess.TimeoutExpired`; the CLI is then killed.

        """
        done = subprocess.run(
            [self.path, *args],
            input=answer,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env=parts.env() | {"DOCKER_CONFIG": str(self.config), "DOCKER_HOST": self.host},
        )
        if check and done.returncode:
            raise CLIFailedError(done)
        return done

    async def run_async(
        self,
        *args: str,
        check: bool = False,
        answer: str = "",
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Do as `run` without blocking the loop, for daemons that live on it."""
        return await to_thread.run_sync(lambda: self.run(*args, check=check, answer=answer, timeout=timeout))

    def log_in(self, registry: str, user: str, password: str) -> None:
        """Store a login for `registry` as `docker login` would, without asking the registry."""
        self.config.mkdir(parents=True, exist_ok=True)
        file = self.config / "config.json"
        stored = json.loads(file.read_text()) if file.exists() else {}
        stored.setdefault("auths", {})[registry] = {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}
        file.write_text(json.dumps(stored))
