"""Bundles and files that several tests of `bulk` need, and the command in a process of its own."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper
from scipy.special import expit, softmax

from bulk.files import Job
from bulk.rows import TextColumns
from bundle import LAYOUT, Activation, Bundle, Task
from tests.service.helpers import VOCABULARY, changed
from tests.support.bundles import TEXTS, WORDS, tiny_model

ROOT = Path(__file__).parents[2]


def _exact_weights() -> dict[str, NDArray[np.float32]]:
    """Weights with which every sum is exact, so that scores cannot depend on the order of additions."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in tiny_model(0).graph.initializer}
    return {"embeddings": np.round(16 * weights["embeddings"]) / 16, "classifier": np.eye(8, 2, dtype=np.float32)}


def reference_logits(*texts: str) -> NDArray[np.float64]:
    """Logits of the exact model, from its weights with numpy alone; texts of more than 16 tokens are cut."""
    weights, ids = _exact_weights(), [2]
    for text in texts:
        ids += [VOCABULARY.index(word) if word in VOCABULARY else 1 for word in text.lower().split()] + [3]
    if len(ids) > 16:
        assert len(texts) == 1
        ids = [*ids[:15], 3]
    return weights["embeddings"][ids].astype(np.float64).mean(axis=0) @ weights["classifier"].astype(np.float64)


def exact_bundle(bundle: Bundle, folder: Path, *, texts: Sequence[Sequence[str]] = (), **changes: object) -> Bundle:
    """A copy of the tiny bundle whose scores are bit-equal whatever their batch mates; `texts` are golden inputs."""
    model = tiny_model(0)
    for tensor in model.graph.initializer:
        if tensor.name in _exact_weights():
            tensor.CopyFrom(numpy_helper.from_array(_exact_weights()[tensor.name].astype(np.float32), tensor.name))
    activation = expit if changes.get("activation") is Activation.SIGMOID else softmax

    def scores_of(*given: str) -> list[float]:
        return [float(score) for score in activation(reference_logits(*given))]

    lines = [
        json.dumps(
            {"text": given[0], "text_pair": given[1] if given[1:] else None, "scores": {"fp32": scores_of(*given)}}
        )
        for given in texts or [(text,) for text in TEXTS]
    ]
    files = {LAYOUT.model("fp32"): model.SerializeToString(), LAYOUT.golden: ("\n".join(lines) + "\n").encode()}
    return changed(bundle, folder, files=files, **changes)


def pair_bundle(bundle: Bundle, folder: Path) -> Bundle:
    """The exact model comparing two texts."""
    return exact_bundle(
        bundle, folder, texts=[("a good movie", "the plot")], name="pairs", text_pair=True, task=Task.PAIR
    )


def multi_label_bundle(bundle: Bundle, folder: Path, **changes: object) -> Bundle:
    """The exact model with two independent labels."""
    several = {"name": "several", "task": Task.MULTI_LABEL, "activation": Activation.SIGMOID}
    return exact_bundle(bundle, folder, **(several | changes))


def sentences(count: int, seed: int = 0) -> list[str]:
    """Texts of 1 to 20 words, some of which the tokenizer does not know and some of which are cut."""
    source = random.Random(seed)
    words = [*WORDS, "unknown", "Größe", "電影"]
    return [" ".join(source.choices(words, k=source.randint(1, 20))) for _ in range(count)]


def job(file: Path | None, out: Path | None, kind: str, **changes: object) -> Job:
    """What `limbeck classify` would make of these options."""
    options = {"errors": None, "text": "text", "text_pair": None, "prefix": "", "all_scores": False, "restart": False}
    options |= changes
    texts = TextColumns(options.pop("text"), options.pop("text_pair"))
    return Job(file=file, out=out, kind=kind, texts=texts, **options)


def run_limbeck(*arguments: object, given: bytes = b"", setup: str = "") -> subprocess.CompletedProcess[bytes]:
    """Run `limbeck ARGUMENTS` to its end; `setup` is Python that runs in its process first."""
    return subprocess.run(command(arguments, setup), input=given, capture_output=True, cwd=ROOT, check=False)


def start_limbeck(*arguments: object, setup: str = "") -> subprocess.Popen[bytes]:
    """Start `limbeck ARGUMENTS`."""
    pipe = subprocess.PIPE
    # its own session: a signal that a test sends to it reaches nobody else
    return subprocess.Popen(
        command(arguments, setup), stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT, start_new_session=True
    )


def command(arguments: Sequence[object], setup: str) -> list[str]:
    words = [os.fspath(word) if isinstance(word, os.PathLike) else str(word) for word in arguments]
    # a shell that starts tests in the background has SIGINT ignored, and children keep that
    interruptible = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    # lines that depend on how fast the machine is
    quiet = "import bulk.progress; bulk.progress._LOG_EVERY_SECONDS = 1e9\n"
    given = f"import sys; sys.argv = ['limbeck', *{words!r}]\n"
    return [sys.executable, "-c", f"{interruptible}{quiet}{given}{setup}\nimport limbeck\nlimbeck.main()\n"]
