"""`python -m service` with a model that takes its time on any machine: 40 ms a batch, ten minutes with `awful` in it.

python -m tests.support.slow_service
"""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.__main__ import main
from service.engine.tokenization import Encoding
from service.model import Model
from tests.support.bundles import WORDS

BATCH_S, HANG_S = 0.04, 600.0
_AWFUL = 4 + WORDS.index("awful")
_infer = Model.infer


def infer(model: Model, encodings: Sequence[Encoding]) -> NDArray[np.float32]:
    time.sleep(HANG_S if any(_AWFUL in encoding.ids for encoding in encodings) else BATCH_S)
    return _infer(model, encodings)


if __name__ == "__main__":
    Model.infer = infer
    main()
