"""The client of both sides: the Engine API over a unix socket, one connection a call, the same cost for both."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

LONGEST = 600.0
"""Seconds any single answer may take."""


class CallFailedError(Exception):
    """A daemon or the registry answered with an error."""

    def __init__(self, call: str, status: int, said: str) -> None:
        self.status = status
        super().__init__(f"{call} answered {status}: {said.strip()[:500]}")


class _UnixConnection(HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=LONGEST)
        self._path = path

    def connect(self) -> None:
        self.sock = connected(self._path, timeout=LONGEST)


def connected(path: Path, *, timeout: float) -> socket.socket:
    """Return a connection to a unix socket, whose path may be longer than the 107 bytes of an address."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    found = socket.socket(socket.AF_UNIX)
    try:
        found.settimeout(timeout)
        found.connect(f"/proc/self/fd/{folder}/{path.name}")
    except BaseException:
        found.close()
        raise
    finally:
        os.close(folder)
    return found


class Engine:
    """One daemon's API; every method raises `CallFailedError` when the answer is an error."""

    def __init__(self, path: Path) -> None:
        self.socket = path

    def call(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: bytes | Iterator[bytes] | None = None,
        kind: str = "application/json",
    ) -> bytes:
        """Send one request and return the whole body of the answer; an iterator is sent in chunks."""
        url = f"{path}?{urlencode(query)}" if query else path
        headers = {"Content-Type": kind} if body is not None else {}
        connection = _UnixConnection(self.socket)
        try:
            with contextlib.suppress(BrokenPipeError):  # refused before it had taken all; the answer says why
                connection.request(method, url, body=body, headers=headers)
            answer: HTTPResponse = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise CallFailedError(f"{method} {path}", answer.status, data.decode(errors="replace"))
        return data

    def plugins(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.call("GET", "/plugins"))
        return found

    def inspect(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.call("GET", f"/plugins/{name}/json"))
        return found

    def create(self, name: str, body: Iterator[bytes]) -> None:
        self.call("POST", "/plugins/create", query={"name": name}, body=body, kind="application/x-tar")

    def install(self, remote: str, name: str) -> None:
        """Do as `docker plugin install --disable`: ask for the privileges, grant them, pull."""
        granted = self.call("GET", "/plugins/privileges", query={"remote": remote})
        self._stream("/plugins/pull", {"remote": remote, "name": name}, granted)

    def push(self, name: str) -> None:
        self._stream(f"/plugins/{name}/push", {}, b"")

    def enable(self, name: str) -> None:
        self.call("POST", f"/plugins/{name}/enable", query={"timeout": "30"})

    def disable(self, name: str) -> None:
        self.call("POST", f"/plugins/{name}/disable")

    def remove(self, name: str) -> None:
        self.call("DELETE", f"/plugins/{name}", query={"force": "1"})

    def _stream(self, path: str, query: dict[str, str], body: bytes) -> None:
        for line in self.call("POST", path, query=query, body=body).splitlines():
            if said := json.loads(line).get("error"):
                raise CallFailedError(f"POST {path}", 200, said)


def pings(path: Path) -> bool:
    """Tell whether a daemon answers on its socket."""
    try:
        return Engine(path).call("GET", "/_ping") == b"OK"
    except (OSError, CallFailedError):
        return False


def activate(path: Path, *, within: float = 5.0) -> None:
    """Wait until a plugin's socket accepts, and have it answer `/Plugin.Activate`.

    Args:
        path: the socket.
        within: seconds until `TimeoutError`.

    """
    deadline = time.monotonic() + within
    while (found := _try(path, timeout=within)) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing accepts on {path} within {within:g} s")
        time.sleep(0.001)
    with found:
        found.sendall(b"POST /Plugin.Activate HTTP/1.1\r\nHost: plugin\r\nContent-Length: 0\r\n\r\n")
        answer = found.recv(4096)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise CallFailedError("POST /Plugin.Activate", int(answer[9:12] or 0), answer.decode(errors="replace"))


def _try(path: Path, *, timeout: float) -> socket.socket | None:
    try:
        return connected(path, timeout=timeout)
    except (FileNotFoundError, ConnectionRefusedError):
        return None


def put_blob(registry: str, repository: str, digest: str, body: Path | bytes) -> None:
    """Upload one blob by one PUT.

    Args:
        registry: `HOST:PORT`, plain HTTP.
        repository: its path there.
        digest: `sha256:…` of the bytes.
        body: the bytes, or the file that has them.

    """
    connection = HTTPConnection(registry, timeout=LONGEST)
    try:
        connection.request("POST", f"/v2/{repository}/blobs/uploads/")
        answer = connection.getresponse()
        location = _checked("POST uploads", answer)
        path = location[location.index("/v2/") :]
        length = len(body) if isinstance(body, bytes) else body.stat().st_size
        connection.putrequest("PUT", f"{path}&digest={digest}")
        connection.putheader("Content-Type", "application/octet-stream")
        connection.putheader("Content-Length", str(length))
        connection.endheaders()
        if isinstance(body, bytes):
            connection.send(body)
        else:
            with body.open("rb") as file:
                connection.sock.sendfile(file)
        _checked("PUT blob", connection.getresponse())
    finally:
        connection.close()


def put_manifest(registry: str, repository: str, tag: str, kind: str, raw: bytes) -> None:
    """Upload a manifest of media type `kind` under a tag."""
    connection = HTTPConnection(registry, timeout=60)
    try:
        connection.request("PUT", f"/v2/{repository}/manifests/{tag}", body=raw, headers={"Content-Type": kind})
        _checked("PUT manifest", connection.getresponse())
    finally:
        connection.close()


def get_blob(registry: str, repository: str, digest: str, *, piece: int) -> Iterable[bytes]:
    """Download a blob in pieces of `piece` bytes."""
    connection = HTTPConnection(registry, timeout=60)
    try:
        connection.request("GET", f"/v2/{repository}/blobs/{digest}")
        answer = connection.getresponse()
        if answer.status != 200:
            _checked("GET blob", answer)
        while data := answer.read(piece):
            yield data
    finally:
        connection.close()


def _checked(call: str, answer: HTTPResponse) -> str:
    said = answer.read()
    if answer.status >= 300:
        raise CallFailedError(call, answer.status, said.decode(errors="replace"))
    return answer.headers.get("Location", "")
