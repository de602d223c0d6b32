"""Reads request bodies that a client has compressed."""

import zlib

from fastapi import Request
from starlette.requests import ClientDisconnect

from service.errors import BodyTooLargeError, ClientGoneError, ContentTypeError, InvalidInputError

# gzip with its head; deflate in zlib's, as RFC 9110 has it
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


async def read_body(request: Request, max_body_bytes: int) -> bytes:
    """Return the body, decompressed to at most `max_body_bytes`.

    Raises ContentTypeError for another encoding than gzip and deflate, InvalidInputError for what does not decompress,
    BodyTooLargeError; ClientGoneError when the client leaves before all of it is there.
    """
    try:
        body = await request.body()
    except ClientDisconnect:
        raise ClientGoneError("the client closed the connection") from None
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        return body
    if encoding not in _WINDOW_BITS:
        raise ContentTypeError(f"found content encoding {encoding[:40]}, expected gzip or deflate")
    decompressor = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        plain = decompressor.decompress(body, max_body_bytes + 1)
    except zlib.error as error:
        raise InvalidInputError("body", f"not {encoding}: {error}") from error
    if len(plain) > max_body_bytes:
        raise BodyTooLargeError(f"body: expected at most {max_body_bytes} bytes when decompressed, found more")
    if not decompressor.eof:
        raise InvalidInputError("body", f"the {encoding} stream breaks off")
    return plain
