"""HTTP/1.1 as uvicorn speaks it, with refusals that cost next to nothing.

Under overload most of what comes is refused. Were each refusal a task that runs the app, they would take the CPU from
the requests that can be answered. So what the queue has no room for is answered here, from the head of the request; its
body is read past.
"""

import http
from typing import Any, ClassVar

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Protocol(HttpToolsProtocol):
    """One connection. `config.app` has a method `refusal(method, url)`: a Response, or None to let the app answer."""

    _latest: ClassVar[tuple[Response, list[tuple[bytes, bytes]], bool, bytes] | None] = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._refusal_of = self.config.app.refusal  # type: ignore[union-attr]
        self._refusal: Response | None = None  # to the request that is being read

    def on_headers_complete(self) -> None:
        """Decide whether the app is to see the request; one behind another that is not answered yet goes to the app."""
        answered = self.cycle is None or self.cycle.response_complete
        if answered and not self.expect_100_continue:
            self._refusal = self._refusal_of(self.parser.get_method(), self.url)
        if self._refusal is None:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        if self._refusal is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Answer, if the request is refused."""
        if self._refusal is None:
            super().on_message_complete()
            return
        refusal, self._refusal = self._refusal, None
        keep = self.parser.should_keep_alive()
        self.transport.write(self._encode(refusal, keep))
        if not keep:
            self.transport.close()
        self.on_response_complete()

    def _encode(self, response: Response, keep: bool) -> bytes:
        """Return a whole answer; the latest is remembered, since uvicorn's headers change with the date alone."""
        of_server = self.server_state.default_headers
        latest = Protocol._latest
        if latest is not None and latest[0] is response and latest[1] is of_server and latest[2] is keep:
            return latest[3]
        headers = [*of_server, *response.raw_headers, *([] if keep else [(b"connection", b"close")])]
        status = b"HTTP/1.1 %d %b\r\n" % (response.status_code, http.HTTPStatus(response.status_code).phrase.encode())
        lines = [b"%b: %b\r\n" % header for header in headers]
        encoded = b"".join([status, *lines, b"\r\n", bytes(response.body)])
        Protocol._latest = response, of_server, keep, encoded
        return encoded
