"""The server under test: its address, whole requests to it, and a first one that must succeed."""

import http.client
import json
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from loadtest.dialects import Asked
from loadtest.errors import TargetError

_FIRST_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Target:
    """Where requests go."""

    tls: bool
    host: str
    port: int
    prefix: str
    """Put before every path; without a slash at its end."""

    @property
    def url(self) -> str:
        """The URL, as requests name it."""
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.prefix}"

    @property
    def authority(self) -> str:
        """The header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    def address(self) -> tuple[str, int]:
        """Look the host up, once for the whole test, and return its IP address and port; raises TargetError."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise TargetError(f"{self.url}: the host {self.host} is not known ({error.strerror})") from error
        for _, _, _, _, address in found:  # of localhost's two, the one that somebody listens on
            try:
                socket.create_connection((str(address[0]), self.port), timeout=_FIRST_TIMEOUT_S).close()
            except OSError as error:
                refusal = error
            else:
                return str(address[0]), self.port
        raise TargetError(f"{self.url}: nobody answers there ({refusal.strerror or refusal}); is the server running?")

    def get(self, path: str, headers: dict[str, str], timeout_s: float) -> tuple[int, bytes]:
        """Return status and body; raises OSError or http.client.HTTPException."""
        return self._exchange("GET", path, None, headers, timeout_s)

    def try_first(self, asked: Asked, headers: dict[str, str]) -> None:
        """Ask once; raises TargetError when the answer is no success or no JSON."""
        try:
            status, body = self._exchange("POST", self.prefix + asked.path, asked.body, headers, _FIRST_TIMEOUT_S)
        except (OSError, http.client.HTTPException) as error:
            told = str(error) or type(error).__name__
            raise TargetError(f"{self.url}{asked.path}: the first request had no answer ({told})") from error
        if not 200 <= status < 300:
            hint = {
                401: "; an API key goes into a file: --api-key-file",
                403: "; an API key goes into a file: --api-key-file",
                404: "; is it the right --dialect and --model?",
                405: "; is it the right --dialect?",
            }.get(status, "")
            raise TargetError(
                f"{self.url}{asked.path}: the first request was answered with status {status}: {_shown(body)}{hint}"
            )
        try:
            json.loads(body)
        except ValueError as error:
            raise TargetError(
                f"{self.url}{asked.path}: the first request was answered with no JSON: {_shown(body)}; "
                "is it the right --dialect?"
            ) from error

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout_s: float
    ) -> tuple[int, bytes]:
        connection = (
            http.client.HTTPSConnection(self.host, self.port, timeout=timeout_s, context=ssl.create_default_context())
            if self.tls
            else http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        )
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def parse_url(url: str) -> Target:
    """Return the target that a URL names; raises TargetError."""
    expected = "expected a URL such as http://localhost:8000"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise TargetError(f"URL: found {url!r} ({error}), {expected}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or not url.isascii() or not url.isprintable():
        raise TargetError(f"URL: found {url!r}, {expected}")
    if parts.query or parts.fragment or parts.username:
        raise TargetError(f"URL: found {url!r}, {expected}, with no query, fragment or user")
    tls = parts.scheme == "https"
    return Target(tls, parts.hostname, port or (443 if tls else 80), parts.path.rstrip("/"))


def headers_of(asked: Asked, api_key: str | None, reuse: bool) -> dict[str, str]:
    """Return the headers of a request, without Host and Content-Length."""
    headers = {"Content-Type": "application/json", "Accept": "application/json", **asked.headers}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    if not reuse:
        headers["Connection"] = "close"
    return headers


def whole_request(target: Target, asked: Asked, headers: dict[str, str]) -> bytes:
    """Return the bytes of a request, so that nothing is left to be made when it is due."""
    lines = [f"POST {target.prefix}{asked.path} HTTP/1.1", f"Host: {target.authority}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"Content-Length: {len(asked.body)}")
    return "\r\n".join([*lines, "", ""]).encode() + asked.body


def _shown(body: bytes) -> str:
    text = " ".join(body[:400].decode(errors="replace").split())
    return text[:200] or "an empty body"
