"""The student before it is taught, and whether it can be taught as the recipe asks."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from compress.anatomy import anatomy_of
from compress.errors import ModelError
from compress.factorize import check_rank
from compress.intermediate import IntermediateLoss
from compress.models import (
    check_max_length,
    check_same_vocabulary,
    check_vocabulary_size,
    load_classifier,
    load_tokenizer,
    resolve_model,
    save_tokenizer,
)
from compress.narrow import student_of
from compress.quantize_weights import MIN_MATRIX_ELEMENTS
from compress.stage import Run
from compress.tokens import check_kind
from service.engine.tokenization import Tokenizer


def load_student(run: Run, folder: Path) -> nn.Module:
    """Load a student of a run, its labels in the data's order."""
    return load_classifier(str(folder), run.splits.labels, run.recipe.seed, run.spec, keep_head=True)


def check_student(run: Run, teacher: nn.Module, tokenizer: Path, scratch: Path) -> None:
    """Raise ModelError for whatever would stop the student later: found out now, not after the teacher's training.

    `scratch` is a file that may be written and is removed again.
    """
    try:
        student, _ = make_student(run, teacher, tokenizer, scratch)
        if run.recipe.vocabulary is not None:
            check_kind(json.loads(scratch.read_text(encoding="utf-8")))
            if run.recipe.vocabulary.embedding_rank is not None:
                check_rank(student, run.recipe.vocabulary.embedding_rank)
    finally:
        scratch.unlink(missing_ok=True)
    inside_loss(run, student, teacher)
    if run.recipe.target is not None:
        anatomy_of(student)
    check_quantizable(student)


def check_quantizable(student: nn.Module) -> None:
    """Raise ModelError for a student in which INT8 has nothing to do."""
    body: Any = student.base_model
    sizes = [module.weight.numel() for module in body.modules() if isinstance(module, nn.Linear)]
    if max(sizes, default=0) < MIN_MATRIX_ELEMENTS:
        raise ModelError(
            f"student: its largest matrix has {max(sizes, default=0)} numbers, and INT8 is for matrices of "
            f"{MIN_MATRIX_ELEMENTS}; expected a student that is wider"
        )


def make_student(run: Run, teacher: nn.Module, tokenizer: Path, path: Path) -> tuple[nn.Module, Tokenizer]:
    """Return the student as it starts, and its tokenizer, which is written to `path`; raises ModelError.

    `teacher` and its `tokenizer` (a file) are what a student with `init: teacher` is made of.
    """
    recipe, labels = run.recipe, run.splits.labels
    if recipe.student.init == "teacher":
        path.write_bytes(tokenizer.read_bytes())
        encoder, reference = teacher, recipe.teacher.model
    else:
        reference = resolve_model(recipe.student.init, run.recipe_folder)
        save_tokenizer(load_tokenizer(reference), path)
        if recipe.distill.intermediate.used:
            # hidden states are compared token by token
            check_same_vocabulary(reference, Tokenizer(tokenizer, recipe.data.max_length))
        encoder = load_classifier(reference, labels, recipe.seed, run.spec, keep_head=False)
    student = student_of(encoder, recipe.student, labels, recipe.seed)
    own = Tokenizer(path, recipe.data.max_length)
    check_max_length(student, recipe.data.max_length, reference)
    check_vocabulary_size(student, own, reference)
    return student, own


def untaught_student(run: Run) -> nn.Module:
    """Return the student without anything of the fine-tuned teacher: made of the model that the teacher began as."""
    recipe, labels = run.recipe, run.splits.labels
    init = recipe.teacher.model if recipe.student.init == "teacher" else recipe.student.init
    keep_head = recipe.student.init == "teacher" and recipe.teacher.fine_tune is None
    reference = resolve_model(init, run.recipe_folder)
    encoder = load_classifier(reference, labels, recipe.seed, run.spec, keep_head=keep_head)
    return student_of(encoder, recipe.student, labels, recipe.seed)


def inside_loss(run: Run, student: nn.Module, teacher: nn.Module) -> IntermediateLoss | None:
    """Return the loss on hidden states that the recipe asks for, or None; raises ModelError where it cannot be."""
    inside = run.recipe.distill.intermediate
    if not inside.used:
        return None
    return IntermediateLoss(student, teacher, seed=run.recipe.seed, **inside.model_dump())
