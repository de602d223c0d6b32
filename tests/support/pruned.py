"""A tiny teacher whose tokenizer has pieces, and a recipe that prunes its vocabulary and then the whole of it."""

import json
import string
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tests.support.bundles import WORDS
from tests.support.command import limbeck
from tests.support.models import save_tiny_model, write_tiny_recipe
from tests.support.runs import Finished

STAGES = (
    "teacher",
    "targets",
    "distill",
    "vocabulary",
    "prune",
    "export",
    "calibrate",
    "quantize",
    "baselines",
    "evaluate",
    "package",
)
PARTS: dict[str, Any] = {
    "student": {"layers": 2},
    "vocabulary": {"epochs": 1},
    # bytes do not depend on a clock
    "target": {"size_mb": 0.14},
    "prune": {"steps": 2, "texts": 48, "final_epochs": 3, "hidden": False, "layers": False},
}


def piece_tokenizer() -> Tokenizer:
    """WordPiece of the data's words, others that no text has, letters and some pieces.

    Not trained: `WordPieceTrainer` breaks ties otherwise in each process, and with them go the shapes of students.
    """
    words = [*WORDS, "unseen", "elsewhere", "nobody", "writes", "this"]
    letters = string.ascii_lowercase
    inner = [f"##{letter}" for letter in letters]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    whole = sorted(word for word in words if len(word) > 1)
    vocabulary = [*special, *letters, *inner, "th", "mo", "gr", "##vie", "##eat", "##ful", "##seen", *whole]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def write_pruned_recipe(folder: Path, task: str = "single-label", **changes: Any) -> Path:
    """Write data, a teacher with pieces, and a recipe that prunes; a change to None leaves that part out."""
    parts = {key: value for key, value in (PARTS | changes).items() if value is not None}
    path = write_tiny_recipe(folder, task, **parts)
    tokenizer = piece_tokenizer()
    save_tiny_model(folder / "teacher", layers=2, tokenizer=tokenizer, vocabulary=tokenizer.get_vocab_size())
    return path


def finish_pruned(folder: Path, task: str = "single-label", **changes: Any) -> Finished:
    """Run such a recipe to its end, through the command."""
    recipe = write_pruned_recipe(folder, task, **changes)
    result = limbeck("compress", recipe, "--out", folder / "out")
    assert result.returncode == 0, result.stderr + result.stdout
    return Finished(recipe, folder / "out", result.stdout)


def summary(out: Path, stage: str) -> dict[str, Any]:
    """What a finished stage says of itself."""
    record = json.loads((out / "work" / stage / "stage.json").read_text(encoding="utf-8"))
    return dict(record["report"]["summary"])
