"""Errors that a user can act on, as the command line tells them: one message and an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

# the modules that an extra brings; every other module comes with any install
_EXTRAS = {
    "compress": frozenset(
        {
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

_GATE_FAILED = 3
"""Exit code of a run whose model was made but must not be shipped."""

_errors = Console(stderr=True, highlight=False)


@contextmanager
def reported(stopped: str = "stopped") -> Iterator[None]:
    """Turn the errors that a user can act on into one message and an exit code: 1, or 3 when the gate failed.

    `stopped` is what is said after Ctrl-C.
    """
    from bulk.errors import BulkError
    from bundle import BundleError
    from compress.errors import CompressError, GateError
    from loadtest.errors import LoadTestError
    from service.engine.errors import EngineError
    from service.errors import StartupError

    try:
        yield
    except GateError as error:
        if error.table is not None:
            _errors.print(error.table)
        raise _failure(str(error), _GATE_FAILED) from error
    except (BulkError, BundleError, CompressError, EngineError, LoadTestError, StartupError) as error:
        raise _failure(str(error)) from error
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


def _failure(message: str, code: int = 1) -> typer.Exit:
    _errors.print(f"error: {message}", markup=False, soft_wrap=True)
    return typer.Exit(code)
