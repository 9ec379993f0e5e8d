"""Symbolic links by which engines find what is ours, kept as wished in directories that others use as well."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


class Trouble(NamedTuple):
    """What is not as it should be.

    Attributes:
        path: of the link or the directory.
        why: and what to do next.
    """

    path: str
    why: str


class Claim(NamedTuple):
    """A link that is wished.

    Attributes:
        name: of the link.
        target: where it leads; no two claims have the same.
        plugin: whose it is.
        put: whether it is put where it is not; else one that is there stays, and that is all.
    """

    name: str
    target: str
    plugin: str
    put: bool = True


def keep(
    folder: int, claims: Sequence[Claim], *, ours: re.Pattern[str], suffix: str = "", advice: str
) -> Iterator[tuple[str, str]]:
    """Make our links in an open directory those that are claimed. Blocks; one call at a time.

    Of several claims to one name that one has it whose link is there, else the first of them.

    Args:
        folder: number of the directory.
        claims: the links that are wished.
        ours: what all of the target of a link matches that we have put; nothing else is touched.
        suffix: what the names of our links end with.
        advice: what to do where several claim one name.

    Yields:
        What could not be done: which name is not as it should be, and why.
    """
    held = _held(folder, ours, suffix)
    chosen: dict[str, Claim] = {}
    for claim in claims:
        if held.get(claim.name) == claim.target:
            chosen[claim.name] = claim
        else:
            chosen.setdefault(claim.name, claim)
    for name, target in held.items():
        # looked at once more: it may have been replaced by what is not ours
        if (name not in chosen or chosen[name].target != target) and target_of(name, folder) == target:
            try:
                os.unlink(name, dir_fd=folder)
            except OSError as exc:
                yield name, f"it leads to no plugin any more, and cannot be deleted: {exc.strerror}; delete it"
    for claim in claims:
        if not claim.put or held.get(claim.name) == claim.target:
            continue
        first = chosen[claim.name]
        reason = _put(folder, claim) if first is claim else f"{first.plugin} has that name; {advice}"
        if reason:
            yield claim.name, f"plugin {claim.plugin} has no link there: {reason}; it would lead to {claim.target}"


def _put(folder: int, claim: Claim) -> str:
    """Put a link where nothing is; return why that cannot be, or nothing."""
    try:
        os.symlink(claim.target, claim.name, dir_fd=folder)
    except FileExistsError:
        return "what is there is not ours, move it away"
    except OSError as exc:
        return f"{exc.strerror}, mend that"
    return ""


def _held(folder: int, ours: re.Pattern[str], suffix: str) -> dict[str, str]:
    """Return our links in a directory: name → where it leads."""
    with os.scandir(folder) as entries:
        # only links are looked at: to look at what is mounted may be to wait for a server that is gone
        names = [entry.name for entry in entries if entry.name.endswith(suffix) and entry.is_symlink()]
    targets = {name: target_of(name, folder) for name in names}
    return {name: target for name, target in targets.items() if ours.fullmatch(target)}


def target_of(path: str, folder: int | None = None) -> str:
    """Return where a link leads; nothing where there is none. Blocks.

    Args:
        path: of the link.
        folder: number of the directory that the path begins at.
    """
    try:
        return os.readlink(path, dir_fd=folder)
    except OSError:
        # no link, or gone
        return ""


def open_directory(directory: Path, *, make: bool) -> int | None:
    """Open a directory that is for engines; ``None`` where there is none and none is to be made. Blocks."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(directory, flags)
    except FileNotFoundError:
        if not make:
            return None
    for folder in reversed([directory, *directory.parents]):
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        # engines and people pass it; our umask lets nobody in
        folder.chmod(0o755)
    return os.open(directory, flags)
