"""`/`: the live page for browsers, one line of text for other clients."""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from sgl_mlx.server.service import Service

_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def routes(service: Service) -> list[Route]:
    """Return the route `/`, which needs no API key; the page asks for a key when it needs one."""
    page = files("sgl_mlx.server.pages").joinpath("index.html").read_text("utf-8")

    async def root(request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(page, headers={"content-security-policy": _POLICY})
        return PlainTextResponse(f"sgl-mlx serves {service.names[0]}\n")

    return [Route("/", root)]
