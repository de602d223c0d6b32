"""A live endpoint that is asked for labels: several requests side by side, repeated where that may help."""

import contextlib
import os
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock
from typing import Any
from urllib.parse import SplitResult, urlsplit
from weakref import WeakSet

import httpx

from bulk.answers import Found
from bulk.closing import Closing
from bulk.dialects import DIALECTS, Dialect, Labels, dialect_of
from bulk.errors import EndpointError
from service.engine.tokenization import TextInput

_AT_ONCE = 4
_TEXTS = 16  # in a request
_ATTEMPTS = 6
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_CONNECT_S = 10.0  # at most: nothing ends this wait early, so Ctrl-C waits for it
_MESSAGE_CHARACTERS = 200


class Endpoint(Closing):
    """Answers texts through one dialect; a context manager.

    A request that fails with 429 or a 5xx, or finds nobody, is repeated with growing pauses, or after as long as the
    server asks. One that is refused is asked again text by text, so that only a text that is refused alone is.
    """

    def __init__(
        self,
        url: str,
        dialect: str | None,
        labels: Labels,
        *,
        key_env: str | None,
        timeout_s: float,
        model: str | None = None,
        dialects: Mapping[str, type[Dialect]] = DIALECTS,
    ) -> None:
        """Check the URL, the dialect, the model (where a header names it) and the key; raises EndpointError."""
        parts = _checked(url)
        path = parts.path.rstrip("/")
        name = dialect or dialect_of(path)
        if name not in dialects:
            raise EndpointError(
                f"{'--dialect' if dialect else 'the URL'}: found the dialect {name}; expected one of "
                f"{', '.join(dialects)}, which tell what this bundle does"
            )
        self.dialect: Dialect = dialects[name](labels, model or "")
        if model and not (model.isascii() and model.isprintable()):
            raise EndpointError(f"--model: found {model!r}; expected printable ASCII, since a header holds it")
        if self.dialect.names_model != bool(model):
            found = f"found {model!r}, but" if model else "not given, and"
            wants = "in a header" if self.dialect.names_model else "in its path, if at all"
            raise EndpointError(f"--model: {found} the dialect {self.dialect.name} names the model {wants}")
        if self.dialect.name == "openinference" and not path:
            raise EndpointError(f"{url}: expected a model in the path, such as /v2/models/NAME")
        if self.dialect.name == "kserve" and not path:
            raise EndpointError(f"{url}: expected a model in the path, such as /v1/models/NAME:predict")
        self.url = f"{parts.scheme}://{parts.netloc}{self.dialect.path(path)}"
        self._key = None if key_env is None else _read_key(key_env)
        headers = self.dialect.headers() | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        try:
            timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_S))
            self._http = httpx.Client(headers=headers, timeout=timeout)
        except (ImportError, ValueError, httpx.InvalidURL) as error:
            raise EndpointError(
                f"the proxy of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY) cannot be used: {error}"
            ) from error
        self._sockets: WeakSet[socket.socket] = WeakSet()
        self._guard = Lock()
        self._closed = Event()
        self._workers = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="limbeck-diff")

    def answers(self, inputs: Sequence[TextInput]) -> list[Found | str]:
        """Return an answer for each text or pair, in order, or what is said against it; raises EndpointError."""
        parts = [inputs[at : at + _TEXTS] for at in range(0, len(inputs), _TEXTS)]
        return [answer for part in self._workers.map(self._ask, parts) for answer in part]

    def _ask(self, inputs: Sequence[TextInput]) -> list[Found | str]:
        response = self._post(inputs)
        if response.status_code in (400, 413, 422):
            if len(inputs) > 1:
                return [answer for one in inputs for answer in self._ask([one])]
            return [f"the endpoint refused it: {self._said(response)}"]
        if response.status_code != httpx.codes.OK:
            raise EndpointError(
                f"{self.url}: {self._said(response)}; expected the path of a classifier that speaks the dialect "
                f"{self.dialect.name} (--dialect names another)"
            )
        try:
            answers = self.dialect.read(response.json())
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            raise EndpointError(
                f"{self.url}: its answer is none of the dialect {self.dialect.name}: {self._words(response)}"
            ) from error
        except EndpointError as error:
            raise EndpointError(f"{self.url}: {error}") from error
        if len(answers) != len(inputs):
            raise EndpointError(
                f"{self.url}: found {len(answers)} answers, expected one for each of {len(inputs)} texts"
            )
        return list(answers)

    def _post(self, inputs: Sequence[TextInput]) -> httpx.Response:
        problem = ""
        for attempt in range(_ATTEMPTS):
            pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt)
            if self._closed.is_set():
                break
            try:
                response = self._http.post(
                    self.url, json=self.dialect.body(inputs), extensions={"trace": self._remember}
                )
            except httpx.ConnectTimeout:
                problem = f"no connection within {self._http.timeout.connect:g} s"
            except httpx.TimeoutException:
                problem = f"no answer within {self._http.timeout.read:g} s"
            except httpx.TransportError as error:
                problem = str(error) or type(error).__name__
            else:
                if response.status_code != httpx.codes.TOO_MANY_REQUESTS and response.status_code < 500:
                    return response
                problem = self._said(response)
                pause = _asked_to_wait(response, pause)
            if attempt < _ATTEMPTS - 1:
                self._closed.wait(pause)
        raise EndpointError(f"{self.url}: not answered in {_ATTEMPTS} attempts; the last: {problem}")

    def _said(self, response: httpx.Response) -> str:
        return f"status {response.status_code}: {self._words(response)}"

    def _words(self, response: httpx.Response) -> str:
        """Return what a server says, not too much of it and never the key."""
        text = response.text.replace(self._key, "(the key)") if self._key else response.text
        return " ".join(text.split())[:_MESSAGE_CHARACTERS]

    def _remember(self, event: str, info: Mapping[str, Any]) -> None:
        """Keep the socket of a connection that has come about; httpx calls this at each step of a request."""
        # the first part of the name is the connection's kind: to the server itself, or to a proxy
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            with self._guard:
                self._sockets.add(info["return_value"].get_extra_info("socket"))
            if self._closed.is_set():  # while it was connecting
                self._wake()

    def close(self) -> None:
        """Close connections, also those on which an answer is awaited; nobody waits for what is under way."""
        self._closed.set()
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._wake()
        self._http.close()

    def _wake(self) -> None:
        """End the connections; to close a socket would not wake who reads from it, for whom the process waits."""
        with self._guard:
            for one in self._sockets:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)


def _checked(url: str) -> SplitResult:
    """Return the parts of a URL; raises EndpointError, which never holds it: a password may stand anywhere in it."""
    expected = "expected http://HOST:PORT/PATH without user, password, query and fragment"
    try:
        parts = urlsplit(url)
        usable = parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise EndpointError(f"the endpoint's URL: found no port from 1 to 65535, or no URL at all; {expected}")
    wrong = {
        "no host": not parts.hostname,
        "a user or password": "@" in parts.netloc,
        "a query": bool(parts.query),
        "a fragment": bool(parts.fragment),
    }
    found = [name for name, there in wrong.items() if there]
    if found:
        raise EndpointError(f"the endpoint's URL: found {' and '.join(found)}; {expected}")
    return parts


def _read_key(name: str) -> str:
    """Return the key that an environment variable holds; raises EndpointError, which never holds it."""
    key = os.environ.get(name, "").strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise EndpointError(
            f"the environment variable {name}, which --api-key-env names, holds no key; expected one line of printable "
            "ASCII characters"
        )
    return key


def _asked_to_wait(response: httpx.Response, otherwise: float) -> float:
    """Return how many seconds Retry-After asks for, at most what is bearable."""
    try:
        return min(_LONGEST_PAUSE_S, max(0.0, float(response.headers["retry-after"])))
    except (KeyError, ValueError):
        return otherwise
