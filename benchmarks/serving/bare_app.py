"""The least that answers a classify request over HTTP: an ASGI app that parses the body and returns a constant.

BARE_ANSWER_BYTES=180 uvicorn benchmarks.serving.bare_app:app
"""

import json
import os
from typing import Any

ANSWER = json.dumps("x" * (int(os.environ.get("BARE_ANSWER_BYTES", "180")) - 2)).encode()
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]


async def app(_scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    if body:  # a GET only asks whether it is up
        json.loads(body)
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": ANSWER})
