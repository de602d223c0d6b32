"""A server that speaks the chat completions of OpenAI's API, labels by a rule on words, and can misbehave."""

import contextlib
import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.rows import BAD, GOOD, TOPICS

KEY = "sk-a-secret-of-these-tests-0123456789"
SURE = 0.9

Body = dict[str, Any]
Answer = tuple[int, dict[str, str], Any]
"""Status, headers, and what is sent as JSON (or bytes, as they are)."""


def text_of(body: Body) -> str:
    """The text that a prompt holds, in the default templates."""
    prompt: str = body["messages"][-1]["content"]
    return prompt.partition("Text: ")[2].partition("\n\n")[0]


def label_of(text: str) -> str:
    words = text.split()
    return "positive" if sum((word in GOOD) - (word in BAD) for word in words) > 0 else "negative"


def token(text: str, probability: float, others: dict[str, float] | None = None) -> dict[str, Any]:
    """One token of logprobs.content as the API writes it."""
    top = {text: probability, **(others or {})}
    listed = [{"token": t, "logprob": math.log(p), "bytes": list(t.encode())} for t, p in top.items()]
    return {**listed[0], "top_logprobs": listed}


def completion(contents: list[str], body: Body, logprobs: list[dict[str, Any]] | None = None, **extra: Any) -> Answer:
    """A response with a choice for each content."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": content, "refusal": None} | extra,
            "finish_reason": "stop",
            "logprobs": None if logprobs is None else {"content": logprobs, "refusal": None},
        }
        for index, content in enumerate(contents)
    ]
    usage = {"prompt_tokens": len(body["messages"][-1]["content"].split()), "completion_tokens": len(contents)}
    usage["total_tokens"] = sum(usage.values())
    return 200, {}, {"id": "1", "object": "chat.completion", "model": "m", "choices": choices, "usage": usage}


def error(status: int, message: str, **headers: str) -> Answer:
    return status, headers, {"error": {"message": message, "type": "error", "code": None}}


def with_logprobs(body: Body, number: int) -> Answer:
    """Sure to nine tenths, in log-probabilities."""
    label = label_of(text_of(body))
    other = "negative" if label == "positive" else "positive"
    return completion([label], body, [token(label, SURE, {other: 1 - SURE})] if body.get("logprobs") else None)


def with_votes(body: Body, number: int) -> Answer:
    """As many choices as are asked for, all alike, and no log-probabilities."""
    return completion([label_of(text_of(body)).capitalize() + "."] * body.get("n", 1), body)


def of_topics(body: Body, number: int) -> Answer:
    """Multi-label: every label whose cue is there."""
    words = set(text_of(body).split())
    names = [label for label, cues in TOPICS.items() if set(cues) & words]
    return completion([", ".join(names) or "none"] * body.get("n", 1), body)


class Server:
    """What was asked of it, and by which rule it answers: `rule(body, how often this body was asked before)`."""

    def __init__(self, rule: Callable[[Body, int], Answer], delay_s: float = 0.0) -> None:
        self.rule = rule
        self.delay_s = delay_s
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.statuses: list[int] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def asked(self) -> dict[str, int]:
        """How often each body was answered with 200."""
        counts: dict[str, int] = {}
        for body, status in zip(self.bodies, self.statuses, strict=False):
            if status == 200:
                key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
                counts[key] = counts.get(key, 0) + 1
        return counts

    def answer(self, path: str, headers: dict[str, str], body: Body) -> Answer:
        with self._lock:
            before = self.bodies.count(body)
            position = len(self.bodies)
            self.bodies.append(body)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            self.statuses.append(0)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        time.sleep(self.delay_s)
        found = error(404, f"no such path {path}") if path != "/v1/chat/completions" else self.rule(body, before)
        with self._lock:
            self._at_once -= 1
            self.statuses[position] = found[0]
        return found

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                given = {name.lower(): value for name, value in self.headers.items()}
                status, headers, content = server.answer(self.path, given, body)
                raw = content if isinstance(content, bytes) else json.dumps(content).encode()
                if status == 0:  # dies in the middle of its answer
                    self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{")
                    self.close_connection = True
                    return
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.send_response(status)
                    for name, value in {"content-type": "application/json", **headers}.items():
                        self.send_header(name.replace("_", "-"), value)
                    self.send_header("content-length", str(len(raw)))
                    self.end_headers()
                    self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def start(self) -> None:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@contextlib.contextmanager
def serving(rule: Callable[[Body, int], Answer] = with_logprobs, delay_s: float = 0.0) -> Iterator[Server]:
    server = Server(rule, delay_s)
    server.start()
    try:
        yield server
    finally:
        server.stop()
