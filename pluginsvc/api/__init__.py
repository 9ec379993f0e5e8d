"""The HTTP edge; the only room that knows aiohttp.web."""
