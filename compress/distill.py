"""Stage: teach the student what the teacher says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from compress import targets, teacher
from compress.batches import TrainingSet
from compress.ensemble import shared_rows
from compress.models import load_classifier
from compress.qat import fake_quantized
from compress.recipe_training import Distill
from compress.soft_loss import distillation
from compress.stage import CHECKPOINTS, Run
from compress.student import inside_loss, make_student
from compress.team import ALONE, Team
from compress.train import Beside, Loss, train
from service.engine.tokenization import Tokenizer

TOKENIZER, MODEL = "tokenizer.json", "model"
_QAT_RATE = 0.1


def run(run: Run, folder: Path) -> dict[str, Any]:
    """Write `model/`, the student of the best epoch, and its `tokenizer.json`."""
    recipe, splits, spec = run.recipe, run.splits, run.spec
    source = run.folder("teacher")
    model = load_classifier(str(source / teacher.MODEL), splits.labels, recipe.seed, spec, keep_head=True)
    student, tokenizer = make_student(run, model, source / teacher.TOKENIZER, folder / TOKENIZER)
    lesson = Lesson.of(run, tokenizer, run.team)
    if is_teacher(run, student, model):
        run.console.print("  the student still is the teacher: it is pruned first and taught then")
        summary: dict[str, Any] = {"epochs": 0}
    else:
        inside = inside_loss(run, student, model)
        # not the order of batches that the teacher saw
        options: dict[str, Any] = {"seed": recipe.seed + 1, "beside": None if inside is None else Beside(inside, model)}
        summary = lesson.teach(student, recipe.distill, folder / CHECKPOINTS / "float", "distilling", **options)
    if run.student_stages[-1] == "distill":
        summary |= lesson.teach_rounding(student, folder)
    teacher.save_model(student, folder / MODEL)
    return {"parameters": teacher.count_parameters(student), "texts": len(lesson.data.encoded.encodings), **summary}


def is_teacher(run: Run, student: nn.Module, model: nn.Module) -> bool:
    """Whether a student that is to be pruned is all of the teacher, which has nothing to teach it yet."""
    recipe = run.recipe
    all_of_it = teacher.count_parameters(student) == teacher.count_parameters(model)
    return recipe.target is not None and recipe.student.init == "teacher" and all_of_it


@dataclass(frozen=True)
class Lesson:
    """The transfer set in a student's own tokens, with what the teacher says of it."""

    run: Run
    tokenizer: Tokenizer
    data: TrainingSet
    loss: Loss
    team: Team
    """Who trains; every process of it must take the same lesson."""

    @classmethod
    def of(cls, run: Run, tokenizer: Tokenizer, team: Team = ALONE) -> "Lesson":
        """Return what the recipe teaches."""
        spec, folder, labels = run.spec, run.folder("targets"), run.splits.labels
        examples = targets.transfer_set(run, folder)
        encoded, logits = spec.encode(tokenizer, examples, labels), np.load(folder / targets.LOGITS, mmap_mode="r")
        if spec.row == "word":
            teachers = Tokenizer(run.folder("teacher") / teacher.TOKENIZER, run.recipe.data.max_length)
            encoded, logits = shared_rows(encoded, spec.encode(teachers, examples, labels), logits)
        data = TrainingSet(encoded, logits)
        return cls(run, tokenizer, data, distillation(run.recipe.distill, multi_label=spec.multi_label), team)

    def teach(
        self, student: nn.Module, config: Distill, folder: Path, title: str, *, seed: int, beside: Beside | None = None
    ) -> dict[str, Any]:
        """Train a student, in place; checkpoints lie in `folder`. Return the summary of the training."""
        run, spec, splits = self.run, self.run.spec, self.run.splits
        return train(
            student,
            self.data,
            self.loss,
            teacher.validation_score(spec, self.tokenizer, splits.validation, splits.labels),
            config,
            pad_id=self.tokenizer.pad_id,
            seed=seed,
            folder=folder,
            console=run.console,
            title=title,
            metric=spec.metric,
            beside=beside,
            team=self.team,
            events_folder=run.events_folder,
        )

    def teach_rounding(self, student: nn.Module, folder: Path) -> dict[str, Any]:
        """Train on, feeling INT8's rounding, where the recipe asks for it; `folder` is the stage's."""
        recipe = self.run.recipe
        config = recipe.distill
        if not config.quantization_aware_epochs:
            return {}
        changed = {"epochs": config.quantization_aware_epochs, "learning_rate": config.learning_rate * _QAT_RATE}
        bits, tables = recipe.quantize.weight_bits, recipe.quantize.embeddings
        with fake_quantized(student, weight_bits=bits, embeddings=tables):
            place = folder / CHECKPOINTS / "quantized"
            changed_config = config.model_copy(update=changed)
            aware = self.teach(student, changed_config, place, "quantization-aware", seed=recipe.seed + 2)
        return {"quantization_aware": aware}
