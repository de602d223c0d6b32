"""A tiny, seeded bundle made without torch: mean of word embeddings, then one matrix."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from bundle import Activation, Bundle, Manifest, Task, Variant, write_bundle
from bundle.layout import LAYOUT
from bundle.manifest import GoldenInput, Lineage
from service.engine.postprocess import activate
from service.engine.session import Session
from service.engine.tokenization import Tokenizer as EngineTokenizer
from service.engine.tokenization import pad

WORDS = ("good", "bad", "great", "awful", "a", "the", "movie", "film", "plot", "is", "was", "not", "very", "dull")
TEXTS = ["a good movie", "the plot was awful", "not very good", "great film", "dull dull dull the film is bad"]
LABELS = ("negative", "positive")


def tiny_tokenizer() -> Tokenizer:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return tokenizer


def tiny_model(seed: int = 0, labels: int = 2, width: int = 8) -> onnx.ModelProto:
    """input_ids, attention_mask (B, T) int64 -> logits (B, labels) float32."""
    rng = np.random.default_rng(seed)
    weights = {
        "embeddings": rng.normal(size=(4 + len(WORDS), width)).astype(np.float32),
        "classifier": rng.normal(size=(width, labels)).astype(np.float32),
        "last": np.array([-1], dtype=np.int64),
        "sequence": np.array([1], dtype=np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["embeddings", "input_ids"], ["words"]),
        helper.make_node("Cast", ["attention_mask"], ["mask_float"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask_float", "last"], ["mask"]),
        helper.make_node("Mul", ["words", "mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "sequence"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "sequence"], ["count"], keepdims=0),
        helper.make_node("Div", ["total", "count"], ["mean"]),
        helper.make_node("MatMul", ["mean", "classifier"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", labels])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def tiny_manifest(**changes: object) -> Manifest:
    fields: dict[str, object] = {
        "name": "tiny",
        "version": "1",
        "task": Task.SINGLE_LABEL,
        "labels": LABELS,
        "activation": Activation.SOFTMAX,
        "max_length": 16,
        "input_names": ("input_ids", "attention_mask"),
        "output_name": "logits",
        "variants": (
            Variant(
                name="fp32",
                file=LAYOUT.model("fp32"),
                dtype="float32",
                execution_providers=("CPUExecutionProvider",),
                golden_tolerance=1e-4,
                batch_invariant=True,
                gate_passed=True,
            ),
        ),
        "lineage": Lineage(
            recipe={},
            data={},
            seeds={"seed": 0},
            library_versions={},
            machine="test",
            created_at="2026-01-01T00:00:00Z",
        ),
        "files": {},
    }
    return Manifest.model_validate(fields | changes)


def make_bundle(folder: Path, *, name: str = "tiny", seed: int = 0) -> Bundle:
    """Write a complete, honest bundle to `folder`."""
    scratch = folder.parent / f".{folder.name}-scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    model, tokenizer = scratch / "model.onnx", scratch / "tokenizer.json"
    onnx.save(tiny_model(seed), model)
    tiny_tokenizer().save(str(tokenizer))
    engine_tokenizer = EngineTokenizer(tokenizer, 16)
    session = Session(model)
    golden = []
    for text in TEXTS:
        logits = session.run(pad(engine_tokenizer.encode([text]), engine_tokenizer.pad_id))
        scores = tuple(float(s) for s in activate(logits, Activation.SOFTMAX)[0])
        golden.append(GoldenInput(text=text, label=None, scores={"fp32": scores}).model_dump_json())
    return write_bundle(
        folder,
        tiny_manifest(name=name),
        {
            LAYOUT.model("fp32"): model,
            LAYOUT.tokenizer: tokenizer,
            LAYOUT.golden: ("\n".join(golden) + "\n").encode(),
            LAYOUT.card: b"# tiny\n",
        },
    )
