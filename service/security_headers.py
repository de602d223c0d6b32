"""Headers that tell browsers and caches to take answers as what they are: https://cheatsheetseries.owasp.org, REST.

An answer that sets one of them itself keeps its own. Answers of `service.protocol` have them as bytes that are made
once; the middleware adds them to those of the framework.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ERROR = 400

_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    # what a text was found to be is nobody else's business, and states and metrics are of this moment
    (b"cache-control", b"no-store"),
)
_OF_PAGES_AND_ERRORS = ((b"content-security-policy", b"frame-ancestors 'none'"),)


def security_headers(status: int, content_type: bytes = b"") -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers of an answer."""
    page = status >= _ERROR or content_type.startswith(b"text/html")
    return _ALWAYS + _OF_PAGES_AND_ERRORS if page else _ALWAYS


class SecurityHeadersMiddleware:
    """Adds what an answer does not have."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a `send` that adds headers."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def adding_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name.lower(): value for name, value in message.get("headers", ())}
                added = security_headers(message["status"], own.get(b"content-type", b""))
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name, value) for name, value in added if name not in own),
                ]
            await send(message)

        await self.app(scope, receive, adding_send)
