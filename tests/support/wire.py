"""Plain calls to a daemon's unix socket, for tests in which it may die, or the client go away, at any moment."""

from __future__ import annotations

import http.client
import io
import json
import socket
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode


class Connection(http.client.HTTPConnection):
    """An HTTP connection over a unix socket."""

    def __init__(self, path: Path, timeout: float = 30.0) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Answer:
    """Status and body of a call.

    Attributes:
        status: the HTTP status.
        body: decoded JSON, a list of documents where it is a stream, or text.
    """

    def __init__(self, status: int, kind: str, raw: bytes) -> None:
        self.status = status
        self.body: Any = raw.decode(errors="replace")
        if kind == "application/json":
            documents = [json.loads(line) for line in raw.splitlines() if line.strip()]
            self.body = documents[0] if len(documents) == 1 else documents

    @property
    def error(self) -> str:
        """The message of a refusal, or of the stream's last line; empty when all went well."""
        if self.status >= 400:
            return str(self.body["message"]) if isinstance(self.body, dict) else str(self.body)
        last = self.body[-1] if isinstance(self.body, list) and self.body else self.body
        return str(last["errorDetail"]["message"]) if isinstance(last, dict) and "errorDetail" in last else ""

    def __repr__(self) -> str:
        return f"<{self.status} {self.body!r}>"


class Api:
    """Calls to one daemon, each on a connection of its own; raises OSError or HTTPException when it dies meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def call(
        self,
        method: str,
        path: str,
        query: Mapping[str, object] | None = None,
        *,
        body: bytes | Iterable[bytes] | None = None,
        document: object = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60.0,
    ) -> Answer:
        """Send a request and read the whole answer.

        Args:
            method: the HTTP method.
            path: as it stands in the request, quoted already.
            query: parameters.
            body: bytes, or chunks to be sent chunked.
            document: sent as JSON, where it is not None.
            headers: further ones.
            timeout: seconds without a byte after which to give up.
        """
        sent = dict(headers or {})
        if document is not None:
            body = json.dumps(document).encode()
            sent["Content-Type"] = "application/json"
        connection = Connection(self.path, timeout)
        try:
            connection.request(method, f"{path}?{urlencode(query)}" if query else path, body, sent)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers.get("Content-Type", ""), answer.read())
        finally:
            connection.close()

    def ok(self, method: str, path: str, query: Mapping[str, object] | None = None, **options: Any) -> Any:
        """Do as `call`, and return the body of an answer that has to be a good one."""
        answer = self.call(method, path, query, **options)
        assert answer.status < 300, answer
        assert not answer.error, answer
        return answer.body

    def plugins(self) -> list[dict[str, Any]]:
        """Return what ``GET /plugins`` lists."""
        found = self.ok("GET", "/plugins")
        assert isinstance(found, list)
        return found

    def collect(self) -> list[str]:
        """Collect garbage; return the digests that went."""
        removed = self.ok("POST", "/pluginsvc/v1/gc")["Removed"]
        assert isinstance(removed, list)
        return removed

    def act(self, verb: str, name: str, **query: object) -> Answer:
        """Call ``POST /plugins/NAME/VERB``."""
        return self.call("POST", f"/plugins/{quote(name)}/{verb}", query)

    def create(self, name: str, archive: bytes | Iterable[bytes]) -> Answer:
        """Create a plugin of an archive."""
        return self.call("POST", "/plugins/create", {"name": name}, body=archive)

    def pull(self, remote: str, name: str = "", path: str = "/plugins/pull") -> Answer:
        """Pull or, with the path of an upgrade, upgrade to ``remote``, granting what it asks for."""
        granted = self.ok("GET", "/plugins/privileges", {"remote": remote})
        return self.call("POST", path, {"remote": remote, "name": name}, document=granted)

    def upgrade(self, name: str, remote: str) -> Answer:
        """Upgrade a plugin to ``remote``."""
        return self.pull(remote, path=f"/plugins/{quote(name)}/upgrade")


def tar(files: Mapping[str, bytes | None]) -> bytes:
    """Make an archive in memory; None stands for a directory, and every file may be executed."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.mode = 0o755
            if data is None:
                member.type = tarfile.DIRTYPE
            else:
                member.size = len(data)
            archive.addfile(member, io.BytesIO(data or b""))
    return out.getvalue()


def pack(folder: Path) -> bytes:
    """Return a plugin folder as an archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    return out.getvalue()
