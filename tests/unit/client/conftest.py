"""A daemon that says what a test tells it to, byte for byte."""

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@dataclass
class Scripted:
    """Answers one connection.

    Attributes:
        host: where.
        received: what came, complete once `thread` has ended.
    """

    host: str
    thread: threading.Thread
    received: bytearray = field(default_factory=bytearray)

    def whole(self) -> bytes:
        self.thread.join(10)
        assert not self.thread.is_alive()
        return bytes(self.received)


@pytest.fixture
def scripted(tmp_path: Path) -> Iterator[Callable[..., Scripted]]:
    """Give a function that starts a daemon which sends `answer` after `wait_for`, and reads on when told to."""
    opened: list[tuple[socket.socket, threading.Thread]] = []

    def start(answer: bytes, *, wait_for: bytes = b"\r\n\r\n", read_on: bool = False) -> Scripted:
        listener = socket.socket(socket.AF_UNIX)
        listener.settimeout(10)
        listener.bind(str(tmp_path / "scripted.sock"))
        listener.listen()

        def serve() -> None:
            connection = listener.accept()[0]
            with connection:
                connection.settimeout(10)
                while wait_for not in daemon.received:
                    data = connection.recv(65536)
                    daemon.received += data
                    if not data:
                        return
                connection.sendall(answer)
                while read_on and (data := connection.recv(65536)):
                    daemon.received += data

        thread = threading.Thread(target=serve)
        daemon = Scripted(f"unix://{tmp_path}/scripted.sock", thread)
        opened.append((listener, thread))
        thread.start()
        return daemon

    yield start
    for listener, thread in opened:
        thread.join(10)
        listener.close()
