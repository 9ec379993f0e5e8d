"""The one database: a connection on a thread of its own, and transactions as plain functions (design D1).

The functions of ``plugins``, ``leases`` and ``journal`` take the connection and are composed inside one ``work``,
so that a change and its event are committed together or not at all.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self, TypeVar

import anyio
import anyio.lowlevel
import structlog

from pluginsvc.errors import Internal
from pluginsvc.fsutil import sync_dir
from pluginsvc.state import journal
from pluginsvc.state.schema import migrate

T = TypeVar("T")
_log = structlog.get_logger()

_ADVICE = {
    "SQLITE_FULL": "free some space on its disk, then try again",
    "SQLITE_CORRUPT": "it is damaged: stop the daemon and restore it from a backup, or move it away to start empty",
    "SQLITE_NOTADB": "it is not a database of this program: move it away to start empty",
    "SQLITE_BUSY": "another program holds it: end that program",
    "SQLITE_CANTOPEN": "check that its directory exists and may be written to",
    "SQLITE_READONLY": "check that its file system and its directory may be written to",
}


class StateError(Internal):
    """The state database cannot be read or written; nothing of the transaction was kept.

    Attributes:
        path: the database.
        code: SQLite's extended name of the result, such as ``SQLITE_FULL`` or ``SQLITE_IOERR_WRITE``.
    """

    def __init__(self, path: Path, code: str, detail: str) -> None:
        self.path, self.code = path, code
        advice = next((text for name, text in _ADVICE.items() if code.startswith(name)), "look at its disk, try again")
        super().__init__(f"the state database {path} failed: {detail}; {advice}")


class StateClosed(Internal):
    """A transaction was asked for after the database was closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"the state database {path} is closed: the daemon is stopping")


class Database:
    """One SQLite database and the thread that alone touches it; ``open`` is the constructor to use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="state")
        self._connection: sqlite3.Connection | None = None
        self._last_seq = 0
        self._watchers: list[Callable[[], None]] = []
        self._closed = False

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open or create the database and bring its schema up to date.

        Args:
            path: the file; its directory exists.

        Raises:
            StateError: it cannot be opened, or is no database.
            SchemaTooNew: a newer pluginsvc has written it.
        """
        database = cls(path)
        try:
            await database._submit(database._connect)
        except BaseException:
            database._shut()
            raise
        return database

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work`` in one transaction, durable when this returns; roll back whatever it raises.

        A caller that is cancelled meanwhile still waits for the outcome, and gets its cancellation then.

        Args:
            work: a plain function over the connection; it neither commits nor rolls back, and blocks all others.

        Raises:
            StateError: SQLite failed: a full disk, an I/O error.
            StateClosed: after ``close``.
        """
        return await self._submit(lambda: self._write(work))

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work`` on one consistent view of what is committed; a statement that would write fails.

        Raises:
            StateError: SQLite failed.
            StateClosed: after ``close``.
        """
        return await self._submit(lambda: self._read(work))

    def watch(self, wake: Callable[[], None]) -> None:
        """Have ``wake`` called on the event loop after each commit that appended to the journal."""
        self._watchers.append(wake)

    async def close(self) -> None:
        """Finish what was submitted, then close; a second call does nothing."""
        if self._closed:
            return
        try:
            await self._submit(self._disconnect)
        finally:
            self._shut()

    def _shut(self) -> None:
        self._closed = True
        self._thread.submit(self._disconnect)
        self._thread.shutdown(wait=False)

    async def _submit(self, call: Callable[[], T]) -> T:
        """Run ``call`` on the thread and wait for its end, cancelled or not."""
        await anyio.lowlevel.checkpoint_if_cancelled()
        if self._closed:
            raise StateClosed(self.path)
        outcome = self._loop.run_in_executor(self._thread, call)
        cancelled: asyncio.CancelledError | None = None
        # the shield holds back anyio's cancellation, the loop the native one that aiohttp sends
        with anyio.CancelScope(shield=True):
            while not outcome.done():
                try:
                    await asyncio.wait([outcome])
                except asyncio.CancelledError as exc:
                    cancelled = exc
        try:
            if cancelled is not None:
                raise cancelled
            await anyio.lowlevel.checkpoint_if_cancelled()
        except asyncio.CancelledError:
            if error := outcome.exception():
                _log.warning("state.failed_unwatched", error=str(error))
            raise
        return outcome.result()

    # What follows runs on the thread.

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StateClosed(self.path)
        return self._connection

    def _connect(self) -> None:
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                # settings hold secrets; SQLite gives its side files the mode of this one
                os.fchmod(fd, 0o600)
            finally:
                os.close(fd)
            sync_dir(self.path.parent)
        except OSError as exc:
            raise StateError(self.path, "SQLITE_CANTOPEN", str(exc)) from exc
        with self._translated():
            db = self._connection = sqlite3.connect(self.path, isolation_level=None)
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise StateError(self.path, "SQLITE_CANTOPEN", "its file system cannot hold a write-ahead log")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            migrate(db)
            self._last_seq = journal.last_seq(db)

    def _disconnect(self) -> None:
        if self._connection is not None:
            with self._translated():
                self._connection.close()
            self._connection = None

    def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        db = self._db
        with self._translated():
            db.execute("BEGIN IMMEDIATE")
            try:
                result = work(db)
                seq = journal.last_seq(db)
                db.execute("COMMIT")
            except BaseException:
                _rollback(db)
                raise
        if seq != self._last_seq:
            self._last_seq = seq
            self._loop.call_soon_threadsafe(self._wake)
        return result

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        db = self._db
        with self._translated():
            db.execute("PRAGMA query_only = ON")
            try:
                db.execute("BEGIN")
                return work(db)
            finally:
                _rollback(db)
                db.execute("PRAGMA query_only = OFF")

    def _wake(self) -> None:
        for wake in self._watchers:
            wake()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            # errors of the Python module itself carry no name
            code = getattr(exc, "sqlite_errorname", "SQLITE_MISUSE")
            raise StateError(self.path, code, f"{exc} ({code})") from exc


def _rollback(db: sqlite3.Connection) -> None:
    """End the transaction; SQLite has often done so itself after an error."""
    if db.in_transaction:
        with suppress(sqlite3.Error):
            db.execute("ROLLBACK")
