"""Tiny bundles of every task whose answers can be told from the words: each word adds its own weights to the logits."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bundle import Activation, Bundle, Task, write_bundle
from bundle.layout import LAYOUT
from bundle.manifest import GoldenInput
from service.engine.postprocess import activate
from service.engine.session import Session
from service.engine.tokenization import TextInput, Tokenizer, pad
from tests.support.bundles import WORDS, tiny_manifest, tiny_tokenizer

Weights = Mapping[str, Sequence[float]]

SENTIMENT: Weights = {"good": (-3, 3), "great": (-6, 6), "bad": (3, -3), "awful": (6, -6), "dull": (4, -4)}
THEMES: Weights = {
    "good": (3, -3, -3),
    "great": (3, -3, -3),
    "bad": (-3, 3, -3),
    "dull": (-3, -3, -3),
    "film": (0, 0, 4),
}
TAGS: Weights = {"movie": (0, 4, 0), "film": (0, 0, 4), "plot": (0, 2, 0)}


def bundles_of_every_task(folder: Path) -> list[Path]:
    """Two versions of `reviews`, and one of each other task; `reviews` reads 16 tokens, the others 32."""
    turned = {word: tuple(reversed(weights)) for word, weights in SENTIMENT.items()}
    sentiment = {"labels": ("negative", "positive"), "golden": ["a good movie", "the plot was awful", "not very good"]}
    made = [
        word_bundle(folder / "reviews-1", "reviews", turned, **sentiment, max_length=16),
        word_bundle(folder / "reviews-2", "reviews", SENTIMENT, **sentiment, version="2", max_length=16),
        word_bundle(
            folder / "themes",
            "themes",
            THEMES,
            ("praise", "blame", "story"),
            ["a great film", "the plot was bad"],
            task=Task.MULTI_LABEL,
            activation=Activation.SIGMOID,
            thresholds={"praise": 0.5, "blame": 0.5, "story": 0.8},
        ),
        word_bundle(
            folder / "pairs",
            "pairs",
            SENTIMENT,
            ("worse", "better"),
            [("a good movie", "the plot was awful")],
            task=Task.PAIR,
            text_pair=True,
        ),
        word_bundle(
            folder / "names",
            "names",
            TAGS,
            ("O", "B-WORK", "B-KIND"),
            ["a good movie", "the film is dull"],
            task=Task.TOKEN_CLASSIFICATION,
        ),
    ]
    return [bundle.folder for bundle in made]


def word_bundle(
    folder: Path, name: str, weights: Weights, labels: Sequence[str], golden: Sequence[TextInput], **changes: object
) -> Bundle:
    """Write a bundle; of a text's words the mean counts, of token classification each word alone."""
    manifest = tiny_manifest(**({"name": name, "labels": tuple(labels), "max_length": 32} | changes))
    tags = manifest.task is Task.TOKEN_CLASSIFICATION
    scratch = folder.parent / f".{folder.name}-scratch"
    scratch.mkdir(parents=True)
    model, tokenizer = scratch / "model.onnx", scratch / "tokenizer.json"
    onnx.save(_model(weights, len(labels), per_token=tags), model)
    tiny_tokenizer().save(str(tokenizer))
    reads, session = Tokenizer(tokenizer, manifest.max_length), Session(model)
    lines = []
    for given in golden:
        logits = session.run(pad(reads.encode([given]), reads.pad_id)).reshape(-1, len(labels))
        scores = tuple(float(score) for score in activate(logits, manifest.activation).ravel())
        text, pair = (given, None) if isinstance(given, str) else given
        lines.append(GoldenInput(text=text, text_pair=pair, scores={"fp32": scores}).model_dump_json())
    files = {
        LAYOUT.model("fp32"): model,
        LAYOUT.tokenizer: tokenizer,
        LAYOUT.golden: ("\n".join(lines) + "\n").encode(),
        LAYOUT.card: b"# tiny\n",
    }
    return write_bundle(folder, manifest, files)


def _model(weights: Weights, labels: int, *, per_token: bool) -> onnx.ModelProto:
    """input_ids, attention_mask (B, T) int64 -> logits (B, labels), or (B, T, labels), float32."""
    table = np.zeros((4 + len(WORDS), labels), dtype=np.float32)
    if per_token:
        table[:, 0] = 1  # O
    for word, row in weights.items():
        table[4 + WORDS.index(word)] = row
    constants = {"table": table, "last": np.array([-1]), "sequence": np.array([1])}
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["mask_float"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask_float", "last"], ["mask"]),
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Mul", ["words", "mask"], ["logits" if per_token else "masked"]),
    ]
    if not per_token:
        nodes += [
            helper.make_node("ReduceSum", ["masked", "sequence"], ["total"], keepdims=0),
            helper.make_node("ReduceSum", ["mask", "sequence"], ["count"], keepdims=0),
            helper.make_node("Div", ["total", "count"], ["logits"]),
        ]
    shape = ["B", "T", labels] if per_token else ["B", labels]
    inputs = ("input_ids", "attention_mask")
    graph = helper.make_graph(
        nodes,
        "words",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in inputs],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
