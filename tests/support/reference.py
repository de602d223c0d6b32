"""What a bundle's files answer, by onnxruntime, tokenizers and scipy alone: none of our code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from scipy.special import expit, softmax
from seqeval.metrics import accuracy_score as tag_accuracy_score
from seqeval.metrics import f1_score as entity_f1_score
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import MultiLabelBinarizer
from tokenizers import Tokenizer


class Served:
    """One variant of a bundle."""

    def __init__(self, folder: Path, variant: str) -> None:
        self.manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        self.labels: list[str] = self.manifest["labels"]
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.manifest["max_length"])
        path = folder / f"model.{variant}.onnx"
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def logits(self, text: Any, pair: str | None = None) -> tuple[np.ndarray, list[int | None]]:
        """The output for one text (C,), or for the tokens of words (T, C), and the word of each token."""
        encoding = self._tokenizer.encode(text, pair, is_pretokenized=isinstance(text, list))
        arrays = {
            "input_ids": encoding.ids,
            "attention_mask": [1] * len(encoding.ids),
            "token_type_ids": encoding.type_ids,
        }
        names = [node.name for node in self._session.get_inputs()]
        feed = {name: np.array([arrays[name]], dtype=np.int64) for name in names}
        return self._session.run(None, feed)[0][0], encoding.word_ids

    def scores(self, text: Any, pair: str | None = None) -> np.ndarray:
        logits = self.logits(text, pair)[0] / self.manifest["temperature"]
        return expit(logits) if self.manifest["activation"] == "sigmoid" else softmax(logits, axis=-1)

    def answer(self, row: dict[str, Any]) -> Any:
        """A label, a set of labels, or a tag for each word; words that were cut are taken for no entity."""
        if "tokens" in row:
            logits, words = self.logits(row["tokens"])
            tags = ["O"] * len(row["tokens"])
            for position, word in reversed(list(enumerate(words))):  # the first token of a word counts
                if word is not None:
                    tags[word] = self.labels[int(logits[position].argmax())]
            return tags
        scores = self.scores(row["text"], row.get("text_pair"))
        if "labels" in row:
            thresholds = self.manifest["thresholds"] or dict.fromkeys(self.labels, 0.5)
            return {label for label, score in zip(self.labels, scores, strict=True) if score >= thresholds[label]}
        return self.labels[int(scores.argmax())]

    def quality(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """The metrics that the manifest states, by scikit-learn and seqeval."""
        found = [self.answer(row) for row in rows]
        if "tokens" in rows[0]:
            truth = [row["tags"] for row in rows]
            return {
                "entity_f1": entity_f1_score(truth, found),
                "accuracy": tag_accuracy_score(truth, found),
                "macro_f1": entity_f1_score(truth, found, average="macro"),
            }
        if "labels" in rows[0]:
            binarizer = MultiLabelBinarizer(classes=self.labels)
            truth, guesses = (binarizer.fit_transform(sets) for sets in ([row["labels"] for row in rows], found))
            return {
                "micro_f1": f1_score(truth, guesses, average="micro"),
                "accuracy": accuracy_score(truth, guesses),
                "macro_f1": f1_score(truth, guesses, average="macro"),
            }
        truth = [row["label"] for row in rows]
        return {"accuracy": accuracy_score(truth, found), "macro_f1": f1_score(truth, found, average="macro")}
