"""Answers ordinary classify requests without the web framework, which costs more than a small model.

`service.protocol` asks here first. Whatever is not ordinary goes to the routes of `service.api.native`: other paths and
media types, bodies that do not decode, unknown keys, inputs and models that are refused. So every check and message of
bad input exists once, there, and this file and `heads` only have to be right about what they accept.
"""

import asyncio
import contextlib
from typing import Annotated, NamedTuple

import msgspec
from starlette.responses import Response

from service.api.classify import Classifier, Question
from service.api.failures import Failures
from service.api.heads import Head, Headers, Heads
from service.engine.queue import Priority
from service.engine.request import Classified
from service.errors import ClientGoneError, ServiceError, UnauthorizedError
from service.journal import Journal
from service.model import Model
from service.registry import Registry
from service.settings import MAX_TIMEOUT_MS, Settings
from service.visits import VISIT, Visit

_UNKNOWN = "?"  # method
_ASKS_A_MODEL = ""  # the path, as far as keys have to do with it


class _TextPair(msgspec.Struct, forbid_unknown_fields=True):
    text: str
    text_pair: str


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    """`schemas.ClassifyRequest`, which describes and checks it for people, in a form that is decoded in 0.2 µs."""

    inputs: str | list[str | _TextPair]
    top_k: Annotated[int, msgspec.Meta(ge=1)] | None = None
    timeout_ms: Annotated[int, msgspec.Meta(ge=1, le=MAX_TIMEOUT_MS)] | None = None
    priority: Priority | None = None


class Answer(NamedTuple):
    """A response; date and connection are the server's to add."""

    status: int
    headers: Headers
    body: bytes


class Work(NamedTuple):
    """A question that the engine has taken in."""

    future: asyncio.Future[list[Classified]]
    question: Question
    model: Model
    visit: Visit


class FastPath:
    """One for each app. What it does not want to answer it says None to, and the app answers."""

    def __init__(
        self, registry: Registry, classifier: Classifier, failures: Failures, journal: Journal, settings: Settings
    ) -> None:
        self._failures = failures
        self._registry = registry
        self._classifier = classifier
        self._journal = journal
        self._refusals: dict[int | None, Answer] = {}  # by Retry-After, all else in them is the same
        self.read_head = Heads(settings).read
        self._decode = msgspec.json.Decoder(_Request).decode

    def choose(self, head: Head) -> Model | None:
        """Return the model that a request means, which is chosen once; None when the app is to answer."""
        try:
            return self._registry.find(head.target.model, head.target.version)
        except ServiceError:
            return None  # the app says what is wrong

    def refusal(self, head: Head, model: Model | None, arrived_s: float) -> Answer | None:
        """Return the answer to a request that its model's queue has no room for, known before its body is."""
        if model is None or model.draining:
            return None
        try:
            if not model.batcher.full:
                return None
            visit = self._open(head, model, arrived_s)
        except ServiceError:
            return None
        error = model.batcher.refusal()
        answer = self._refusals.get(error.retry_after_s)
        if answer is None:  # at most 60 of them
            answer = self._refusals[error.retry_after_s] = _as_answer(self._failures.respond(error, head.target.route))
        visit.error = error.code
        self._failures.count(error)
        return self._close(visit, answer)

    def turn_away(self, error: ServiceError, arrived_s: float, head: Head | None = None) -> Answer:
        """Return the answer to a request that is not read to its end; without `head` nobody knows what it asks."""
        visit = self._journal.open(arrived_s, head and head.request_id, head and head.traceparent)
        if head is not None:
            visit.route = head.target.route
        visit.error = error.code
        self._failures.count(error)
        answer = _as_answer(self._failures.respond(error, visit.route))
        return self._close(visit, answer, "POST" if head is not None else _UNKNOWN)

    def left(self, head: Head, arrived_s: float) -> None:
        """Count a request whose client has left before all of its body was there."""
        visit = self._journal.open(arrived_s, head.request_id, head.traceparent)
        visit.route, visit.error = head.target.route, ClientGoneError.code
        with contextlib.suppress(UnauthorizedError):
            self._journal.admit(visit, head.authorization, _ASKS_A_MODEL)
        self._journal.close(visit, "POST", ClientGoneError.status)

    def begin(self, head: Head, model: Model | None, body: bytes, arrived_s: float) -> Work | Answer | None:
        """Let the engine take a request in; None when the app is to answer. `arrived_s` is of `time.monotonic`."""
        if model is not None and model.draining:  # it has gone while the body came
            model = self.choose(head)
        if model is None:
            return None
        try:
            visit = self._open(head, model, arrived_s)
            asked = self._decode(body)
        except (ServiceError, ValueError, RecursionError):  # the route meets it again and answers
            return None
        inputs = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
        question = Question(
            [given if isinstance(given, str) else (given.text, given.text_pair) for given in inputs],
            asked.top_k,
            asked.timeout_ms or head.timeout_ms,
            asked.priority or head.priority or Priority.INTERACTIVE,
        )
        try:
            self._classifier.check(question, model)
        except Exception:  # noqa: BLE001 - refusal or fault, the route meets it again and answers
            return None
        try:
            future = self._classifier.submit(question, model, visit)
        except Exception as error:  # noqa: BLE001 - the client gets an answer
            return self._failed(error, visit)
        return Work(future, question, model, visit)

    def finish(self, work: Work, *, gone: bool) -> Answer:
        """Return the answer to a request whose future is done; `gone` says that its client has left meanwhile."""
        try:
            results = work.future.result()
            work.visit.take(results)
            body = self._classifier.encode(work.question, work.model, results)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the client gets an answer
            if gone and isinstance(error, asyncio.CancelledError):
                error = ClientGoneError("the client closed the connection")
            return self._failed(error, work.visit)
        headers = ((b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)))
        return self._close(work.visit, Answer(200, headers, body))

    def _open(self, head: Head, model: Model, arrived_s: float) -> Visit:
        visit = self._journal.open(arrived_s, head.request_id, head.traceparent)
        visit.route = head.target.route
        self._journal.admit(visit, head.authorization, _ASKS_A_MODEL)
        self._registry.check_open(arrived_s)
        visit.choose(model)
        visit.trial = self._registry.trial(model, head.target.version)
        return visit

    def _close(self, visit: Visit, answer: Answer, method: str = "POST") -> Answer:
        self._journal.close(visit, method, answer.status)
        more = self._journal.headers(visit)
        return answer._replace(headers=(*answer.headers, *more)) if more else answer

    def _failed(self, error: BaseException, visit: Visit) -> Answer:
        token = VISIT.set(visit)
        try:
            response = self._failures.respond_to(error, "POST", visit.route)
        finally:
            VISIT.reset(token)
        return self._close(visit, _as_answer(response))


def _as_answer(response: Response) -> Answer:
    return Answer(response.status_code, response.raw_headers, bytes(response.body))
