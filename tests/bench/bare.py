"""The floor of the API rows: an aiohttp server that does nothing but answer, on uvloop where that is installed.

Usage: python -m tests.bench.bare SOCKET BODY       GET /plugins answers the bytes of the file BODY, GET /_ping "OK"
"""

import asyncio
import importlib
import importlib.util
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

LOOP = "uvloop" if importlib.util.find_spec("uvloop") else "asyncio"


def _answer(body: bytes, kind: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=body, content_type=kind)

    return handler


async def _serve(socket: str, body: bytes) -> None:
    app = web.Application()
    app.router.add_get("/plugins", _answer(body, "application/json"))
    app.router.add_get("/_ping", _answer(b"OK", "text/plain"))
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.UnixSite(runner, socket).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    importlib.import_module(LOOP).run(_serve(sys.argv[1], Path(sys.argv[2]).read_bytes()))
