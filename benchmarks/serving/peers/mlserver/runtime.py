"""MLServer with a custom runtime; adaptive batching and parallel workers come from its settings."""

import numpy as np
from classifier import Classifier
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Runtime(MLModel):
    """Texts in, each one's label and scores out, in the Open Inference Protocol."""

    async def load(self) -> bool:
        """Load the model."""
        self.classifier = Classifier()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Run what adaptive batching merged."""
        scores = self.classifier.scores(StringCodec.decode_input(payload.inputs[0]))
        best = [self.classifier.labels[index] for index in scores.argmax(axis=1)]
        return InferenceResponse(
            model_name=self.name,
            outputs=[
                NumpyCodec.encode_output("scores", scores.astype(np.float32)),
                StringCodec.encode_output("label", best),
            ],
        )
