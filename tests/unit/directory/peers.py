"""Plugins that answer as a test scripts it, byte by byte, on a unix socket or a loopback port."""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio

Script = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Peer:
    """A listening plugin; ``seen`` has the head and the body of each request."""

    address: str
    seen: list[tuple[str, bytes]] = field(default_factory=list)


@dataclass
class Clock:
    """A clock that only ``sleep`` moves on, and keeps what it slept."""

    now: float = 100.0
    waits: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    async def sleep(self, wait: float) -> None:
        self.waits.append(wait)
        self.now += wait


def bound(path: Path) -> socket.socket:
    """Return a socket bound to a path of any length."""
    folder = os.open(path.parent, os.O_PATH)
    try:
        made = socket.socket(socket.AF_UNIX)
        made.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
    return made


@asynccontextmanager
async def plugin(
    script: Script, place: Path | None = None, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Peer]:
    """Serve one script for each request, on a unix socket at ``place`` or on a free port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = head.lower().partition("content-length: ")[2].partition("\r\n")[0]
            peer.seen.append((head, await reader.readexactly(int(length or 0))))
            await script(writer)
        except (ConnectionError, asyncio.IncompleteReadError, RuntimeError):  # uvloop says the last of a closed end
            pass
        finally:
            writer.close()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.ensure_future(serve(reader, writer)))

    tasks: set[asyncio.Task[None]] = set()
    if place is not None:
        server = await asyncio.start_unix_server(accepted, sock=bound(place))
        peer = Peer(f"unix://{place}")
    else:
        server = await asyncio.start_server(accepted, "127.0.0.1", 0, ssl=tls)
        host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        peer = Peer(f"https://{host}" if tls else f"tcp://{host}")
    try:
        yield peer
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        with anyio.fail_after(5):
            await asyncio.gather(*tasks, return_exceptions=True)
            await server.wait_closed()


def answer(status: str = "200 OK", body: bytes = b"{}", *headers: str) -> Script:
    """Return a script that gives one whole answer."""
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers])
    return raw(f"{head}\r\n\r\n".encode() + body)


def raw(data: bytes) -> Script:
    """Return a script that sends ``data`` and hangs up."""

    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return script


def endless(start: bytes, more: bytes, *, every: float = 0.0) -> Script:
    """Return a script that sends ``start`` and then ``more`` for ever, or with pauses of ``every`` seconds."""

    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while not writer.is_closing():
            writer.write(more)
            await writer.drain()
            await asyncio.sleep(every)

    return script
