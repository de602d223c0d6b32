"""Which room may import what (docs/architecture.md), read from the source and tried for real."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OTHERS = {
    "bulk": {"compress", "limbeck", "loadtest"},
    "bundle": {"bulk", "compress", "service", "limbeck", "loadtest"},
    "compress": {"bulk", "limbeck", "loadtest"},
    "loadtest": {"bulk", "bundle", "compress", "service", "limbeck"},
    "service": {"bulk", "compress", "limbeck", "loadtest"},
}
# imports that each room must never make, directly: other rooms, and packages
FORBIDDEN = {
    "bulk": {"torch", "transformers", "onnx", "onnxruntime", "fastapi", "starlette", "asyncio"},
    "bundle": {"torch", "transformers", "onnx", "onnxruntime", "numpy", "fastapi"},
    "loadtest": {"torch", "transformers", "onnx", "onnxruntime", "fastapi", "starlette", "uvicorn", "pydantic"},
    "service": {"torch", "transformers", "optimum", "onnx", "pyarrow", "yaml", "typer", "rich"},
    "compress": {"fastapi", "starlette", "uvicorn", "onnxruntime"},
}
ENGINE_FOR_COMPRESS = {f"service.engine.{name}" for name in ("session", "tokenization", "postprocess", "errors")}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
    return found


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", FORBIDDEN)
def test_no_import_crosses_a_wall(room: str) -> None:
    assert files(room)
    for path in files(room):
        crossed = {name for name in imports(path) if name.partition(".")[0] in FORBIDDEN[room] | OTHERS[room]}
        assert not crossed, f"{path.relative_to(ROOT)} imports {crossed}"


def test_bundle_imports_the_standard_library_and_pydantic_only() -> None:
    for path in files("bundle"):
        tops = {name.partition(".")[0] for name in imports(path)}
        assert tops <= set(sys.stdlib_module_names) | {"pydantic", "bundle"}, path


def test_compress_takes_what_evaluates_and_nothing_else_of_the_engine() -> None:
    for path in files("compress"):
        assert {name for name in imports(path) if name.startswith("service")} <= ENGINE_FOR_COMPRESS, path


def test_bulk_takes_what_classifies_and_nothing_of_http() -> None:
    allowed = ENGINE_FOR_COMPRESS | {
        "service.engine.decisions",
        "service.engine.session_options",
        "service.engine.tagging",
        "service.golden",
        "service.sessions",
        "service.settings",
        "service.variants",
    }
    for path in files("bulk"):
        assert {name for name in imports(path) if name.startswith("service")} <= allowed, path


def test_a_load_generator_needs_a_few_small_packages_only() -> None:
    small = {"hdrh", "httptools", "msgspec", "numpy", "prometheus_client", "rich", "typer", "loadtest"}
    for path in files("loadtest"):
        tops = {name.partition(".")[0] for name in imports(path)}
        assert tops <= set(sys.stdlib_module_names) | small, path


def test_only_the_session_imports_onnxruntime() -> None:
    users = {str(path.relative_to(ROOT)) for path in files("service") if "onnxruntime" in imports(path)}
    assert users == {"service/engine/session.py"}


def test_the_queue_decides_with_the_standard_library_alone() -> None:
    found = {name.partition(".")[0] for name in imports(ROOT / "service/engine/queue.py")}
    assert found <= set(sys.stdlib_module_names) - {"asyncio", "time", "threading"}


def run_without(modules: list[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in which `modules` cannot be imported."""
    blocker = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {modules!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""
    return subprocess.run([sys.executable, "-c", blocker + code], capture_output=True, text=True, cwd=ROOT, check=False)


OFFLINE = ["torch", "transformers", "optimum", "onnx", "pyarrow", "yaml", "safetensors", "compress", "bulk"]


def test_the_service_starts_without_the_offline_half() -> None:
    result = run_without(OFFLINE, "import service.app, service.server, service.golden; print('ok')")
    assert result.stdout == "ok\n", result.stderr


def test_help_loads_neither_half() -> None:
    code = """
import sys, limbeck
from typer.testing import CliRunner
assert CliRunner().invoke(limbeck.app, ["--help"]).exit_code == 0
heavy = {"torch", "transformers", "onnxruntime", "fastapi", "pydantic", "numpy", "onnx", "tokenizers"}
print(sorted(heavy & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.stdout == "[]\n", result.stdout + result.stderr


@pytest.mark.parametrize(
    ("missing", "arguments", "pip"),
    [
        ("torch", ["compress", "examples/movie-reviews/recipe.yaml"], "pip install 'limbeck[compress]'"),
        ("onnxruntime", ["verify", "{bundle}"], "pip install 'limbeck[cpu]'"),
        ("onnxruntime", ["serve", "{bundle}"], "pip install 'limbeck[cpu]'"),
        ("onnxruntime", ["classify", "{bundle}", "--text", "good"], "pip install 'limbeck[cpu]'"),
        ("hdrh", ["loadtest", "run", "http://127.0.0.1:1", "--rate", "5"], "pip install 'limbeck[loadtest]'"),
        ("pyarrow", ["classify", "{bundle}", "{rows}", "--out", "{rows}.out.parquet"], "pip install 'limbeck[bulk]'"),
    ],
)
def test_a_missing_extra_gives_one_line_with_the_pip_command(
    missing: str, arguments: list[str], pip: str, tiny_bundle: object, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.parquet"
    rows.touch()
    arguments = [argument.format(bundle=tiny_bundle.folder, rows=rows) for argument in arguments]
    result = run_without([missing], f"import sys, limbeck; sys.argv[1:] = {arguments!r}; limbeck.main()")
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    assert pip in result.stderr


def test_nothing_phones_home(tmp_path: Path) -> None:
    """ONNX Runtime writes an identifier for its telemetry to the home folder unless it is told not to."""
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    code = "import service.app, compress.pipeline, limbeck"
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, check=True)
    assert list(tmp_path.rglob("*onnxruntime*")) == []
