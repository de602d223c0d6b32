"""Which port has which paths, where operators have a port of their own; and which of them pages may ask."""

import re

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import UnknownPathError

_HEALTH = re.compile(r"/health(/.*)?")
# A route's own pattern also matches before a newline at the end (`%0A`), and names in it may hold some.
_OPERATIONS = re.compile(r"(/metrics|/v1/admin(/.*)?|/v2/repository/models/.*)\n?", re.DOTALL)


class PortsMiddleware:
    """Answers 404 to operators' paths on the public port, and to all but those and health on theirs.

    The port is that of the socket which the connection came through, as the server knows it.
    """

    def __init__(self, app: ASGIApp, operations_port: int) -> None:
        self.app = app
        self._operations_port = operations_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on if it came through the right port."""
        if scope["type"] == "http" and not _HEALTH.fullmatch(scope["path"]):
            theirs = bool(_OPERATIONS.fullmatch(scope["path"]))
            if theirs is not came_through(scope.get("server"), self._operations_port):
                raise UnknownPathError("no such path on this port")
        await self.app(scope, receive, send)


class CorsMiddleware(CORSMiddleware):
    """Lets pages of the named origins ask models; what is for operators stays closed to pages."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a preflight, or pass the request on."""
        if scope["type"] == "http" and _OPERATIONS.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def came_through(server: tuple[str, int | None] | None, port: int | None) -> bool:
    """Say whether a connection came through `port`; `server` is its local address."""
    return server is not None and port is not None and server[1] == port
