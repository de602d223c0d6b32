"""Every refusal and failure that a client of the service can see, and the one shape they are sent in.

Exception
├── StartupError                 the service cannot start; the process logs one line and exits with 1
└── ServiceError                 answered as {"error": {"code", "message", "field"?}}
    ├── ConnectionEndingError    the request is not read to its end, the connection is closed
    │   ├── BadRequestError      400  the bytes are no HTTP/1.1 request
    │   ├── RequestTimeoutError  408  head or body took too long to come
    │   ├── TargetTooLongError   414  a longer path and query than any of ours
    │   └── HeadTooLargeError    431  more bytes than max_header_bytes, or more headers than max_headers
    ├── InvalidInputError        422  which field, what was found, what was expected
    │   └── NoInputsError        422  a request without a single input
    ├── UnauthorizedError        401  no key, or none that is known
    ├── ForbiddenError           403  the key does not allow that
    ├── UnknownModelError        404  no such model or version
    ├── UnknownRolloutError      404  no rollout of that model
    ├── UnknownPathError         404  no such path
    ├── MethodError              405  the path exists, the method does not
    ├── BodyTooLargeError        413  more bytes than max_body_bytes
    ├── LoadError                409  a bundle cannot be taken into service; what was served goes on
    ├── RolloutError             409  a rollout cannot be stated, promoted or ended so
    ├── ContentTypeError         415  the body is not declared as JSON
    ├── ClientGoneError          499  nobody is left to answer; seen in metrics only
    ├── DeadlineError            504  the request's deadline passed before it was run
    ├── InferenceError           500  tokenization or the model failed; the log has the details
    ├── UnexpectedError          500  a fault of the service itself; the log has the traceback
    └── UnavailableError         come back later: Retry-After is always set
        ├── QueueFullError       429  a bound of the queue is reached
        ├── RateLimitedError     429  the key's quota is used up
        ├── TooManyConnectionsError  503  max_connections are open already
        ├── ExplainBusyError     429  as many explanations run as may
        ├── NotReadyError        503  models are loading, or a model's worker died
        └── DrainingError        503  the service is shutting down

`service.api.failures` is the only place that turns these into HTTP responses.
"""

from typing import Any


class StartupError(Exception):
    """The service cannot start; the message says which bundle or setting is at fault and what to do."""


class ServiceError(Exception):
    """A request that is not answered with a result.

    `status` is the HTTP status, `code` a stable name for programs, `field` the part of the request at fault and
    `retry_after_s` the whole seconds after which trying again makes sense.
    """

    status = 500
    code = "internal_error"

    def __init__(self, message: str, *, field: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """Return the JSON body that clients get."""
        error = {"code": self.code, "message": self.message}
        if self.field is not None:
            error["field"] = self.field
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """Return the headers that go with the status."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


class ConnectionEndingError(ServiceError):
    """The request is not read to its end, so that nothing can come behind it."""

    def headers(self) -> dict[str, str]:
        """Return the headers that go with the status."""
        return super().headers() | {"Connection": "close"}


class BadRequestError(ConnectionEndingError):
    """The bytes are no HTTP/1.1 request."""

    status = 400
    code = "bad_request"


class RequestTimeoutError(ConnectionEndingError):
    """The client takes too long to send its request."""

    status = 408
    code = "request_timeout"


class TargetTooLongError(ConnectionEndingError):
    """The request's path and query are longer than any of ours."""

    status = 414
    code = "target_too_long"


class HeadTooLargeError(ConnectionEndingError):
    """The request's head has more bytes, or more headers, than the service reads."""

    status = 431
    code = "head_too_large"


class InvalidInputError(ServiceError):
    """The request cannot be understood as it is; the message names the field."""

    status = 422
    code = "invalid_input"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}", field=field)


class NoInputsError(InvalidInputError):
    """The list of inputs is empty."""

    def __init__(self, field: str) -> None:
        super().__init__(field, "found none, expected at least one text")


class UnauthorizedError(ServiceError):
    """The request has no API key, or none that is known."""

    status = 401
    code = "unauthorized"

    def headers(self) -> dict[str, str]:
        """Return the headers that go with the status."""
        return {"WWW-Authenticate": "Bearer"}


class ForbiddenError(ServiceError):
    """The key does not allow what was asked for."""

    status = 403
    code = "forbidden"


class UnknownModelError(ServiceError):
    """No model, or no version of it, has that name."""

    status = 404
    code = "unknown_model"


class UnknownRolloutError(ServiceError):
    """No rollout of that model is stated."""

    status = 404
    code = "unknown_rollout"


class UnknownPathError(ServiceError):
    """No route has that path."""

    status = 404
    code = "not_found"


class MethodError(ServiceError):
    """The path exists, but not with that method."""

    status = 405
    code = "method_not_allowed"


class BodyTooLargeError(ServiceError):
    """The request's body has more bytes than the service reads."""

    status = 413
    code = "body_too_large"


class LoadError(ServiceError):
    """A bundle cannot be taken into service; what was served goes on."""

    status = 409
    code = "load_failed"


class RolloutError(ServiceError):
    """A rollout cannot be stated, promoted or ended as the models are now; the message names the field."""

    status = 409
    code = "rollout_conflict"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}", field=field)


class ContentTypeError(ServiceError):
    """The body is not declared as JSON."""

    status = 415
    code = "unsupported_content_type"


class ClientGoneError(ServiceError):
    """The client closed the connection before its answer was ready."""

    status = 499
    code = "client_gone"


class DeadlineError(ServiceError):
    """The request's deadline passed before it was run."""

    status = 504
    code = "deadline_exceeded"

    def __init__(self) -> None:
        super().__init__("the request's deadline passed before it could be run; it was not run")


class InferenceError(ServiceError):
    """Tokenization or the model failed on this request."""

    code = "inference_failed"


class UnexpectedError(ServiceError):
    """A fault of the service itself."""

    def __init__(self) -> None:
        super().__init__("internal error; the service's log has the details")


class UnavailableError(ServiceError):
    """The same request may succeed later."""

    status = 503

    def __init__(self, message: str, *, retry_after_s: int = 5) -> None:
        super().__init__(message, retry_after_s=retry_after_s)


class QueueFullError(UnavailableError):
    """A bound of the queue is reached; nothing of the request was accepted."""

    status = 429
    code = "queue_full"


class RateLimitedError(UnavailableError):
    """The key's quota is used up."""

    status = 429
    code = "rate_limited"


class TooManyConnectionsError(UnavailableError):
    """As many connections are open as there may be."""

    code = "too_many_connections"

    def headers(self) -> dict[str, str]:
        """Return the headers that go with the status."""
        return super().headers() | {"Connection": "close"}


class ExplainBusyError(UnavailableError):
    """As many explanations run as may at once; classification goes on."""

    status = 429
    code = "explain_busy"


class NotReadyError(UnavailableError):
    """Models are still loading, or a model's worker died."""

    code = "not_ready"


class DrainingError(UnavailableError):
    """The service is shutting down and accepts nothing new."""

    code = "draining"
