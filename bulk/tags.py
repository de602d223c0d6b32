"""Entities in texts, found in this process: a bundle's model, tokenizer and grouping as the service has them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bulk.answers import Tagged
from bulk.classifier import batches_by_length, windows
from bulk.closing import Closing
from bulk.model import load_model
from bundle import Bundle, Manifest
from service.engine.postprocess import FloatArray
from service.engine.tagging import Strategy, Tagger
from service.engine.tokenization import Encoding, TextInput, pad
from service.settings import usable_cpus
from service.variants import AUTO

_LEFT_OUT = frozenset({"O"})


class Tags(Closing):
    """A bundle that finds entities in this process; tokens are joined as by the service's strategy `simple`."""

    def __init__(self, bundle: Bundle, *, variant: str = AUTO) -> None:
        """Load the model; raises BundleError, EngineError, StartupError or TaskError, which say what is wrong."""
        self._model = load_model(bundle, variant, tags=True)
        manifest = self.manifest
        self._tagger = Tagger(self._model.tokenizer, manifest.labels, manifest.activation, manifest.temperature)
        self._workers = ThreadPoolExecutor(usable_cpus(), thread_name_prefix="limbeck-tag")

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self._model.bundle.manifest

    def answers(self, inputs: Sequence[TextInput]) -> list[Tagged | str]:
        """Return the entities of each text, in order, or why there are none to tell; raises EngineError."""
        return [answer for _, window in windows(inputs) for answer in self._window(list(map(str, window)))]

    def close(self) -> None:
        """End its threads as soon as the batches that run are done; what waits is dropped."""
        self._workers.shutdown(cancel_futures=True)

    def _window(self, texts: list[str]) -> list[Tagged | str]:
        encodings = self._model.tokenizer.encode(texts)
        batches = list(batches_by_length([encoding.tokens for encoding in encodings]))
        found: dict[int, Tagged | str] = {}
        work = self._workers.map(lambda batch: self._tag([(texts[i], encodings[i]) for i in batch]), batches)
        for batch, of_batch in zip(batches, work, strict=True):
            found.update(zip(batch, of_batch, strict=True))
        return [found[index] for index in range(len(texts))]

    def _tag(self, batch: Sequence[tuple[str, Encoding]]) -> list[Tagged | str]:
        logits = self._model.session.run(pad([encoding for _, encoding in batch], self._model.tokenizer.pad_id))
        return [
            self._entities(text, rows[: encoding.tokens], encoding)
            for (text, encoding), rows in zip(batch, logits, strict=True)
        ]

    def _entities(self, text: str, rows: FloatArray, encoding: Encoding) -> Tagged | str:
        if not np.isfinite(rows).all():
            return "the model's scores are not finite numbers"
        found = self._tagger.entities(text, [(rows, encoding)], Strategy.SIMPLE, _LEFT_OUT)
        return Tagged({((one.start, one.end), one.entity): one.score for one in found})
