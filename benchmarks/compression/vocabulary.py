"""What fewer tokens and factorized embeddings cost a finished student before it is taught again.

    .venv/bin/python -m benchmarks.compression.vocabulary movie-reviews-mpnet --data DIR --student FOLDER

FOLDER holds a student's model and `tokenizer.json` (`students/6layers/model` of benchmarks.compression.students, or a
run's `work/distill` with `--model work/distill/model`). Tokens are counted in the training and the unlabeled texts. Of
the test split: the share of texts that are cut otherwise, and the metric. Megabytes are those of the word embeddings in
INT8. Nothing is chosen by these figures.
"""

import argparse
import copy
import tempfile
from pathlib import Path

from benchmarks.compression.recipe_list import NAMES, data_override, recipe_path
from compress.batches import predict_all
from compress.data import load_splits
from compress.factorize import factorize
from compress.machine import describe_machine
from compress.models import load_classifier
from compress.recipe_file import load_recipe
from compress.report import markdown_table
from compress.tasks import METRICS, SPECS
from compress.vocabulary import changed_share, count_tokens, cut_embeddings, prune_tokenizer
from service.engine.tokenization import Tokenizer

MIN_COUNTS = (1, 2, 3, 5)
RANKS = (256, 128, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--student", type=Path, required=True, help="folder with tokenizer.json")
    parser.add_argument("--model", type=Path, help="folder with the weights, where it is another")
    arguments = parser.parse_args()
    recipe = load_recipe(recipe_path(arguments.name), [data_override(arguments.name, arguments.data)])
    spec = SPECS[recipe.task]
    splits = load_splits(recipe.data, recipe.seed, spec)
    path = arguments.student / "tokenizer.json"
    source = str(arguments.model or arguments.student)
    student = load_classifier(source, splits.labels, recipe.seed, spec, keep_head=True)
    old = Tokenizer(path, recipe.data.max_length)
    seen = count_tokens(old, [*splits.train, *splits.unlabeled])

    def score(model: object, tokenizer: Tokenizer) -> str:
        encoded = spec.encode(tokenizer, splits.test, splits.labels)
        decisions = spec.decide(predict_all(model, encoded, tokenizer.pad_id), None)  # type: ignore[arg-type]
        return f"{100 * METRICS[spec.metric](spec.count(splits.test, encoded, decisions, splits.labels)):.1f} %"

    width = student.get_input_embeddings().embedding_dim  # type: ignore[operator,union-attr]
    number = len(old.vocabulary())
    rows = [["all", str(number), "0.0 %", score(student, old), _megabytes(number, width)]]
    with tempfile.TemporaryDirectory() as scratch:
        new_path = Path(scratch) / "tokenizer.json"
        for least in MIN_COUNTS:
            model = copy.deepcopy(student)
            ids = prune_tokenizer(path, seen, least, new_path)
            cut_embeddings(model, ids)
            new = Tokenizer(new_path, recipe.data.max_length)
            changed = f"{100 * changed_share(old, new, splits.test):.1f} %"
            rows.append([f"seen ≥ {least}", str(len(ids)), changed, score(model, new), _megabytes(len(ids), width)])
    for rank in [rank for rank in RANKS if rank < width]:
        model = copy.deepcopy(student)
        kept = factorize(model, rank)
        name = f"all, rank {rank} ({100 * kept:.0f} % of the variance)"
        rows.append([name, str(number), "0.0 %", score(model, old), _megabytes(number, rank)])
    headings = (
        "tokens kept",
        "number",
        "test texts cut otherwise",
        METRICS[spec.metric].name,
        "MB of embeddings, INT8",
    )
    print(f"Machine: {describe_machine()}. Not taught again.\n")
    print("\n".join(markdown_table(headings, rows)))


def _megabytes(rows: int, width: int) -> str:
    return f"{rows * (width + 4) / 1e6:.1f}"


if __name__ == "__main__":
    main()
