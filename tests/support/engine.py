"""The target of the functional HTTP tests: an address, and a way to put plugins where it can pull them from."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.docker_cli import DockerCLI, docker_clis

CONFIG: dict[str, Any] = {
    "description": "a sample",
    "entrypoint": ["/sample"],
    "env": [{"name": "DEBUG", "value": "0", "settable": ["value"]}],
    "interface": {"socket": "sample.sock", "types": ["docker.volumedriver/1.0"]},
    "network": {"type": "host"},
}
GRANTED = [{"Name": "network", "Description": "permissions to access a network", "Value": ["host"]}]


@dataclass(frozen=True)
class Engine:
    """One daemon.

    Attributes:
        socket: the unix socket of its API.
        publish: puts a plugin with the given `config.json` into a registry and returns its reference there, given a
            repository name.
    """

    socket: Path
    publish: Callable[[str, dict[str, Any]], Awaitable[str]]

    @property
    def host(self) -> str:
        return f"unix://{self.socket}"

    def cli(self, config: Path, path: Path | None = None) -> DockerCLI:
        return DockerCLI(path or docker_clis()[-1], self.host, config)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[aiohttp.ClientSession]:
        connector = aiohttp.UnixConnector(str(self.socket))
        async with aiohttp.ClientSession("http://localhost", connector=connector) as session:
            yield session

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """Return status and body: decoded JSON, or text where it is none."""
        async with self.session() as session, session.request(method, path, **options) as response:
            text = await response.text()
            is_json = response.headers.get("Content-Type") == "application/json"
            return response.status, json.loads(text) if is_json else text

    async def lines(self, method: str, path: str, **options: Any) -> list[Any]:
        """Return the lines of a stream that began well."""
        async with self.session() as session, session.request(method, path, **options) as response:
            assert response.status == 200, await response.text()
            return [json.loads(line) for line in (await response.read()).splitlines()]

    async def install(self, name: str, config: dict[str, Any] | None = None) -> str:
        """Publish and pull a plugin; return its local name."""
        remote = await self.publish(name, CONFIG if config is None else config)
        query = {"remote": remote, "name": f"{name}:latest"}
        status, privileges = await self.call("GET", "/plugins/privileges", params={"remote": remote})
        assert status == 200, privileges
        lines = await self.lines("POST", "/plugins/pull", params=query, json=privileges)
        assert not any("error" in line for line in lines), lines
        return f"{name}:latest"

    async def exchange(self, raw: bytes) -> bytes:
        """Send bytes on a connection of their own, end our side of it, and return all that comes back."""
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        try:
            writer.write(raw)
            await writer.drain()
            return await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()
            await writer.wait_closed()
