"""Bounds the request body: by its declared length, by the bytes that really come, and by the time they take."""

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimitMiddleware:
    """Answers 413 to bodies of more than `max_body_bytes`, without holding more than that in memory, 408 to slow ones.

    A refusal is raised from `receive`, inside whatever reads the body, as the one kind of exception that FastAPI
    passes on from there; `service.api.failures` gives it the service's error body. A body that no route reads costs
    nothing, and a client that sends `Expect: 100-continue` is refused before it sends anything.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, timeout_s: float) -> None:
        self.app = app
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s

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
        complete = False
        deadline_s = asyncio.get_running_loop().time() + self._timeout_s

        async def bounded_receive() -> Message:
            nonlocal received_bytes, complete
            if complete:  # from now on it tells when the client leaves
                return await receive()
            if declared_bytes > self._max_body_bytes:
                raise self._too_large(f"{declared_bytes} bytes")
            try:
                async with asyncio.timeout_at(deadline_s):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, late("body", self._timeout_s)) from None
            complete = not message.get("more_body", False)
            received_bytes += len(message.get("body", b""))
            if received_bytes > self._max_body_bytes:
                raise self._too_large("more")
            return message

        await self.app(scope, bounded_receive, send)

    def _too_large(self, found: str) -> HTTPException:
        return HTTPException(
            413, f"body: expected at most {self._max_body_bytes} bytes, found {found}; send fewer or shorter inputs"
        )


def late(part: str, timeout_s: float) -> str:
    """Say that a part of a request took too long to come."""
    return f"{part}: expected all of it within {timeout_s:g} s"
