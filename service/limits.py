"""Bounds the request body, by its declared length and by the bytes that really come."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimitMiddleware:
    """Answers 413 to bodies of more than `max_body_bytes`, without holding more than that in memory.

    The refusal is raised from `receive`, inside whatever reads the body, as the one kind of exception that FastAPI
    passes on from there; `service.api.failures` gives it the service's error body. A body that no route reads costs
    nothing, and a client that sends `Expect: 100-continue` is refused before it sends anything.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a `receive` that counts."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        declared_bytes = (
            int(declared) if declared.isdigit() else 0
        )  # the server refuses others; bytes are counted anyway
        received_bytes = 0

        async def bounded_receive() -> Message:
            nonlocal received_bytes
            if declared_bytes > self._max_body_bytes:
                raise self._too_large(f"{declared_bytes} bytes")
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > self._max_body_bytes:
                raise self._too_large("more")
            return message

        await self.app(scope, bounded_receive, send)

    def _too_large(self, found: str) -> HTTPException:
        return HTTPException(
            413, f"body: expected at most {self._max_body_bytes} bytes, found {found}; send fewer or shorter inputs"
        )
