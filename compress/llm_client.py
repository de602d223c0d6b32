"""An OpenAI-compatible endpoint: requests at a bounded rate, each repeated until it is answered."""

import asyncio
import contextlib
import email.utils
import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from compress.errors import LlmError
from compress.recipe_llm import Llm

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_LONGEST_WAIT_S = 3600.0
"""Without any answer while the endpoint asks to wait; then it is taken for down."""
_MESSAGE_CHARACTERS = 300
_KEPT = "what was answered is kept; give the same command again to go on"


class RejectedError(Exception):
    """The endpoint will not answer this request, whatever else it answers (400, 413, 422)."""


class FilteredError(Exception):
    """The endpoint's filter refused the prompt."""


class ExhaustedError(Exception):
    """No attempt was answered; the message says what came last."""


def read_key(config: Llm, folder: Path) -> str | None:
    """Return the key that the recipe names, or None where it names none; raises LlmError, which never holds the key."""
    if config.api_key_env is not None:
        where = f"the environment variable {config.api_key_env}, which teacher.llm.api_key_env names,"
        key = os.environ.get(config.api_key_env, "").strip()
    elif config.api_key_file is not None:
        where = f"{folder / config.api_key_file}, which teacher.llm.api_key_file names,"
        try:
            key = (folder / config.api_key_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise LlmError(f"{where} cannot be read") from error
    else:
        return None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise LlmError(f"{where} holds no key; expected one line of printable ASCII characters")
    return key


class Endpoint:
    """Sends chat completions; an async context manager.

    At most `requests_per_minute` are begun. Where the endpoint asks to wait (429, or 503 with Retry-After), all wait,
    and that is no failure; after a failure a request waits 1, 2, 4 … 60 s, half of it by chance. The key goes into the
    Authorization header and nowhere else, and redirects are not followed, so it goes to no other host.
    """

    def __init__(self, config: Llm, key: str | None, tell: Callable[[str], None]) -> None:
        self._config = config
        self._key = key
        self._tell = tell
        self._next_start = 0.0
        self._closed_until = 0.0
        self._answered_at = time.monotonic()
        self._over = asyncio.Event()
        try:
            self._http = httpx.AsyncClient(
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=config.timeout_s,
                limits=httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency),
            )
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise LlmError(
                f"the proxy of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY) cannot be used: {error}"
            ) from error

    async def ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the response to a request that was answered with 200: its choices, perhaps none, and its usage.

        Raises RejectedError, FilteredError or ExhaustedError for this request, and LlmError when no request will do
        better: the key is refused, or there is no such path or model.
        """
        failures = waits = 0
        while True:
            await self._turn()
            wait = None
            try:
                # httpx bounds each read alone, and an answer may come byte by byte
                async with asyncio.timeout(self._config.timeout_s):
                    response = await self._http.post(f"{self._config.endpoint}/chat/completions", json=dict(body))
            except (TimeoutError, httpx.TimeoutException):
                problem = f"no answer within {self._config.timeout_s:g} s"
            except (httpx.TransportError, httpx.DecodingError) as error:
                problem = self._without_key(str(error) or type(error).__name__)
            else:
                answer = _choices(response)
                if answer is not None:
                    self._answered_at = time.monotonic()
                    return answer
                problem = self._said(response)
                self._raise_for(response, problem)
                wait = _retry_after(response)
                if response.status_code == httpx.codes.TOO_MANY_REQUESTS or wait is not None:
                    await self._wait(waits, wait, problem)
                    waits += 1
                    continue
            if failures == self._config.retries:
                raise ExhaustedError(problem)
            await self._pause(_growing(failures))
            failures += 1

    def end(self) -> None:
        """Send nothing more: whoever asks is cancelled. What is under way will be paid for, and is still answered."""
        self._over.set()

    async def _turn(self) -> None:
        """Wait until a request may begin."""
        await self._pause(0)
        while True:
            while (wait := self._closed_until - time.monotonic()) > 0:
                await self._pause(wait)
            if self._config.requests_per_minute is None:
                return
            now = time.monotonic()
            start = max(now, self._next_start)
            self._next_start = start + 60 / self._config.requests_per_minute
            await self._pause(start - now)
            if self._closed_until <= time.monotonic():  # else the endpoint asked to wait meanwhile
                return

    async def _pause(self, seconds: float) -> None:
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), seconds)
        if self._over.is_set():
            raise asyncio.CancelledError

    async def _wait(self, waits: int, asked: float | None, problem: str) -> None:
        """Let all requests wait as long as the endpoint asks, and longer each time where that is not enough."""
        wait = max(asked or 0.0, _growing(waits))
        if time.monotonic() + wait - self._answered_at > _LONGEST_WAIT_S:
            raise LlmError(f"{self._config.endpoint}: {problem}; it asks to wait {wait:.0f} s more; {_KEPT}")
        until = time.monotonic() + wait
        if wait >= 1 and until > self._closed_until + 1:
            self._tell(f"{problem}; waiting {wait:.0f} s")
        self._closed_until = max(self._closed_until, until)
        await self._pause(0.1 * random.random())  # noqa: S311 - so that they do not all come back at once

    def _raise_for(self, response: httpx.Response, problem: str) -> None:
        """Raise for a status that repeating cannot help."""
        status, endpoint = response.status_code, self._config.endpoint
        if status in (401, 402, 403) or "insufficient_quota" in response.text:
            key = "the key" if self._key else "a request without a key (see teacher.llm.api_key_env)"
            raise LlmError(f"{endpoint}: refused {key}: {problem}; {_KEPT}")
        if status == httpx.codes.NOT_FOUND:
            raise LlmError(
                f"{endpoint}: {problem}; expected the base URL of the API, mostly ending in /v1, and a model it has "
                f"(teacher.llm.model is {self._config.model})"
            )
        if 300 <= status < 400:
            raise LlmError(f"{endpoint}: {problem}; expected an endpoint that answers itself, not a redirect")
        if 400 <= status < 500 and status not in (408, 409, 425, 429):
            filtered = "content_filter" in response.text or "content_policy" in response.text
            raise FilteredError(problem) if filtered else RejectedError(problem)

    def _said(self, response: httpx.Response) -> str:
        """Return the status with the server's own words, not too many of them and never the key."""
        try:
            found = response.json()
            error = found.get("error", found)
            words = str(error.get("message", error) if isinstance(error, dict) else error)
        except (ValueError, AttributeError):
            words = response.text
        if response.status_code == httpx.codes.OK:
            words = f"a response that is no chat completion: {words}"
        words = " ".join(self._without_key(words).split())[:_MESSAGE_CHARACTERS]
        return f"status {response.status_code}: {words}".removesuffix(": ")

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "(the key)") if self._key else text

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()


def _growing(number: int) -> float:
    """Return how long to pause after `number` earlier pauses, in seconds."""
    longest: float = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(number, 10))
    return longest * (0.5 + 0.5 * random.random())  # noqa: S311 - so that they do not all come back at once


def _choices(response: httpx.Response) -> dict[str, Any] | None:
    """Return what a response answers, without what is not needed, or None when it is no answer.

    What was paid for is an answer even where its choices hold nothing that can be read.
    """
    if response.status_code != httpx.codes.OK:
        return None
    try:
        found = response.json()
        usage = found.get("usage") or {}
        tokens = {name: int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")}
    except (ValueError, TypeError, AttributeError):
        return None
    given = found.get("choices")
    if given is None and "error" in found:
        return None
    choices = [choice for choice in map(_choice, given if isinstance(given, list) else ()) if choice is not None]
    return {"choices": choices, "usage": tokens} if choices or any(tokens.values()) else None


def _choice(found: Any) -> dict[str, Any] | None:
    """Return what is needed of a choice, or None when it is none."""
    try:
        content, refusal = found["message"].get("content"), found["message"].get("refusal")
    except (KeyError, TypeError, AttributeError):
        return None
    if not isinstance(content, str | None):
        return None
    finish = found.get("finish_reason")
    return {"content": content, "refusal": refusal, "finish_reason": finish, "logprobs": _tokens(found)}


def _tokens(choice: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return token, logprob and top_logprobs of each token, or None where a server gives none in this form."""
    try:
        return [
            _token(token) | {"top_logprobs": [_token(other) for other in token.get("top_logprobs") or ()]}
            for token in choice["logprobs"]["content"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _token(found: dict[str, Any]) -> dict[str, Any]:
    return {"token": str(found["token"]), "logprob": float(found["logprob"])}


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds that Retry-After asks for (a number, or a date), or None."""
    value = response.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
