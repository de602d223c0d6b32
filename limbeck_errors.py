"""Errors that a user can act on, as the command line tells them: one message and an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import typer
from rich.console import Console

# the modules that an extra brings; every other module comes with any install
_EXTRAS = {
    "compress": frozenset(
        {
            "jinja2",
            "matplotlib",
            "model2vec",
            "onnx",
            "optimum",
            "pyarrow",
            "py3langid",
            "safetensors",
            "scipy",
            "sklearn",
            "torch",
            "transformers",
            "yaml",
        }
    ),
    "cpu": frozenset({"onnxruntime"}),
    "llm": frozenset({"httpx"}),
    "loadtest": frozenset({"hdrh"}),
    "otel": frozenset({"opentelemetry"}),
    "train": frozenset({"accelerate", "optuna", "peft", "tensorboard"}),
}

_errors = Console(stderr=True, highlight=False)


@contextmanager
def reported(stopped: str = "stopped") -> Iterator[None]:
    """Turn the errors that a user can act on into one message and an exit code: 1, or 3 when the gate failed.

    `stopped` is what is said after Ctrl-C.
    """
    try:
        yield
    except _kinds() as error:
        table = getattr(error, "table", None)
        if table is not None:
            _errors.print(table)
        raise _failure(str(error), getattr(error, "exit_code", 1)) from error
    except OSError as error:
        raise _failure(f"{error.filename or 'files'}: {error.strerror or error}") from error
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        extra = next((name for name, modules in _EXTRAS.items() if module in modules), None)
        if extra is None:
            raise
        or_gpu = " (on a CUDA machine: 'limbeck[gpu]')" if extra == "cpu" else ""
        raise _failure(f"this needs {module}: pip install 'limbeck[{extra}]'{or_gpu}") from error
    except KeyboardInterrupt:
        _errors.print(stopped)
        raise typer.Exit(130) from None


def _kinds() -> tuple[type[Exception], ...]:
    """Return the errors of those packages that are there: the service's image has not all of them."""
    from bulk.errors import BulkError
    from bundle import BundleError
    from service.engine.errors import EngineError
    from service.errors import StartupError

    kinds: tuple[type[Exception], ...] = (BulkError, BundleError, EngineError, StartupError)
    if find_spec("compress") is not None:
        from compress.errors import CompressError

        kinds += (CompressError,)
    if find_spec("loadtest") is not None:
        from loadtest.errors import LoadTestError

        kinds += (LoadTestError,)
    return kinds


def _failure(message: str, code: int = 1) -> typer.Exit:
    _errors.print(f"error: {message}", markup=False, soft_wrap=True)
    return typer.Exit(code)
