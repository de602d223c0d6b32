"""Names and values that every way to ask a model shares: paths and headers.

The header `priority` belongs to RFC 9218 and browsers send it with another meaning, so ours are called `x-request-…`.
"""

ROUTE = "/v1/classify"
MODEL_ROUTE = "/v1/models/{model}/classify"
VERSION_ROUTE = "/v1/models/{model}/versions/{version}/classify"

TAG_ROUTE = "/v1/tag"
TAG_MODEL_ROUTE = "/v1/models/{model}/tag"
TAG_VERSION_ROUTE = "/v1/models/{model}/versions/{version}/tag"

EXPLAIN_ROUTE = "/v1/explain"
EXPLAIN_MODEL_ROUTE = "/v1/models/{model}/explain"
EXPLAIN_VERSION_ROUTE = "/v1/models/{model}/versions/{version}/explain"

TIMEOUT_HEADER = "x-request-timeout-ms"
PRIORITY_HEADER = "x-request-priority"
TIMING_HEADER = "x-request-timing"
"""Whoever sends it gets a Server-Timing header back."""
AUTHORIZATION = b"authorization"
REQUEST_ID = b"x-request-id"
TRACEPARENT = b"traceparent"
