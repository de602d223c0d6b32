"""Which loss, temperature, unlabeled share, augmentation and schedule teach a student best, judged on validation.

    .venv/bin/python -m benchmarks.compression.ablation movie-reviews-minilm --data DIR --out runs/ablation

One teacher, then the same student taught in every way of WAYS. The test split is not looked at. Beside the task's
metric stand the share of the teacher's decisions that the student shares and the mean squared difference of their
logits: both move less by chance than accuracy does. Under several `--seeds` each has a teacher of its own, where
`--teacher` names none. A way that is done is not run again.
"""

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.compression.recipe_list import FOLDER, NAMES, data_override, recipe_path
from benchmarks.compression.seeds import Measure, Row, collect, show
from compress import distill, pipeline, teacher
from compress.batches import predict_all
from compress.models import load_classifier
from compress.recipe_file import load_recipe
from compress.stage import Run
from compress.tasks import METRICS
from service.engine.tokenization import Tokenizer

ONE, TWO = "distill.augment.copies=1", "distill.augment.copies=2"
PLAIN = [f"distill.augment.{kind}=0" for kind in ("crop", "word_dropout", "span_swap", "nearest_words")]
WAYS: dict[str, list[str]] = {
    "the recipe without augmentation: logit MSE": [],
    "one augmented copy, all kinds": [ONE],
    "one augmented copy, crops alone": [ONE, *PLAIN, "distill.augment.crop=1"],
    "one augmented copy, nearest words alone": [ONE, *PLAIN, "distill.augment.nearest_words=0.2"],
    "one augmented copy, word dropout alone": [ONE, *PLAIN, "distill.augment.word_dropout=0.2"],
    "two augmented copies, all kinds": [TWO],
    "two augmented copies, crops alone": [TWO, *PLAIN, "distill.augment.crop=1"],
    "KL, temperature 1": ["distill.loss=kl"],
    "KL, temperature 4": ["distill.loss=kl", "distill.temperature=4"],
    "MSE, 30 % hard labels": ["distill.hard_label_weight=0.3"],
    "no unlabeled text": ["distill.unlabeled_share=0"],
    "half the unlabeled text": ["distill.unlabeled_share=0.5"],
    "twice the epochs": ["distill.epochs=8", "distill.patience=8"],
    "R-Drop, weight 1": ["distill.r_drop=1"],
    "hidden states, weight 1": ["distill.intermediate.hidden=1"],
    "relations of the last layer, weight 1": [
        "distill.intermediate.relation=1",
        "distill.intermediate.relation_heads=2",
    ],
    "FGM, epsilon 1": ["distill.fgm_epsilon=1"],
}


MEASURES = {
    "score": Measure("metric on validation", ".4f", compared=True),
    "agreement": Measure("the teacher's decisions", ".4f"),
    "difference": Measure("squared difference of logits", ".3f", compared=True),
    "seconds": Measure("seconds", ".0f"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, help="a fine-tuned teacher, the same under every seed")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[13])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), metavar="WAY", help="some of them")
    parser.add_argument("--set", nargs="*", default=[], help="keys of the recipe, for all ways")
    arguments = parser.parse_args()
    path = recipe_path(arguments.name)
    common = [data_override(arguments.name, arguments.data), "distill.augment.copies=0", *arguments.set]
    if arguments.teacher:
        common += [f"teacher.model={arguments.teacher.resolve()}", "teacher.fine_tune=null"]
    out = arguments.out / arguments.name
    console = Console(stderr=True, highlight=False)
    pipeline.quiet_libraries()

    def measure(seed: int, way: str) -> Row:
        console.rule(f"seed {seed}: {way}")
        folder = out / f"seed-{seed}"
        run = Run(load_recipe(path, [*common, f"seed={seed}", *WAYS[way]]), FOLDER, folder, console, {})
        pipeline.run_until(run, "distill")
        return judge(run)

    results = collect(out / "ablation.json", common, arguments.seeds, arguments.ways, measure)
    show(results, MEASURES)


def judge(run: Run) -> Row:
    """Return how a taught student does on the validation split."""
    rows = {}
    for stage, tokenizer_name in (("teacher", teacher.TOKENIZER), ("distill", distill.TOKENIZER)):
        folder = run.folder(stage)
        tokenizer = Tokenizer(folder / tokenizer_name, run.recipe.data.max_length)
        model = load_classifier(str(folder / "model"), run.splits.labels, 0, run.spec, keep_head=True)
        encoded = run.spec.encode(tokenizer, run.splits.validation, run.splits.labels)
        rows[stage] = predict_all(model, encoded, tokenizer.pad_id)
    decisions = {stage: run.spec.decide(found, None) for stage, found in rows.items()}
    counts = run.spec.count(run.splits.validation, encoded, decisions["distill"], run.splits.labels)
    same = (decisions["teacher"] == decisions["distill"]).reshape(len(rows["teacher"]), -1).all(axis=1)
    return {
        "score": METRICS[run.spec.metric](counts),
        "agreement": float(same.mean()),
        "difference": float(np.mean((rows["teacher"] - rows["distill"]) ** 2)),
        "seconds": run.reports["distill"].seconds,
    }


if __name__ == "__main__":
    main()
