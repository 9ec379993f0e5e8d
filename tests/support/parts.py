"""Where programs are: those `make setup` unpacked into `.cache/parts` (never installed), or those of the machine."""

import os
import platform
import shutil
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
PARTS = PROJECT / ".cache" / "parts"

_BIN = ("usr/bin", "usr/sbin", "usr/lib/systemd", "usr/lib/docker")
TRIPLET = f"{platform.machine()}-linux-gnu"
_LIB = (f"usr/lib/{TRIPLET}", f"usr/lib/{TRIPLET}/systemd")


class MissingPartError(AssertionError):
    """A program the tests need is neither unpacked nor installed."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"{name} is not there: neither in {PARTS} nor on PATH; run `make setup`")


def unpacked(name: str) -> Path | None:
    """Return the unpacked program of that name, or None."""
    candidates = (PARTS / folder / name for folder in _BIN)
    return next((path for path in candidates if os.access(path, os.X_OK)), None)


def find(name: str) -> Path:
    """Return the unpacked program, else the machine's own; raise `MissingPartError` when there is none."""
    if path := unpacked(name):
        return path
    if there := shutil.which(name):
        return Path(there)
    raise MissingPartError(name)


def env() -> dict[str, str]:
    """Return this process's environment, changed so that unpacked programs find each other and their libraries."""
    found = dict(os.environ)
    path = [str(PARTS / folder) for folder in _BIN]
    found["PATH"] = os.pathsep.join([*path, found.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    found["LD_LIBRARY_PATH"] = os.pathsep.join(str(PARTS / folder) for folder in _LIB)
    return found
