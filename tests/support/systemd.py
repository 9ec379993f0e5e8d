"""The unpacked systemd for a root of its own: only there may it boot, on the machine's own root it empties /tmp."""

import shutil
from pathlib import Path

from tests.support import parts

_FOLDERS = ("usr/lib/systemd", f"usr/lib/{parts.TRIPLET}")
_PROGRAMS = ("systemctl", "journalctl", "systemd-analyze", "systemd-run", "systemd-tmpfiles", "systemd-notify")


def lay_into(upper: Path) -> None:
    """Copy what booting and asking systemd takes into `upper`, the upper folder of an overlay over `/`.

    The machine below may have no systemd at all. About 12 MB; `/lib/systemd/systemd` is then there.
    """
    if not (parts.PARTS / _FOLDERS[0] / "systemd").exists():
        raise parts.MissingPartError("systemd")
    for folder in _FOLDERS:
        shutil.copytree(parts.PARTS / folder, upper / folder, symlinks=True, dirs_exist_ok=True)
    (upper / "usr/bin").mkdir(parents=True, exist_ok=True)
    for name in _PROGRAMS:
        shutil.copy2(parts.PARTS / "usr/bin" / name, upper / "usr/bin" / name)
