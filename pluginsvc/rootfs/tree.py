"""Puts the entries of archives into a directory, never by a path: each step is relative to an open directory.

No component of a path is followed when it is a symbolic link. The child is locked into the tree as well; this holds
what is written to the place the archive names, that is, inside the tree too.

Part of the confined child: standard library, isal, zstd and errors only.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from typing import Final

from pluginsvc.rootfs.source import InvalidArchive, printable
from pluginsvc.rootfs.tar import BLOCK_DEVICE, CHAR, DIRECTORY, FIFO, FILE, LINK, SYMLINK, Entry
from pluginsvc.rootfs.walk import LIST, Walk, remove_directory

Read = Callable[[int], Iterable[memoryview]]

WHITEOUT: Final = b".wh."
OPAQUE: Final = b".wh..wh..opq"

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PARENT_MODE = 0o755
_SPECIAL = {CHAR: stat.S_IFCHR, BLOCK_DEVICE: stat.S_IFBLK, FIFO: stat.S_IFIFO}
_REFUSED_BY_FS = {
    errno.E2BIG,
    errno.EFBIG,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.EMLINK,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EOVERFLOW,
    errno.EPERM,
    errno.ERANGE,
}
"""What a file system answers when an entry asks for what cannot be; anything else is the machine's trouble."""


class Tree:
    """The directory that becomes a rootfs.

    Args:
        root: descriptor of an empty directory; it gets mode 0755 and owner 0:0 until an entry says otherwise.
    """

    def __init__(self, root: int) -> None:
        os.fchown(root, 0, 0)
        os.fchmod(root, _PARENT_MODE)
        self._root = root
        self._here = Walk(root)
        self._there = Walk(root)
        self._mtimes: dict[bytes, int] = {}
        self._seen: set[bytes] | None = None
        # a new file's group is that of its directory if that has the set-group-ID bit; then owners must be set
        self._inherits = False

    def begin_layer(self) -> None:
        """Start a layer: whiteouts remove what was there before, not what this layer brings (OCI layer.md)."""
        self._seen = {b""}

    def place(self, entry: Entry, read: Read) -> None:
        """Make what ``entry`` describes, in place of whatever had its name; directories merge.

        Args:
            entry: where, what, and with which attributes.
            read: gives the next bytes of its data.

        Raises:
            InvalidArchive: it cannot be made, by what it asks for.
            OSError: the machine's fault: ENOSPC, EDQUOT, EIO …
        """
        try:
            self._place(entry, read)
        except InvalidArchive as exc:
            raise InvalidArchive(exc.reason, entry=entry.name, offset=exc.offset or entry.offset) from exc
        except OSError as exc:
            if exc.errno in _REFUSED_BY_FS:
                reason = f"the file system refuses it: {exc.strerror}"
                raise InvalidArchive(reason, entry=entry.name, offset=entry.offset) from exc
            raise

    def _place(self, entry: Entry, read: Read) -> None:
        parent, _, name = entry.name.rpartition(b"/")
        if self._seen is not None:
            self._mark(entry.name)
        kind = entry.kind
        if not name:
            if kind != DIRECTORY:
                raise InvalidArchive("the root is not a directory")
            self._attributes(self._root, entry, existed=True)
            self._mtimes[b""] = entry.mtime_ns
            return
        where = self._here.to(parent, self._add_parent)
        assert where is not None
        if kind == FILE:
            self._file(where, name, entry, read)
        elif kind == DIRECTORY:
            self._directory(where, name, entry)
        elif kind == LINK:
            self._link(where, name, entry)
        else:
            if kind == SYMLINK:
                self._make(where, name, lambda: os.symlink(entry.link, name, dir_fd=where))
            else:
                mode, device = _SPECIAL[kind] | entry.mode, os.makedev(*entry.device)
                self._make(where, name, lambda: os.mknod(name, mode, device, dir_fd=where))
            if entry.uid or entry.gid or self._inherits:
                os.chown(name, entry.uid, entry.gid, dir_fd=where, follow_symlinks=False)
                if kind != SYMLINK and entry.mode & 0o7000:
                    os.chmod(name, entry.mode, dir_fd=where)
            os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=where, follow_symlinks=False)

    def _mark(self, path: bytes) -> None:
        """Note that this layer brings ``path``, and so the directories above it."""
        assert self._seen is not None
        while path not in self._seen:
            self._seen.add(path)
            path = path.rpartition(b"/")[0]

    def _make(self, where: int, name: bytes, make: Callable[[], None]) -> None:
        try:
            make()
        except FileExistsError:
            self._clear(where, name)
            make()

    def _add_parent(self, where: int, path: bytes) -> None:
        """Make a directory that the archive takes for granted."""
        name = path.rpartition(b"/")[2]
        os.mkdir(name, _PARENT_MODE, dir_fd=where)
        if self._inherits:
            os.chown(name, 0, 0, dir_fd=where)
            os.chmod(name, _PARENT_MODE, dir_fd=where)
        self._mtimes.pop(path, None)

    def _file(self, where: int, name: bytes, entry: Entry, read: Read) -> None:
        mode = entry.mode & 0o777
        try:
            fd = os.open(name, _NEW_FILE, mode, dir_fd=where)
        except FileExistsError:
            self._clear(where, name)
            fd = os.open(name, _NEW_FILE, mode, dir_fd=where)
        try:
            if entry.extents is None:
                for view in read(entry.size):
                    _write(fd, view)
            else:
                for offset, length in entry.extents:
                    os.lseek(fd, offset, os.SEEK_SET)
                    for view in read(length):
                        _write(fd, view)
                os.ftruncate(fd, entry.real_size)
            # owner before mode and attributes: chown takes set-id bits and file capabilities away
            if entry.uid or entry.gid or self._inherits:
                os.fchown(fd, entry.uid, entry.gid)
            if entry.mode & 0o7000:
                os.fchmod(fd, entry.mode)
            if entry.xattrs:
                _set_xattrs(fd, entry.xattrs)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _directory(self, where: int, name: bytes, entry: Entry) -> None:
        existed = False
        try:
            os.mkdir(name, entry.mode & 0o777, dir_fd=where)
        except FileExistsError:
            existed = stat.S_ISDIR(os.stat(name, dir_fd=where, follow_symlinks=False).st_mode)
            if not existed:
                self._clear(where, name)
                os.mkdir(name, entry.mode & 0o777, dir_fd=where)
        self._mtimes[entry.name] = entry.mtime_ns
        if existed or entry.uid or entry.gid or entry.mode & 0o7000 or entry.xattrs or self._inherits:
            fd = os.open(name, LIST, dir_fd=where)
            try:
                self._attributes(fd, entry, existed=existed)
            finally:
                os.close(fd)

    def _attributes(self, fd: int, entry: Entry, *, existed: bool) -> None:
        """Give a directory the owner, mode and attributes of ``entry``."""
        if entry.mode & stat.S_ISGID:
            self._inherits = True
        os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode)
        if existed:
            for key in os.listxattr(fd):
                if key.startswith("user.") and os.fsencode(key) not in entry.xattrs:
                    os.removexattr(fd, key)
        _set_xattrs(fd, entry.xattrs)

    def _link(self, where: int, name: bytes, entry: Entry) -> None:
        parent, _, target = entry.link.rpartition(b"/")

        def make() -> None:
            source = self._there.to(parent, None)
            os.link(target, name, src_dir_fd=_there(source), dst_dir_fd=where, follow_symlinks=False)

        try:
            try:
                make()
            except FileExistsError:
                source = _there(self._there.to(parent, None))
                old = os.stat(target, dir_fd=source, follow_symlinks=False)
                if not os.path.samestat(old, os.stat(name, dir_fd=where, follow_symlinks=False)):
                    # the target may be below what is cleared; then it is missed by the second try
                    self._clear(where, name)
                    make()
        except FileNotFoundError as exc:
            raise InvalidArchive(f"the target {printable(entry.link)} of the hard link does not exist") from exc

    def _clear(self, where: int, name: bytes) -> None:
        """Remove what has the name, with all below it if it is a directory."""
        try:
            os.unlink(name, dir_fd=where)
        except FileNotFoundError:
            return
        except IsADirectoryError:
            self._there.reset()
            remove_directory(where, name)

    def whiteout(self, path: bytes) -> None:
        """Remove what earlier layers had at ``path``; what is not there is fine (OCI layer.md, "Whiteouts")."""
        assert self._seen is not None
        parent, _, name = path.rpartition(b"/")
        where = self._here.to(parent, None)
        if where is None:
            return
        if path in self._seen:
            self._prune(path)
        else:
            self._clear(where, name)

    def opaque(self, path: bytes) -> None:
        """Remove what earlier layers had below the directory ``path`` (OCI layer.md, "Opaque Whiteout").

        Raises:
            InvalidArchive: it is not a directory.
        """
        if self._here.to(path, None) is not None:
            self._prune(path)

    def _prune(self, top: bytes) -> None:
        assert self._seen is not None
        queue = [top]
        while queue:
            path = queue.pop()
            parent, _, name = path.rpartition(b"/")
            where = self._here.to(parent, None)
            if where is None:
                continue
            try:
                fd = os.open(name or b".", LIST, dir_fd=where)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                for text in os.listdir(fd):
                    child = os.fsencode(text)
                    below = path + b"/" + child if path else child
                    if below in self._seen:
                        queue.append(below)
                    else:
                        self._clear(fd, child)
            finally:
                os.close(fd)

    def finish(self) -> None:
        """Set the times of directories, now that nothing more is put into them."""
        for path in sorted(self._mtimes):
            parent, _, name = path.rpartition(b"/")
            try:
                where = self._here.to(parent, None)
                if where is None or not stat.S_ISDIR(
                    os.stat(name or b".", dir_fd=where, follow_symlinks=False).st_mode
                ):
                    continue
            except (FileNotFoundError, InvalidArchive):
                # it was a directory once, and was replaced
                continue
            times = (self._mtimes[path], self._mtimes[path])
            os.utime(name or b".", ns=times, dir_fd=where, follow_symlinks=False)


def _there(directory: int | None) -> int:
    if directory is None:
        raise FileNotFoundError
    return directory


def _write(fd: int, view: memoryview) -> None:
    while view:
        view = view[os.write(fd, view) :]


def _set_xattrs(fd: int, xattrs: dict[bytes, bytes]) -> None:
    for key, value in xattrs.items():
        try:
            os.setxattr(fd, key, value)
        except OSError as exc:
            text = printable(key)
            if exc.errno == errno.ENOTSUP and key.startswith(b"user."):
                # a file system without them: a note of the user's is no reason to refuse, as in Docker
                continue
            if exc.errno in {errno.ENOTSUP, errno.ENOSPC}:
                # ENOSPC does not mean a full disk here: the attribute does not fit beside the inode
                raise InvalidArchive(f"the file system does not take its extended attribute {text}") from exc
            raise
