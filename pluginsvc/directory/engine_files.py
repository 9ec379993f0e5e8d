"""Files that tell engines of published plugins: Podman's drop-in, and ``.spec`` for those that look elsewhere (REF §5).

Podman knows no directory of plugins, only what its configuration names (containers.conf(5), ``volume_plugins``).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from pluginsvc.directory.links import Trouble, open_directory, target_of
from pluginsvc.directory.published import Link
from pluginsvc.fsutil import atomic_write, sync_dir

_HEAD = """\
 do not edit: whenever a volume plugin comes or goes this file does as well.
[engine.volume_plugins]
"""
_ENDING = "\n \n"
"""Nobody ends a file so by chance, and whoever reads one takes white space off (REF §5)."""
# never longer than a name in the directory, and no engine takes it for a plugin
_UNFINISHED = ".pluginsvc"


def podman_conf(path: Path, sockets: Path, links: Iterable[Link]) -> Iterator[Trouble]:
    """Keep a file of Podman's configuration that names the volume plugins; with none to name, there is none. Blocks.

    Args:
        path: absolute; only a regular file that begins with our mark is ever replaced or deleted.
        sockets: RUN/plugins, absolute; it is in the mark, so that the file of another daemon is not ours.
        links: what is published.

    Yields:
        What could not be done.
    """
    mark = f"# Written by pluginsvc for {_toml(str(sockets))};".encode(errors="backslashreplace")
    lines = [f"{_toml(link.alias)} = {_toml(link.path)}\n" for link in sorted(links) if link.volumes]
    text = mark + "".join([_HEAD, *lines]).encode() if lines else None
    try:
        _sweep(path)
        present = _content(path, max(len(text or b""), len(mark)) + 1)
        if present == text:
            return
        if present is not None and not present.startswith(mark):
            if text:
                why = "what is there is not ours, move it away, or set another podman-conf"
                yield Trouble(str(path), f"no plugin is named to Podman: {why}")
        elif text is None:
            path.unlink()
            sync_dir(path.parent)
        elif (folder := open_directory(path.parent, make=True)) is not None:
            os.close(folder)
            atomic_write(path, text, 0o644)
    except OSError as exc:
        yield Trouble(str(path), f"it does not name Podman's plugins: {exc.strerror}; mend that, or set no podman-conf")


def spec_files(directory: Path, publish_dir: Path, sockets: Path, links: Iterable[Link]) -> Iterator[Trouble]:
    """Keep a file ``ALIAS.spec`` with the address of each published plugin. Blocks; one call at a time.

    Args:
        directory: of these files; made when the first is put. A regular file that has, to the byte, what we would have
            written for its name is ours, and nothing else is touched. One whose link leads elsewhere than to our
            sockets, or is no link, is that of another daemon with the same directories.
        publish_dir: of the links.
        sockets: RUN/plugins, absolute.
        links: what is published.

    Yields:
        What could not be done.
    """
    wanted = {f"{link.alias}.spec" for link in links}
    try:
        folder = open_directory(directory, make=bool(wanted))
        if folder is None:
            return
        try:
            # of a daemon that was killed
            _drop_unfinished(folder)
            for name in sorted(wanted | {name for name in os.listdir(folder) if name.endswith(".spec")}):
                link = f"{publish_dir}/{name.removesuffix('.spec')}.sock"
                if why := _keep(folder, name, link, str(sockets), wanted=name in wanted):
                    yield Trouble(f"{directory}/{name}", why)
        finally:
            os.close(folder)
    except OSError as exc:
        why = f"no plugin has a .spec there: {exc.strerror}; mend that, or set another spec-dir"
        yield Trouble(str(directory), why)


def _keep(folder: int, name: str, link: str, sockets: str, *, wanted: bool) -> str:
    """Put or delete one file; return why it is not as it should be, or nothing."""
    text = os.fsencode(f"unix://{link}{_ENDING}")
    taken = f"what is there is not ours, move it away; the plugin is at unix://{link}"
    try:
        present = _content(name, len(text) + 1, folder)
        if wanted and present is None:
            _put(folder, name, text)
        elif wanted and present != text:
            return taken
        elif present == text and not wanted and not _of_another(link, sockets):
            os.unlink(name, dir_fd=folder)
    except FileExistsError:
        return taken
    except OSError as exc:
        if not wanted:
            return f"it leads to no plugin any more, and cannot be deleted: {exc.strerror}; delete it"
        advice = "mend that, or install the plugin with another --alias"
        return f"there is no file for the plugin at unix://{link}: {exc.strerror}; {advice}"
    return ""


def _of_another(link: str, sockets: str) -> bool:
    """Tell whether there is something at the place of a link that is not ours."""
    target = target_of(link)
    return not target.startswith(f"{sockets}/") if target else os.path.lexists(link)


def _put(folder: int, name: str, data: bytes) -> None:
    """Make a file, whole from its first moment, where nothing is."""
    fd = os.open(_UNFINISHED, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=folder)
    try:
        # our umask lets nobody in
        os.fchmod(fd, 0o644)
        os.write(fd, data)
        os.fsync(fd)
        # by its number: the name may by now be that of another daemon's file
        os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(fd)
        _drop_unfinished(folder)
    os.fsync(folder)


def _drop_unfinished(folder: int) -> None:
    # whoever cannot write there is told of the file that he wanted to put
    with suppress(OSError):
        os.unlink(_UNFINISHED, dir_fd=folder)


def _sweep(path: Path) -> None:
    """Delete what a daemon that was killed has left of a file that it was about to replace; see ``atomic_write``."""
    with suppress(OSError):
        for name in os.listdir(path.parent):
            found = re.fullmatch(rf"\.{re.escape(path.name)}\.([0-9]+)\.[0-9a-f]{{8}}", name)
            # we are not at it now; another that lives may be
            if found is not None and (int(found[1]) == os.getpid() or not os.path.exists(f"/proc/{found[1]}")):
                (path.parent / name).unlink()


def _content(path: str | Path, size: int, folder: int | None = None) -> bytes | None:
    """Return up to ``size`` bytes of a regular file; ``None`` where there is nothing, no bytes of anything else."""
    try:
        if not stat.S_ISREG(os.stat(path, dir_fd=folder, follow_symlinks=False).st_mode):
            return b""
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return None
    try:
        return os.read(fd, size)
    finally:
        os.close(fd)


def _toml(text: str) -> str:
    """Return a basic string of TOML."""
    return '"' + re.sub(r'["\\\x00-\x1f\x7f]', lambda found: f"\\u{ord(found[0]):04x}", text) + '"'
