"""Seccomp profiles from the host's files."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pluginsvc.runtime.seccomp import read
from pluginsvc.runtime.spec import UnusableSettings

PROFILE = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_X86_64"],
    "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
}


def test_profile_is_handed_on_as_it_is(tmp_path: Path) -> None:
    """What the runtime understands, or will in a later version, reaches it unchanged; a link to it is followed."""
    profile = PROFILE | {"later": {"x": [1]}}
    (tmp_path / "profile").write_text(json.dumps(profile))
    (tmp_path / "link").symlink_to("profile")
    assert read("p", tmp_path / "link") == profile


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (PROFILE | {"archMap": []}, "Docker's format"),
        (PROFILE | {"syscalls": [{"names": ["mount"], "includes": {"caps": ["CAP_SYS_ADMIN"]}}]}, "Docker's format"),
        (PROFILE | {"syscalls": [7, {"names": ["mount"], "excludes": {}}]}, "Docker's format"),
        ({}, "has no defaultAction"),
        ({"defaultAction": 1, "syscalls": 7}, "has no defaultAction"),
        ([PROFILE], "is not a JSON object"),
        (b"", "is not a JSON object"),
        (b'{"defaultAction": "\xff"}', "is not a JSON object"),
        (b'{"a":' + b"[" * 500_000, "is not a JSON object"),
        (b" " * (1 << 20) + b"{}", "larger than 1 MiB"),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path: Path, content: Any, problem: str) -> None:
    """What holds no profile of the runtime's format is refused with the file, the plugin and what to do."""
    path = tmp_path / "profile"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(UnusableSettings) as caught:
        read("probe:latest", path)
    for part in (problem, str(path), "`pluginctl update probe:latest --seccomp FILE`", "runtime-spec"):
        assert part in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A missing file, a directory, a device and a FIFO that nobody writes to are refused, at once."""
    os.mkfifo(tmp_path / "fifo")
    for path, problem in (
        (tmp_path / "none", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (tmp_path / "fifo", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
    ):
        with pytest.raises(UnusableSettings, match=problem):
            read("p", path)
