"""What every peer runs: the bundle's ONNX file, tokenizer and activation, in ONNX Runtime set as Limbeck sets it.

It runs in the peers' own virtual environments and imports nothing of Limbeck. It reads the environment:
PEER_BUNDLE (folder), PEER_VARIANT (name) and PEER_THREADS (ONNX Runtime's threads within one call).
"""

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer


class Classifier:
    """Texts to labels and scores; everything that is batched goes through the session at once."""

    def __init__(self) -> None:
        bundle = Path(os.environ["PEER_BUNDLE"])
        manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        variants = {variant["name"]: variant["file"] for variant in manifest["variants"]}
        self.labels = manifest["labels"]
        self._temperature = np.float32(manifest["temperature"])
        self._tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
        self._tokenizer.enable_truncation(manifest["max_length"])
        padding = self._tokenizer.padding or {}
        self._tokenizer.enable_padding(pad_id=padding.get("pad_id", 0), pad_token=padding.get("pad_token", "[PAD]"))
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["PEER_THREADS"])
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(
            str(bundle / variants[os.environ["PEER_VARIANT"]]),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["SkipLayerNormFusion", "BiasSkipLayerNormFusion"],
        )
        self._inputs = [node.name for node in self._session.get_inputs()]

    def scores(self, texts: list[str]) -> np.ndarray:
        """Return (N, C) float32: for each text its score for each label, in label order."""
        encodings = self._tokenizer.encode_batch_fast(texts)
        arrays = {
            "input_ids": [encoding.ids for encoding in encodings],
            "attention_mask": [encoding.attention_mask for encoding in encodings],
            "token_type_ids": [encoding.type_ids for encoding in encodings],
        }
        feed = {name: np.array(arrays[name], dtype=np.int64) for name in self._inputs}
        logits = self._session.run(None, feed)[0] / self._temperature  # (N, C)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def classify(self, texts: list[str]) -> list[list[dict[str, str | float]]]:
        """Return for each text its labels with their scores, as they stand in an answer."""
        return [
            [{"label": label, "score": score} for label, score in zip(self.labels, row, strict=True)]
            for row in self.scores(texts).tolist()
        ]
