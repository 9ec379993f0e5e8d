"""Plugins for the executor's tests: one static program, a rootfs with nothing else in it, and a look at leftovers."""

import contextlib
import hashlib
import os
import secrets
import subprocess
import tempfile
from pathlib import Path

from pluginsvc.model.options import Options
from pluginsvc.model.plugin import Device, Interface, Linux, Mount, Network, PluginConfig, PluginSettings, User
from pluginsvc.runtime.executor import Executor, Launch
from tests.support.parts import PROJECT

SOURCE = Path(__file__).with_name("probe.c")
SOCKET = "p.sock"


def probe_binary() -> Path:
    """Return the compiled program; it needs gcc and libc6-dev."""
    cache = PROJECT / ".cache"
    binary = cache / f"probe-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}"
    if not binary.exists():
        cache.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            made = Path(scratch) / "probe"
            subprocess.run(["gcc", "-static", "-O2", "-Wall", "-Wextra", "-o", made, SOURCE], check=True, timeout=60)
            made.rename(binary)
    return binary


class Bench:
    """A RUN of its own, an executor on it, and plugins to start.

    Args:
        root: an empty directory.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run, self.logs = root / "run", root / "logs"
        self._ids: set[str] = set()

    def executor(self, *, runtime: str = "runc", conmon: str = "conmon", log_size: int = 1 << 20) -> Executor:
        """Return a new executor, as a daemon that was just started has one."""
        return Executor(runtime=runtime, conmon=conmon, run_root=self.run, log_root=self.logs, log_size=log_size)

    def launch(
        self,
        *words: str,
        plugin_id: str = "",
        mounts: list[Mount] | None = None,
        devices: list[Device] | None = None,
        env: list[str] | None = None,
        linux: Linux | None = None,
        network: str = "none",
        pid_host: bool = False,
        propagated: tuple[str, Path] | None = None,
        entrypoint: tuple[str, ...] = ("/probe",),
        user: User | None = None,
        options: Options | None = None,
    ) -> Launch:
        """Return a launch of the probe with `words`, in a rootfs of its own."""
        plugin_id = plugin_id or secrets.token_hex(32)
        self._ids.add(plugin_id)
        rootfs = self.root / "rootfs" / plugin_id
        if not rootfs.exists():
            rootfs.mkdir(parents=True)
            os.link(self._binary(), rootfs / "probe")
        return Launch(
            plugin_id=plugin_id,
            name="probe:latest",
            config=PluginConfig(
                entrypoint=list(entrypoint),
                interface=Interface(socket=SOCKET),
                network=Network(type=network),
                linux=linux or Linux(),
                pid_host=pid_host,
                propagated_mount=propagated[0] if propagated else "",
                user=user or User(),
            ),
            settings=PluginSettings(args=list(words), mounts=mounts or [], devices=devices or [], env=env or []),
            rootfs=rootfs,
            propagated=propagated[1] if propagated else None,
            options=options or Options(),
        )

    def _binary(self) -> Path:
        mine = self.root / "probe"
        if not mine.exists():
            mine.write_bytes(probe_binary().read_bytes())
            mine.chmod(0o755)
        return mine

    async def clear(self) -> None:
        """Clear away all plugins of this bench."""
        executor = self.executor()
        for plugin_id in await executor.instances():
            await executor.cleanup(plugin_id)

    def leftovers(self) -> list[str]:
        """Return whatever the plugins of this bench have left: files on RUN, processes, cgroups, mounts."""
        found = [str(path) for path in self.run.rglob("*") if path not in {self.run / name for name in _PLACES}]
        found += [str(path) for plugin_id in self._ids for path in cgroups(plugin_id)]
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                with contextlib.suppress(OSError):
                    facts = Path(f"/proc/{entry}/cmdline").read_text() + Path(f"/proc/{entry}/cgroup").read_text()
                    if ") Z " in Path(f"/proc/{entry}/stat").read_text():
                        continue  # dead, and init's to reap
                    if str(self.root) in facts or any(f"{plugin_id[:12]}-" in facts for plugin_id in self._ids):
                        found.append(f"process {entry}: {facts!r}")
        mounts = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
        return found + [f"mount {line}" for line in mounts if str(self.root) in line]


_PLACES = ("instances", "plugins", "runtime")


def cgroups(plugin_id: str) -> list[Path]:
    """Return the cgroups of a plugin's containers, in every hierarchy."""
    root = Path("/sys/fs/cgroup")
    pattern = f"pluginsvc-{plugin_id[:12]}-*"
    return [*root.glob(pattern), *root.glob(f"*/{pattern}")]
