"""The serving engine in-process: the same bundle, variant, tokenizer, session and activation, without HTTP."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bulk.closing import Closing
from bulk.errors import BulkError, InputError
from bulk.inputs import WindowBound, checked
from bulk.model import load_model
from bundle import Bundle, Manifest
from service.engine.decisions import Decider
from service.engine.postprocess import FloatArray, activate, rank
from service.engine.tokenization import Encoding, TextInput, pad
from service.settings import usable_cpus
from service.variants import AUTO

T = TypeVar("T")

_MAX_BATCH_SIZE = 16
_MAX_BATCH_TOKENS = 4096
_TOKENIZED_TOGETHER = 256  # texts; bounds what the tokenizer holds of each beside its ids
_AHEAD = 2  # windows in work beside the one that is taken


@dataclass(frozen=True, slots=True)
class Result:
    """What the model says of one text or pair."""

    labels: list[tuple[str, float]]
    """Labels with their scores, highest first; all of them, or `top_k`."""
    predicted: tuple[str, ...]
    """The label; in multi-label every label whose score is at least its threshold, perhaps none."""
    confident: bool | None
    """Whether the highest score reaches the bundle's abstention threshold; None where it states none."""
    truncated: bool
    """Whether the text was longer than the model reads."""
    tokens: int
    """Number of tokens the model read, special ones included."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One window's results: scores (N, C) float32 and, of each text, its number of tokens and whether it was cut."""

    scores: FloatArray
    tokens: list[int]
    truncated: list[bool]


class Classifier(Closing):
    """A bundle that classifies in this process. Its methods may be called from several threads at once.

    `bundle` is verified (every hash, and the golden scores on this machine); `variant` is `auto`, which picks for the
    machine as the service does, or a variant's name; `sessions` is the number of inference calls side by side, one a
    usable CPU unless given. Close it, or use it as a context manager, to give its threads back.
    """

    def __init__(self, bundle: str | Path | Bundle, *, variant: str = AUTO, sessions: int | None = None) -> None:
        """Load the bundle; raises BundleError, EngineError, StartupError or TaskError, which say what is wrong."""
        self._model = load_model(bundle if isinstance(bundle, Bundle) else Path(bundle), variant)
        self._decider = Decider(self.manifest)
        sessions = usable_cpus() if sessions is None else sessions
        self._workers = ThreadPoolExecutor(sessions, thread_name_prefix="limbeck-infer")
        # wait for workers, and so are not workers themselves
        self._windows = ThreadPoolExecutor(_AHEAD, thread_name_prefix="limbeck-window")
        self._closed = False

    @property
    def bundle(self) -> Bundle:
        """The verified bundle."""
        return self._model.bundle

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self._model.bundle.manifest

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of the columns of `scores`."""
        return self.manifest.labels

    @property
    def variant(self) -> str:
        """The name of the variant that runs."""
        return self._model.choice.variant.name

    @property
    def provider(self) -> str:
        """The ONNX Runtime execution provider that it runs on."""
        return self._model.choice.provider

    def classify(self, inputs: str | Iterable[Any], top_k: int | None = None) -> list[Result]:
        """Return a Result for each text, or for each pair (text, text_pair), in order.

        A single text is taken as a list of one. Raises InputError, which names the input, and EngineError.
        """
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k: found {top_k}, expected at least 1")
        results = []
        for scored in self._stream_checked(inputs):
            predicted = self._decider.predicted(scored.scores)
            confident = self._decider.confident(scored.scores)
            for row, scores in enumerate(scored.scores):
                results.append(
                    Result(
                        labels=rank(scores, self.labels, top_k),
                        predicted=tuple(self.labels[index] for index in predicted[row]),
                        confident=None if confident is None else confident[row],
                        truncated=scored.truncated[row],
                        tokens=scored.tokens[row],
                    )
                )
        return results

    def scores(self, inputs: str | Iterable[Any]) -> FloatArray:
        """Return the scores (N, C) float32 of N texts or pairs, a column a label; raises what `classify` raises."""
        windows = [scored.scores for scored in self._stream_checked(inputs)]
        return np.concatenate(windows) if windows else np.empty((0, len(self.labels)), dtype=np.float32)

    def stream(
        self, windows: Iterable[tuple[T, Sequence[TextInput]]], *, ahead: int = _AHEAD
    ) -> Iterator[tuple[T, Scored]]:
        """Classify windows of checked inputs, in order, each with whatever it carries; `ahead` are read ahead.

        Scores that are not finite are given as they are. Raises EngineError, and BulkError once it is closed.
        """
        if self._closed:
            raise BulkError("this Classifier is closed; make a new one")
        pending: deque[tuple[T, Future[Scored]]] = deque()
        try:
            for carried, inputs in windows:
                pending.append((carried, self._windows.submit(self._score, inputs)))
                if len(pending) > ahead:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            for _, future in pending:
                future.cancel()

    def close(self) -> None:
        """End its threads as soon as the batches that run are done; what waits is dropped."""
        self._closed = True
        self._workers.shutdown(wait=False, cancel_futures=True)  # first: windows wait for them
        self._windows.shutdown(cancel_futures=True)
        self._workers.shutdown()

    def _stream_checked(self, inputs: str | Iterable[Any]) -> Iterator[Scored]:
        given = [inputs] if isinstance(inputs, str) else inputs
        number = 0
        for _, scored in self.stream(windows(checked(given, pairs=self.manifest.text_pair))):
            broken = np.flatnonzero(~np.isfinite(scored.scores).all(axis=1))
            if len(broken):
                raise BulkError(f"inputs[{number + int(broken[0])}]: the model's scores are not finite numbers")
            number += len(scored.scores)
            yield scored

    def _score(self, inputs: Sequence[TextInput]) -> Scored:
        """Classify one window: tokenize, batch texts of like length, run the batches side by side."""
        chunks = [inputs[at : at + _TOKENIZED_TOGETHER] for at in range(0, len(inputs), _TOKENIZED_TOGETHER)]
        tokenized = self._workers.map(self._model.tokenizer.encode, chunks)
        encodings = [encoding for chunk in tokenized for encoding in chunk]
        tokens = [encoding.tokens for encoding in encodings]
        batches = list(batches_by_length(tokens))
        run = self._workers.map(self._run, ([encodings[index] for index in batch] for batch in batches))
        scores = np.empty((len(inputs), len(self.labels)), dtype=np.float32)
        for batch, of_batch in zip(batches, run, strict=True):
            scores[batch] = of_batch
        return Scored(scores, tokens, [encoding.truncated for encoding in encodings])

    def _run(self, encodings: Sequence[Encoding]) -> FloatArray:
        logits = self._model.session.run(pad(encodings, self._model.tokenizer.pad_id))
        return activate(logits, self.manifest.activation, self.manifest.temperature)


def batches_by_length(
    tokens: Sequence[int], max_batch_size: int = _MAX_BATCH_SIZE, max_batch_tokens: int = _MAX_BATCH_TOKENS
) -> Iterator[list[int]]:
    """Yield the indices of texts that run together, the longest first; a batch's padded tokens are bounded."""
    order = sorted(range(len(tokens)), key=tokens.__getitem__, reverse=True)
    at = 0
    while at < len(order):
        size = max(1, min(max_batch_size, max_batch_tokens // tokens[order[at]]))
        yield order[at : at + size]
        at += size


def windows(inputs: Iterable[TextInput]) -> Iterator[tuple[None, list[TextInput]]]:
    """Yield the inputs in windows of bounded size, each with nothing to carry."""
    bound = WindowBound()
    window: list[TextInput] = []
    for given in inputs:
        window.append(given)
        if bound.full_after(len(given) if isinstance(given, str) else len(given[0]) + len(given[1])):
            yield None, window
            window = []
    if window:
        yield None, window
