"""Files that say where legacy plugins are (REF §5). All functions block: call them in a thread."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from pluginsvc.directory.address import InvalidAddress, TLSConfig, parse
from pluginsvc.errors import Internal
from pluginsvc.model.config import fold_keys

MAX_FILE: Final = 64 * 1024
"""Most bytes of a ``.spec`` or ``.json`` file."""

_ENDINGS: Final = (".sock", ".spec", ".json")
_NAME_MAX: Final = 255
_UNVERIFIED: Final = TLSConfig(insecure_skip_verify=True)


class BadPluginFile(Internal):
    """A file is to say where a legacy plugin is, and does not."""

    def __init__(self, file: Path, reason: str) -> None:
        self.file, self.reason = file, reason
        super().__init__(f"plugin file {file} is of no use: {reason}; mend it, or delete it")


@dataclass(frozen=True, slots=True)
class Found:
    """A plugin of which a file tells; two are equal as long as nothing has changed.

    Attributes:
        name: from the file's name.
        file: that tells of it.
        address: where it is called.
        socket: if that is a socket: its real path, for who connects follows no link at the socket itself.
        tls: how, where its address is ``https``.
        stamps: of the file and of the socket that is there, so that one put in its place is told from it.
    """

    name: str
    file: Path
    address: str
    socket: Path | None
    tls: TLSConfig | None
    stamps: tuple[tuple[int, ...], ...]


class Listing(NamedTuple):
    """All that was found.

    Attributes:
        plugins: one for each name.
        troubles: what could not be read, and is left out.
    """

    plugins: list[Found]
    troubles: frozenset[str]


class _Json(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    addr: str = ""
    tls_config: TLSConfig | None = msgspec.field(default=None, name="TLSConfig")


def plausible(name: str) -> bool:
    """Tell whether a plugin may have this name: it is one that a file has, and stays in its directory (REF 7.43)."""
    confined = "/" not in name and name not in {"", ".", ".."}
    return confined and name.isprintable() and len(name.encode()) + len(_ENDINGS[0]) <= _NAME_MAX


def locate(directories: Iterable[Path], sockets: Path, name: str) -> Found | None:
    """Return the plugin of a name: of the first directory that has it, a socket before files, if there is one.

    Args:
        directories: to look at, in order.
        sockets: RUN/plugins; what leads there is ours, and is passed over.
        name: has to be ``plausible``.

    Raises:
        BadPluginFile: the first file that there is cannot be used.
    """
    ours = os.path.realpath(sockets)
    for directory in directories:
        for ending in _ENDINGS:
            for file in (directory / f"{name}{ending}", directory / name / f"{name}{ending}"):
                try:
                    found = _read(name, file)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError as exc:
                    raise BadPluginFile(file, exc.strerror or str(exc)) from exc
                if found is not None and not (found.socket and found.socket.is_relative_to(ours)):
                    return found
    return None


def scan(directories: Sequence[Path], sockets: Path) -> Listing:
    """Return every plugin there is, each name once, by name.

    A directory that cannot be read is a trouble and hides no other one's plugins; Docker finds none at all then.
    """
    troubles: set[str] = set()
    names: set[str] = set()
    for directory in directories:
        try:
            entries = os.listdir(directory)
        except FileNotFoundError:
            continue
        except OSError as exc:
            troubles.add(f"{directory} cannot be read: {exc.strerror}; no legacy plugins are found there")
            continue
        # a file's name without its ending, or what may be a sub-directory; whether there is a plugin is seen next
        names.update(entry[: -len(ending)] for entry in entries for ending in _ENDINGS if entry.endswith(ending))
        names.update(entries)
    plugins: list[Found] = []
    for name in sorted(filter(plausible, names)):
        try:
            found = locate(directories, sockets, name)
        except BadPluginFile as exc:
            troubles.add(str(exc))
            continue
        if found is not None:
            plugins.append(found)
    return Listing(plugins, frozenset(troubles))


def places(directories: Iterable[Path], found: Iterable[Found]) -> dict[Path, frozenset[str] | None]:
    """Return the directories in which a change matters, with the names that do; ``None``: all.

    For a directory that is missing that is the nearest one above it; of those that are there also the sub-directories,
    and those of the sockets that files lead to.
    """
    plan: dict[Path, frozenset[str] | None] = {}
    for directory in directories:
        there = directory
        while not there.is_dir() and there != there.parent:
            there = there.parent
        if there == directory:
            plan[there] = None
            with suppress(OSError), os.scandir(directory) as entries:
                for entry in entries:
                    if entry.is_dir():
                        _want(plan, directory / entry.name, *(f"{entry.name}{ending}" for ending in _ENDINGS))
        else:
            _want(plan, there, directory.relative_to(there).parts[0])
    for socket in (one.socket for one in found if one.socket):
        _want(plan, socket.parent, socket.name)
    return plan


def _want(plan: dict[Path, frozenset[str] | None], directory: Path, *names: str) -> None:
    known = plan.get(directory, frozenset())
    if known is not None:
        plan[directory] = known.union(names)


def _read(name: str, file: Path) -> Found | None:
    """Return what a file tells; ``None``: it is none of those that do.

    Raises:
        OSError: it cannot be read, or is not there.
        BadPluginFile: it tells nothing of use.
    """
    status = os.stat(file)
    try:
        if file.suffix == ".sock":
            is_one = stat.S_ISSOCK(status.st_mode)
            return _found(name, file, f"unix://{os.path.abspath(file)}", _UNVERIFIED, ()) if is_one else None
        raw, stamp = _content(file, status)
        if file.suffix == ".spec":
            return _found(name, file, raw.decode().strip(), _UNVERIFIED, stamp)
        spec = msgspec.convert(fold_keys(msgspec.json.decode(raw), _Json), _Json)
        return _found(name, file, spec.addr, spec.tls_config, stamp)
    except InvalidAddress as exc:
        raise BadPluginFile(file, str(exc)) from exc
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise BadPluginFile(file, f"its content is not what its ending says: {exc}") from exc


def _content(file: Path, status: os.stat_result) -> tuple[bytes, tuple[int, ...]]:
    if not stat.S_ISREG(status.st_mode):
        raise BadPluginFile(file, "it is no regular file")

    def opener(path: str, flags: int) -> int:
        # it may be a pipe by now, into which nobody writes
        return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)

    with open(file, "rb", opener=opener) as opened:
        raw = opened.read(MAX_FILE + 1) or b""
        stamp = _stamp(os.fstat(opened.fileno()))
    if len(raw) > MAX_FILE:
        raise BadPluginFile(file, f"it is larger than {MAX_FILE} bytes")
    return raw, stamp


def _found(name: str, file: Path, address: str, tls: TLSConfig | None, stamp: tuple[int, ...]) -> Found:
    socket, _ = parse(address)
    there: tuple[int, ...] = ()
    if socket is not None:
        address = f"unix://{os.path.realpath(socket)}"
        socket, _ = parse(address)
        with suppress(OSError):
            there = _stamp(os.stat(socket or ""))
    if not address.isprintable():
        # it is shown to people and programs
        raise InvalidAddress(address)
    return Found(name, file, address, socket, tls, (stamp, there))


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
