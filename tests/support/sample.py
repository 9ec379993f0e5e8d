"""Folders for `docker plugin create`, made from demo/sample-plugin."""

import contextlib
import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.support.parts import PROJECT

SOURCE = PROJECT / "demo" / "sample-plugin"


def sample_plugin_binary() -> Path:
    """Return the static sample program, compiled when its sources changed; it needs gcc and libc6-dev."""
    return _built() / "rootfs" / "sample-volume-plugin"


def build_sample_plugin(dest: Path, *, version: str = "1", **config: object) -> Path:
    """Make a plugin folder and return it: `dest/config.json` and `dest/rootfs/`.

    Args:
        dest: the folder to make.
        version: what the plugin says it is; it changes the config and so its digest, and no layer.
        config: keys of config.json to replace whole, by their names there (`entrypoint=[…]`, `linux={…}`);
            None removes a key.

    """
    shutil.copytree(_built(), dest, symlinks=True)
    file = dest / "config.json"
    found = json.loads(file.read_text())
    for variable in found["env"]:
        if variable["name"] == "VERSION":
            variable["value"] = version
    found |= config
    file.write_text(json.dumps({key: value for key, value in found.items() if value is not None}, indent=2) + "\n")
    return dest


def _built() -> Path:
    """Return the built folder, named by what it was built from, so that two test runs at once cannot disturb it."""
    key = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(SOURCE.iterdir()))).hexdigest()[:16]
    cache = PROJECT / ".cache"
    built = cache / f"sample-plugin-{key}"
    if built.exists():
        return built
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="sample-plugin-") as scratch:
        new = Path(scratch) / "plugin"
        done = subprocess.run([SOURCE / "build.sh", new, "1"], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"build.sh failed:\n{done.stdout}{done.stderr}"
        with contextlib.suppress(FileExistsError):  # another run was quicker, with the same outcome
            new.rename(built)
    return built
