"""Every setting of the service: one definition, one environment variable, one line of documentation each."""

import json
import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, PositiveInt, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

ENV_PREFIX = "LIMBECK_"

_ORIGIN = re.compile(r"https?://[^\s/?#@*]+", re.IGNORECASE)

AUTO: Final = "auto"

MAX_TIMEOUT_MS = 3_600_000
"""Longest deadline that a request may ask for: an hour."""


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of CPUs that this process may run on: its affinity, bounded by its container's limit."""
    # macOS and Windows have no affinity
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = _cpu_limit(cgroup)
    return cpus if limit is None else max(1, min(cpus, math.ceil(limit)))


def _cpu_limit(cgroup: Path) -> float | None:
    """Return the CPUs that control groups allow, version 2 (`cpu.max`) or 1 (`cpu.cfs_*`), or None for no limit."""
    try:
        if (cgroup / "cpu.max").is_file():
            quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = (
                (cgroup / "cpu" / f"cpu.cfs_{part}_us").read_text(encoding="ascii").strip()
                for part in ("quota", "period")
            )
    except (OSError, ValueError):
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


class Settings(BaseSettings):
    """Settings from arguments first, then from the environment (`LIMBECK_` and the name in capitals).

    Raises pydantic's ValidationError; `describe_settings_error` puts it into words.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    bundles: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(), description="bundle folders to serve: a JSON list, or paths separated by commas"
    )
    model_folder: Path | None = Field(
        default=None, description="a folder that is a bundle, or whose direct sub-folders (not hidden) all are"
    )
    default_model: str | None = Field(
        default=None, description="model that answers `POST /v1/classify`; not needed when there is only one"
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(default=8000, ge=1, le=65535, description="TCP port to listen on")
    operations_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="TCP port for `/metrics` and `/v1/admin`, which the other then does not have; both have `/health`",
    )
    workers: PositiveInt | Literal["auto"] = Field(
        default=AUTO,
        description="processes behind the port; `auto`: as many as CPUs, at most 8, and one where there is a GPU",
    )
    threads: int = Field(default=1, ge=1, le=1024, description="ONNX Runtime threads within one inference call")
    sessions: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="inference calls side by side, per model; unset: usable CPUs / `threads` on CPU, two on a GPU",
    )
    variant: str = Field(
        default="auto", min_length=1, description="`auto` picks for the hardware; or the name of one of the variants"
    )
    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = Field(
        default="auto",
        description="`auto` takes CUDA where it works and a variant is made for it, else the CPU; "
        "`cpu`, `cuda` or `tensorrt` is taken, or ends the start",
    )
    arena: bool = Field(
        default=True, description="whether ONNX Runtime keeps freed memory of the CPU for the next call"
    )
    spinning: bool = Field(
        default=False, description="whether ONNX Runtime's threads burn CPU while they wait; only for `threads` over 1"
    )
    cuda_graphs: bool = Field(
        default=False, description="whether each shape of a batch is recorded once on CUDA and replayed"
    )
    tensorrt_cache: Path | None = Field(
        default=None, description="folder where TensorRT keeps what it built; without: it builds at every start"
    )
    max_batch_size: int = Field(default=16, ge=1, description="most entries in one batch")
    max_batch_tokens: int = Field(
        default=4096, ge=1, description="most padded tokens (longest × rows) in one batch; one entry always goes"
    )
    max_padding_tokens: int | None = Field(
        default=None,
        ge=0,
        description="most padding one entry may add to a batch; unset: timed at the start on a CPU, no bound on a GPU",
    )
    max_batch_delay_ms: float = Field(
        default=0, ge=0, le=60_000, description="how long a batch that is not full may wait for more entries"
    )
    bulk_aging_ms: float = Field(
        default=1000, ge=0, description="bulk entries go before interactive ones that come so much later"
    )
    hung_session_s: float = Field(
        default=30, gt=0, description="a call of the model that takes longer is given up and its session replaced"
    )
    queue_capacity: int = Field(default=1024, ge=1, description="most entries waiting, per model; beyond: 429")
    queue_capacity_tokens: int = Field(default=131072, ge=1, description="most tokens waiting, per model; beyond: 429")
    max_body_bytes: int = Field(default=1048576, ge=1, description="largest request body; beyond: 413")
    max_inputs: int = Field(default=128, ge=1, description="most entries in one request; beyond: 422")
    max_text_chars: int = Field(default=131_072, ge=1, description="most characters in one text; beyond: 422")
    max_header_bytes: int = Field(
        default=32_768, ge=1024, description="largest head of a request: its first line and headers; beyond: 431"
    )
    max_headers: int = Field(default=100, ge=16, description="most headers in one request; beyond: 431")
    max_connections: int = Field(
        default=4096, ge=1, description="most open connections, over all workers; beyond: 503 and closed"
    )
    head_timeout_s: float = Field(
        default=10, gt=0, le=3600, description="how long the head of a request may take to come; then 408"
    )
    body_timeout_s: float = Field(
        default=30, gt=0, le=3600, description="how long the body of a request may take to come; then 408"
    )
    send_timeout_s: float = Field(
        default=30, gt=0, le=3600, description="how long a client may take to read its answer before it is cut off"
    )
    keep_alive_timeout_s: int = Field(
        default=75, ge=1, le=3600, description="how long a connection may stay open between two requests"
    )
    explain: bool = Field(default=True, description="whether `/v1/explain` is there")
    max_explain_words: int = Field(
        default=128, ge=2, description="most words of an explanation; of longer texts neighbors are put together"
    )
    explain_concurrency: int = Field(
        default=1, ge=1, le=1024, description="explanations at once, in each worker process; beyond: 429"
    )
    default_timeout_ms: int = Field(
        default=30_000,
        ge=0,
        le=MAX_TIMEOUT_MS,
        description="deadline of requests that name none, from their arrival; 0: none",
    )
    shutdown_timeout_s: int = Field(
        default=25, ge=1, description="how long accepted requests may take after SIGTERM before they get 503"
    )
    watch_models_s: float = Field(
        default=0,
        ge=0,
        le=86_400,
        description="how often bundles are looked at for changes, which are taken into service; 0: only when told to",
    )
    admin: bool = Field(
        default=False,
        description="whether a key that is an administrator's may load, unload and roll out models over HTTP",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="origins whose pages may ask from a browser, such as https://example.org: a JSON list, or "
        "separated by commas; none: no CORS",
    )
    keys_file: Path | None = Field(
        default=None, description="file of API keys (docs/configuration.md); without one everybody may ask"
    )
    rollouts_file: Path | None = Field(
        default=None, description="file of rollouts in force from the start (docs/operations.md)"
    )
    request_log: bool = Field(default=False, description="whether each request gets a line of JSON on standard output")
    log_texts: float = Field(
        default=0,
        ge=0,
        le=1,
        description="share of requests whose texts stand in the request log, personal data masked; 0: none",
    )
    otlp_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="collector of OpenTelemetry that takes traces over HTTP, such as http://collector:4318",
    )
    trace_share: float = Field(
        default=0.01, ge=0, le=1, description="share of requests that are traced, of those that come without a trace"
    )
    tei_metrics: bool = Field(
        default=False, description="whether `/metrics` also has the names of Text Embeddings Inference, `te_…`"
    )
    playground: bool = Field(
        default=True, description="whether there is the page `/playground`, to try models in a browser"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least severe log line")

    @field_validator("bundles", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            try:
                return json.loads(value)
            except ValueError as error:
                raise ValueError(f"begins like a JSON list but is none ({error})") from error
        return [part.strip() for part in value.split(",") if part.strip()]

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is no origin; expected scheme, host and perhaps a port, as in https://example.org:8443"
                )
        return tuple(origin.lower() for origin in value)

    @field_validator("log_level", "provider", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.bundles and self.model_folder is None:
            raise ValueError(f"nothing to serve; name a bundle, or set {ENV_PREFIX}BUNDLES or {ENV_PREFIX}MODEL_FOLDER")
        if self.max_inputs > self.queue_capacity:
            raise ValueError(
                f"max_inputs is {self.max_inputs}, more than queue_capacity ({self.queue_capacity}): "
                "such a request could never be accepted; lower the one or raise the other"
            )
        if self.operations_port == self.port:
            raise ValueError(f"operations_port is {self.port}, the same as port; choose another")
        if self.admin and self.keys_file is None:
            raise ValueError(
                f"admin is on, but there are no keys: set {ENV_PREFIX}KEYS_FILE to a file with a key that is an "
                "administrator's, or anybody could unload the models"
            )
        if self.log_texts and not self.request_log:
            raise ValueError(f"log_texts is {self.log_texts}, but request_log is off: set {ENV_PREFIX}REQUEST_LOG=true")
        if self.cuda_graphs and self.provider in ("cpu", "tensorrt"):
            raise ValueError(f"cuda_graphs is on, but provider is {self.provider}; expected cuda or auto")
        if self.tensorrt_cache is not None and self.provider != "tensorrt":
            raise ValueError(f"tensorrt_cache is set, but provider is {self.provider}; expected tensorrt")
        return self


def describe_settings_error(error: ValidationError) -> str:
    """Put pydantic's error about Settings into one line a problem: name, environment variable, what is wrong."""
    lines = []
    for problem in error.errors(include_url=False):
        message = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:
            lines.append(f"settings: {message}")
            continue
        name = str(problem["loc"][0])
        if name not in Settings.model_fields:
            lines.append(f"{name}: no such setting; docs/configuration.md lists them")
            continue
        found = repr(problem["input"])
        lines.append(f"{name} ({ENV_PREFIX}{name.upper()}): {message[:1].lower()}{message[1:]}, found {found[:100]}")
    return "\n".join(lines)
