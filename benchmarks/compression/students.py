"""Train and compress every student of one data set, after one teacher; benchmarks.compression.table then measures.

    .venv/bin/python -m benchmarks.compression.students movie-reviews-mpnet --data DIR --model FOLDER

DIR holds the data set's folder (train, validation, test and perhaps unlabeled .jsonl). The recipe is that of
benchmarks/compression/recipes/NAME.yaml; each student changes the keys that STUDENTS says. Teacher and teacher's logits
are computed once, since the pipeline's stages are kept while what they read is the same. A killed run goes on where it
was; a student that is done is not made again. `--teacher FOLDER` takes a teacher that was fine-tuned before.
`--ladder` makes the smaller students of the 6-layer one instead of what the recipe's `student.init` names.
"""

import argparse
import shutil
from pathlib import Path

from rich.console import Console

from benchmarks.compression.recipe_list import NAMES, data_override, recipe_path
from compress.pipeline import compress

STUDENTS = {
    "6 layers": ["student.layers=6", "distill.epochs=2"],  # near the teacher from the start
    "3 layers": ["student.layers=3"],
    "2 x 128": ["student.layers=2", "student.hidden_size=128", "distill.learning_rate=7.0e-4", "distill.epochs=6"],
}
LADDER = Path("students/6layers/model")
KEPT = {
    "teacher.onnx": "work/export/teacher.fp32.onnx",
    "teacher.tokenizer.json": "work/teacher/tokenizer.json",
    "student.onnx": "work/export/model.fp32.onnx",
    "student.tokenizer.json": "work/distill/tokenizer.json",
    "calibration.json": "work/calibrate/calibration.json",
    "manifest.json": "bundle/manifest.json",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--data", type=Path, required=True, help="folder with the data set's folder")
    parser.add_argument("--model", help="the pre-trained teacher, where the recipe's is not installed")
    parser.add_argument("--teacher", type=Path, help="a fine-tuned teacher; the recipe's fine_tune is left out")
    parser.add_argument("--ladder", action="store_true", help="begin the others from the 6-layer student")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--only", nargs="*", choices=list(STUDENTS), help="some of the students")
    parser.add_argument("--set", nargs="*", default=[], help="more keys of the recipe, for all students")
    arguments = parser.parse_args()
    recipe = recipe_path(arguments.name)
    out = arguments.out / arguments.name
    common = [data_override(arguments.name, arguments.data), *arguments.set]
    if arguments.model:
        common.append(f"teacher.model={arguments.model}")
    if arguments.teacher:
        common += [f"teacher.model={arguments.teacher.resolve()}", "teacher.fine_tune=null"]
    console = Console(highlight=False)
    for student in arguments.only or STUDENTS:
        kept = out / "students" / student.replace(" ", "")
        if (kept / "manifest.json").is_file():
            console.print(f"{student}: done earlier")
            continue
        console.rule(f"{arguments.name}: {student}")
        begins = [f"student.init={(out / LADDER).resolve()}"] if arguments.ladder and student != "6 layers" else []
        compress(recipe, [*common, *STUDENTS[student], *begins], out, console, force=True)
        if student == "6 layers":
            copy_student(out, out / LADDER)
        keep({name: out / source for name, source in KEPT.items()}, kept)


def keep(files: dict[str, Path], folder: Path) -> None:
    """Copy what benchmarks.compression.table measures; the manifest comes last, and says that the student is done."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in files.items():
        shutil.copyfile(source, folder / name)


def copy_student(out: Path, folder: Path) -> None:
    """Copy the student that a run has taught, its tokenizer beside its weights, so that a recipe can name it."""
    shutil.copytree(out / "work/distill/model", folder, dirs_exist_ok=True)
    shutil.copyfile(out / "work/distill/tokenizer.json", folder / "tokenizer.json")


if __name__ == "__main__":
    main()
