"""What a served model does on texts like those it was made for: what its answers in service are compared with."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bundle import Task
from compress.confidence import Fitted
from compress.examples import Example
from compress.tasks import TaskSpec
from service.engine.session import Session
from service.engine.tokenization import Tokenizer, pad

MOST_TEXTS = 2000
_PERCENTILES = (50, 95, 99)


def reference_statistics(
    examples: Sequence[Example],
    spec: TaskSpec,
    labels: Sequence[str],
    fitted: Fitted,
    session: Session,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """Return the mix of the labels given, lengths in tokens and the share of unknown tokens, as JSON.

    `label_share` is of texts: in multi-label they may add up to more than 1. Models that tag have none.
    """
    encodings = tokenizer.encode([example.input for example in examples])
    lengths = np.array([encoding.tokens for encoding in encodings])
    unknown = sum(
        encoding.ids.count(tokenizer.unknown_id) for encoding in encodings if tokenizer.unknown_id is not None
    )
    found: dict[str, Any] = {
        "texts": len(examples),
        "tokens": {f"p{percentile}": float(np.percentile(lengths, percentile)) for percentile in _PERCENTILES},
        "truncated_share": sum(encoding.truncated for encoding in encodings) / len(examples),
        "unknown_token_share": unknown / int(lengths.sum()),
    }
    if spec.task is Task.TOKEN_CLASSIFICATION:
        return found
    # alone, as most texts are in service; INT8 gives the same in any company
    logits = np.concatenate([session.run(pad([encoding], tokenizer.pad_id)) for encoding in encodings])  # (N, C)
    decisions = spec.decide(logits, fitted.threshold_array, fitted.temperature)
    ids = np.arange(len(labels))
    given = decisions if decisions.ndim == 2 else decisions[:, None] == ids  # (N, C) bool
    return found | {"label_share": dict(zip(labels, given.mean(axis=0).tolist(), strict=True))}
