"""Files that say where legacy plugins are (REF §5). All functions block: call them in a thread."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from pluginsvc.directory.address import InvalidAddress, TLSConfig, parse, resolve
from pluginsvc.errors import Internal
from pluginsvc.fsutil import read_regular
from pluginsvc.model.config import fold_keys

MAX_FILE: Final = 64 * 1024
"""Most bytes of a ``.spec`` or ``.json`` file."""

_ENDINGS: Final = (".sock", ".spec", ".json")
_NAME_MAX: Final = 255
MAX_FOLDERS: Final = 1000
"""Most sub-directories that are watched."""
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
        stamps: of the file, of the socket that is there and of the files of ``tls``, so that one put in the place of
            any is told from it.
    """

    name: str
    file: Path
    address: str
    socket: Path | None
    tls: TLSConfig | None
    stamps: tuple[tuple[int, ...], ...]

    @property
    def run(self) -> str:
        """What tells starts apart, also for daemons after us: the socket, which a process binds when it starts.

        A process that listens at no socket of a file system may start again unseen, unless it writes its file anew.
        """
        file, socket, *_ = self.stamps
        return "-".join(map(str, socket or file))


class Plan(NamedTuple):
    """What is to be watched.

    Attributes:
        places: directories, with the names in them that matter; ``None``: all.
        left_out: sub-directories beyond ``MAX_FOLDERS``.
    """

    places: dict[Path, frozenset[str] | None]
    left_out: int


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
        sockets: RUN/plugins; what leads there, or by there to anywhere, is ours and is passed over.
        name: has to be ``plausible``.

    Raises:
        BadPluginFile: the first file that there is cannot be used; or there is none, and of some place that cannot be
            told, which hides none that is elsewhere.
    """
    ours = _ours(sockets)
    unseen: BadPluginFile | None = None
    for directory in directories:
        for ending in _ENDINGS:
            for file in (directory / f"{name}{ending}", directory / name / f"{name}{ending}"):
                try:
                    end = resolve(str(file), ours)
                    status = os.lstat(end) if end is not None else None
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError as exc:
                    unseen = unseen or BadPluginFile(file, exc.strerror or str(exc))
                    continue
                if end is not None and status is not None and (found := _read(name, file, end, status, ours)):
                    return found
    if unseen is not None:
        raise unseen
    return None


def _ours(sockets: Path) -> frozenset[str]:
    """Return RUN/plugins as it is given and as it is."""
    return frozenset({str(sockets), os.path.realpath(sockets)})


def scan(directories: Sequence[Path], sockets: Path) -> Listing:
    """Return every plugin there is, each name once, by name.

    A directory that cannot be read is a trouble and hides no other one's plugins; Docker finds none at all then.
    """
    troubles: set[str] = set()
    names: set[str] = set()
    ours = _ours(sockets)
    for directory in directories:
        try:
            entries = os.listdir(end) if (end := resolve(str(directory), ours)) else []
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


def places(directories: Iterable[Path], sockets: Path, found: Iterable[Found]) -> Plan:
    """Return the directories in which a change matters.

    For a directory that is missing that is the nearest one above it; of those that are there also the sub-directories,
    and those of the sockets that files lead to.
    """
    plan: dict[Path, frozenset[str] | None] = {}
    ours = _ours(sockets)
    folders: list[Path] = []
    for directory in directories:
        there = directory
        while not _leads_to_directory(there, ours) and there != there.parent:
            there = there.parent
        if there == directory:
            plan[there] = None
            with suppress(OSError), os.scandir(directory) as entries:
                for entry in entries:
                    # of a link it is not asked where it leads before we know that it leads to nothing of ours
                    is_one = entry.is_dir(follow_symlinks=False)
                    if is_one or (entry.is_symlink() and _leads_to_directory(directory / entry.name, ours)):
                        folders.append(directory / entry.name)
        else:
            _want(plan, there, directory.relative_to(there).parts[0])
    # always the same ones
    folders.sort()
    for folder in folders[:MAX_FOLDERS]:
        _want(plan, folder, *(f"{folder.name}{ending}" for ending in _ENDINGS))
    for socket in (one.socket for one in found if one.socket):
        _want(plan, socket.parent, socket.name)
    return Plan(plan, len(folders[MAX_FOLDERS:]))


def _leads_to_directory(path: Path, ours: Collection[str]) -> bool:
    # one that loops leads nowhere, and keeps us from no other
    with suppress(OSError):
        end = resolve(str(path), ours)
        return end is not None and stat.S_ISDIR(os.lstat(end).st_mode)
    return False


def _want(plan: dict[Path, frozenset[str] | None], directory: Path, *names: str) -> None:
    known = plan.get(directory, frozenset())
    if known is not None:
        plan[directory] = known.union(names)


def _read(name: str, file: Path, end: str, status: os.stat_result, ours: Collection[str]) -> Found | None:
    """Return what a file tells; ``None``: it is none of those that do, or leads to what is ours.

    Args:
        name: of the plugin.
        file: as it is told of.
        end: where that really is.
        status: of that.
        ours: see ``resolve``.

    Raises:
        BadPluginFile: it tells nothing of use.
    """
    try:
        if file.suffix == ".sock":
            is_one = stat.S_ISSOCK(status.st_mode)
            return _found(name, file, f"unix://{end}", _UNVERIFIED, (), ours) if is_one else None
        raw, status = read_regular(end, MAX_FILE)
        if file.suffix == ".spec":
            return _found(name, file, raw.decode().strip(), _UNVERIFIED, _stamp(status), ours)
        spec = msgspec.convert(fold_keys(msgspec.json.decode(raw), _Json), _Json)
        return _found(name, file, spec.addr, spec.tls_config, _stamp(status), ours)
    except FileNotFoundError:
        # gone meanwhile
        return None
    except OSError as exc:
        raise BadPluginFile(file, exc.strerror or str(exc)) from exc
    except InvalidAddress as exc:
        raise BadPluginFile(file, str(exc)) from exc
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise BadPluginFile(file, f"its content is not what its ending says: {exc}") from exc


def _found(
    name: str, file: Path, address: str, tls: TLSConfig | None, stamp: tuple[int, ...], ours: Collection[str]
) -> Found | None:
    socket, url = parse(address)
    there: tuple[int, ...] = ()
    if socket is not None:
        if (end := resolve(str(socket), ours)) is None:
            return None
        address = f"unix://{end}"
        socket, _ = parse(address)
        there = _stamp_of(end)
    if not address.isprintable():
        # it is shown to people and programs
        raise InvalidAddress(address)
    files = filter(None, (tls.ca_file, tls.cert_file, tls.key_file)) if tls and url.scheme == "https" else ()
    return Found(name, file, address, socket, tls, (stamp, there, *map(_stamp_of, files)))


def _stamp_of(path: str) -> tuple[int, ...]:
    # a name with a NUL is a ValueError
    with suppress(OSError, ValueError):
        return _stamp(os.stat(path))
    return ()


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
