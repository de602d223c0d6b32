"""The servers that are compared: how each is started, in which settings, and how it is asked.

The settings are those that the peer's documentation recommends for production on a machine with few cores: batching on,
access logs off, and one or two processes; the benchmark tries each and keeps the fastest.
"""

import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.server import HOST, Launch, Wire
from benchmarks.serving.venvs import PEERS, environment, version

LIMBECK = "limbeck"


@dataclass(frozen=True)
class Setting:
    """One way to run a peer."""

    name: str
    variables: Mapping[str, str]


@dataclass(frozen=True)
class Peer:
    """A server other than Limbeck."""

    folder: str
    package: str
    """The distribution whose version is printed."""
    command: tuple[str, ...]
    """The first word lies in the virtual environment; $NAME stands for a variable."""
    wire: Wire
    settings: tuple[Setting, ...]
    ports: tuple[str, ...] = ("PEER_PORT",)
    """Variables that get the port and those after it."""
    calibrated: bool = True
    """Whether it divides the logits by the bundle's temperature."""

    def launch(
        self, setting: Setting, bundle: Path, variant: str, port: int, environments: Path, scratch: Path
    ) -> Launch:
        """Return how to start it; raises UnavailableError when it cannot be installed."""
        binaries = environment(self.folder, environments).resolve()
        variables = {
            "PEER_BUNDLE": str(bundle.resolve()),
            "PEER_VARIANT": variant,
            "PEER_THREADS": "1",
            "PATH": f"{binaries}:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": str(PEERS / "shared"),
            # PyTriton's workers load libpython by name and must not find an older one of the system's
            "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR") or "",
            "PYTHONDONTWRITEBYTECODE": "1",
            "TOKENIZERS_PARALLELISM": "false",  # as Limbeck has it: the tokenizer's own threads only cost CPU here
            "HOME": str(scratch),
            "TMPDIR": str(scratch),
            **_QUIET,
            **{name: str(port + offset) for offset, name in enumerate(self.ports)},
            **setting.variables,
        }
        words = [variables[word[1:]] if word.startswith("$") else word for word in self.command]
        return Launch([str(binaries / words[0]), *words[1:]], variables, PEERS / self.folder, port)

    @property
    def version(self) -> str:
        """The package's name and pinned version."""
        return f"{self.package} {version(self.folder, self.package)}"


def limbeck(checkout: Path, python: str, bundle: Path, variant: str, port: int, chosen: Mapping[str, str]) -> Launch:
    """Return how to start Limbeck from a checkout, with its defaults and `chosen` settings (LIMBECK_…)."""
    command = [python, str(checkout / "limbeck.py"), "serve", str(bundle.resolve())]
    command += ["--variant", variant, "--port", str(port)]
    return Launch(command, {"PYTHONPATH": str(checkout), **chosen}, checkout, port)


# Nobody's telemetry, nobody's hub.
_QUIET = {
    "ORT_DISABLE_TELEMETRY": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    "DO_NOT_TRACK": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "HF_HUB_OFFLINE": "1",
}

Scores = list[dict[str, float]]


def _inputs(texts: list[str]) -> dict[str, Any]:
    return {"inputs": texts}


def _named(results: Any) -> Scores:
    return [{entry["label"]: entry["score"] for entry in result} for result in results]


def _tensor(shape: list[int], texts: list[str]) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "shape": shape, "datatype": "BYTES", "data": texts}]}


def _rows(answer: Any, labels: Sequence[str]) -> Scores:
    flat = next(output for output in answer["outputs"] if output["name"] == "scores")["data"]
    width = len(labels)
    return [dict(zip(labels, flat[i : i + width], strict=True)) for i in range(0, len(flat), width)]


LIMBECK_WIRE = Wire("/v1/classify", _inputs, lambda answer, _: _named(one["labels"] for one in answer["results"]))
_PLAIN = Wire("/classify", _inputs, lambda answer, _: _named(answer["results"]))
_UVICORN = ("--host", HOST, "--port", "$PEER_PORT", "--workers", "$PEER_WORKERS", "--no-access-log")


def _litserve(workers: int, batch: int, timeout_s: float, fast_queue: bool) -> Setting:
    queue = ", fast_queue" if fast_queue else ""
    return Setting(
        f"workers_per_device={workers}, num_api_servers={workers}, max_batch_size={batch}, batch_timeout={timeout_s}"
        + queue,
        {
            "PEER_WORKERS": str(workers),
            "PEER_API_SERVERS": str(workers),
            "PEER_BATCH": str(batch),
            "PEER_BATCH_TIMEOUT_S": str(timeout_s),
            "PEER_FAST_QUEUE": "1" if fast_queue else "0",
        },
    )


def _bentoml(workers: int, batch: int, latency_ms: int) -> Setting:
    return Setting(
        f"workers={workers}, max_batch_size={batch}, max_latency_ms={latency_ms}",
        {"PEER_WORKERS": str(workers), "PEER_BATCH": str(batch), "PEER_MAX_LATENCY_MS": str(latency_ms)},
    )


def _mlserver(workers: int, batch: int, time_s: float) -> Setting:
    return Setting(
        f"parallel_workers={workers}, max_batch_size={batch}, max_batch_time={time_s}",
        {
            "MLSERVER_PARALLEL_WORKERS": str(workers),
            "MLSERVER_MODEL_MAX_BATCH_SIZE": str(batch),
            "MLSERVER_MODEL_MAX_BATCH_TIME": str(time_s),
            "MLSERVER_DEBUG": "false",
        },
    )


def _pytriton(instances: int, batch: int, delay_us: int) -> Setting:
    return Setting(
        f"{instances} instances, max_batch_size={batch}, max_queue_delay_microseconds={delay_us}",
        {"PEER_INSTANCES": str(instances), "PEER_BATCH": str(batch), "PEER_QUEUE_DELAY_US": str(delay_us)},
    )


PEER_LIST = (
    Peer(
        "fastapi",
        "fastapi",
        ("uvicorn", "app:app", "--loop", "uvloop", "--http", "httptools", "--log-level", "warning", *_UVICORN),
        _PLAIN,
        (
            Setting("2 workers, async def", {"PEER_WORKERS": "2", "PEER_ROUTE": "async def"}),
            Setting("2 workers, def", {"PEER_WORKERS": "2", "PEER_ROUTE": "def"}),
        ),
    ),
    Peer(
        "litserve",
        "litserve",
        ("python", "api.py"),
        _PLAIN,
        (_litserve(1, 16, 0.001, False), _litserve(2, 16, 0.001, False), _litserve(2, 16, 0.001, True)),
    ),
    Peer(
        "bentoml",
        "bentoml",
        ("bentoml", "serve", "service:Service", "--host", HOST, "--port", "$PEER_PORT"),
        Wire("/classify", _inputs, lambda answer, _: _named(answer)),
        (_bentoml(1, 32, 1000), _bentoml(2, 32, 1000)),
    ),
    Peer(
        "mlserver",
        "mlserver",
        ("mlserver", "start", "."),
        Wire("/v2/models/classifier/infer", lambda texts: _tensor([len(texts)], texts), _rows),
        (_mlserver(0, 16, 0.001), _mlserver(1, 16, 0.001), _mlserver(2, 16, 0.001)),
        ports=("MLSERVER_HTTP_PORT", "MLSERVER_GRPC_PORT", "MLSERVER_METRICS_PORT"),
    ),
    Peer(
        "pytriton",
        "nvidia-pytriton",
        ("python", "server.py"),
        Wire("/v2/models/classifier/infer", lambda texts: _tensor([len(texts), 1], texts), _rows),
        (_pytriton(1, 16, 0), _pytriton(2, 16, 0)),
        ports=("PEER_PORT", "PEER_GRPC_PORT", "PEER_METRICS_PORT"),
    ),
    Peer(
        "infinity",
        "infinity_emb",
        ("python", "launch.py"),
        Wire(
            "/classify", lambda texts: {"model": "classifier", "input": texts}, lambda answer, _: _named(answer["data"])
        ),
        (Setting("engine optimum, batch-size=32", {"PEER_BATCH": "32"}),),
        calibrated=False,
    ),
)
