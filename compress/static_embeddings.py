"""A teacher's encoder as one vector a token, distilled with model2vec: text in, mean of its tokens' vectors out."""

import contextlib
import copy
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from model2vec import StaticModel
from model2vec.distill import distill_from_model
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn
from transformers import PreTrainedTokenizerFast

from compress.batches import autocast_dtype, best_device
from compress.errors import ModelError

FloatArray = NDArray[np.float32]


class StaticEmbeddings:
    """What model2vec (https://github.com/MinishLab/model2vec) makes of an encoder with its own defaults.

    Every token of the vocabulary is sent through the encoder alone, the outputs are reduced by PCA to at most 256
    dimensions and weighted by the token's expected frequency (SIF, after Zipf's law).
    """

    def __init__(self, model: nn.Module, tokenizer_path: Path) -> None:
        """Distil the base encoder of a transformers classifier; `model` is left as it is. Raises ModelError."""
        classifier: Any = model
        try:
            tokenizer = Tokenizer.from_file(str(tokenizer_path))
            device = best_device()
            encoder = copy.deepcopy(classifier.base_model).to(device)
            dtype = autocast_dtype("auto", device)
            if dtype is not None:
                encoder = encoder.to(dtype)
            # model2vec asks the hub about a model whose name is no path on this disk
            encoder.name_or_path = str(tokenizer_path.parent.resolve())
            fast = PreTrainedTokenizerFast(
                tokenizer_object=tokenizer,
                pad_token=(tokenizer.padding or {}).get("pad_token"),
                unk_token=getattr(tokenizer.model, "unk_token", None),
            )
            with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that cannot be switched off
                self._model: StaticModel = distill_from_model(encoder, fast, device=str(device))
        except Exception as error:  # transformers, tokenizers and model2vec raise many kinds
            raise ModelError(
                f"{tokenizer_path}: model2vec cannot make static embeddings of this model: {error}; expected an "
                "encoder and the tokenizer.json it was trained with"
            ) from error
        # padding would enter the mean of every text shorter than its longest batch mate
        self._model.tokenizer.no_padding()
        self._model.tokenizer.no_truncation()

    @property
    def dimensions(self) -> int:
        """The length of one vector."""
        return int(self._model.dim)

    @property
    def size_bytes(self) -> int:
        """The size of the table of vectors."""
        return int(self._model.embedding.nbytes)

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return one vector of length 1 for each text (N, D); zeros where no token is known."""
        if not texts:
            return np.zeros((0, self.dimensions), dtype=np.float32)
        return np.asarray(self._model.encode(list(texts), use_multiprocessing=False), dtype=np.float32)

    def windows(self, sentences: Sequence[Sequence[str]]) -> FloatArray:
        """Return the vectors of the words before, at and after each word (N, 3D); zeros past a sentence's ends."""
        distinct = sorted({word for words in sentences for word in words})
        table = np.vstack([np.zeros((1, self.dimensions), dtype=np.float32), self.encode(distinct)])
        row = {word: index for index, word in enumerate(distinct, start=1)}
        windows: list[tuple[int, int, int]] = []
        for words in sentences:
            rows = [0, *(row[word] for word in words), 0]
            windows.extend(zip(rows, rows[1:], rows[2:], strict=False))
        indices = np.array(windows, dtype=np.int64).reshape(-1, 3)
        return np.asarray(table[indices].reshape(-1, 3 * self.dimensions))
