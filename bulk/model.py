"""A bundle made ready to classify on this machine, as the service does it."""

import logging
from dataclasses import dataclass
from pathlib import Path

from bulk.errors import TaskError
from bundle import LAYOUT, Bundle, Task, open_bundle
from service.engine.session import Session
from service.engine.tokenization import Tokenizer
from service.golden import check_golden
from service.sessions import load_session
from service.variants import AUTO, Choice

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A verified bundle with one of its variants in memory."""

    bundle: Bundle
    choice: Choice
    session: Session
    tokenizer: Tokenizer


def load_model(given: Path | Bundle, variant: str, *, tags: bool = False) -> Model:
    """Verify the bundle unless it is open, load the variant that fits this machine, check its golden scores here.

    With `tags` it finds entities, and the tokenizer tells places. Raises BundleError, EngineError, StartupError when no
    variant fits, and TaskError when the bundle does the other.
    """
    bundle = given if isinstance(given, Bundle) else open_bundle(given)
    if (bundle.manifest.task is Task.TOKEN_CLASSIFICATION) is not tags:
        doing, expected = ("tag", "token-classification") if tags else ("classify", "one that gives labels to texts")
        raise TaskError(
            f"cannot {doing} with bundle {bundle.folder}: found task {bundle.manifest.task}, expected {expected}; "
            "`limbeck verify` runs it"
        )
    tokenizer = Tokenizer(bundle.path(LAYOUT.tokenizer), bundle.manifest.max_length, offsets=tags)

    def make(choice: Choice) -> Session:
        return Session(bundle.path(choice.variant.file), provider=choice.provider, labels=len(bundle.manifest.labels))

    choice, session = load_session(bundle.manifest, variant, AUTO, make)
    check_golden(bundle, choice.variant.name, session, tokenizer)
    if choice.variant.forced:
        reason = choice.variant.gate_reason
        log.warning("variant %s did not pass its gate and runs by order: %s", choice.variant.name, reason)
    return Model(bundle, choice, session, tokenizer)
