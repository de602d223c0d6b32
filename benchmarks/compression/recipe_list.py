"""The recipes in benchmarks/compression/recipes/, and where each one's data lies."""

from pathlib import Path

FOLDER = Path(__file__).parent / "recipes"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """Return the recipe's file."""
    return FOLDER / f"{name}.yaml"


def data_override(name: str, data: Path) -> str:
    """Return the `--set` that names the data set's folder in `data`; the recipe says which it is after `# data:`."""
    lines = recipe_path(name).read_text(encoding="utf-8").splitlines()
    folder = next(line.split()[-1] for line in lines if line.startswith("# data:"))
    return f"data.folder={(data / folder).resolve()}"
