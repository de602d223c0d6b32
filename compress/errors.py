"""What can go wrong while compressing.

CompressError
├── RecipeError      the recipe is not valid: unknown key, wrong value, missing file
│   └── MeasurementsError  `prune.measurements` is not there, or of something else
├── DataError        the data is not usable; names file and line
├── ModelError       a teacher or student cannot be loaded or built
│   └── UnloadableError  its files are not there, or cannot be read or written
├── LlmError         a language model that labels texts cannot be used, or stopped answering
├── TrainingError    training cannot go on (for example, the loss is not finite)
│   ├── LostError    another process that trains with this one has ended
│   └── UnsavedError  a checkpoint cannot be written
├── ExportError      the ONNX file does not do what the torch model does
├── QuantizeError    the graph holds nothing that can be quantised, or a weight left its half step
├── EvaluationError  a model gives what cannot be measured
└── GateError        no variant kept enough quality to be shipped
"""

from typing import Any


class CompressError(Exception):
    """Compressing failed for a reason the user can act on; the message says which."""


class RecipeError(CompressError):
    """The recipe is not valid."""


class MeasurementsError(RecipeError):
    """What `prune.measurements` names is not there, or of something else."""


class DataError(CompressError):
    """The data is not usable."""


class ModelError(CompressError):
    """A teacher or student cannot be loaded or built."""


class UnloadableError(ModelError):
    """A model's files are not there, or cannot be read or written."""


class LlmError(CompressError):
    """A language model that labels texts cannot be used, or stopped answering."""


class TrainingError(CompressError):
    """Training cannot go on."""


class LostError(TrainingError):
    """Another process that trains with this one has ended."""


class UnsavedError(TrainingError):
    """A checkpoint cannot be written."""


FAULTS = (LostError, MeasurementsError, UnloadableError, UnsavedError)
"""What is no fault of the recipe's values: the same run may pass later."""


class ExportError(CompressError):
    """The exported graph does not agree with the torch model."""


class QuantizeError(CompressError):
    """The graph cannot be quantised as asked."""


class EvaluationError(CompressError):
    """A model gives what cannot be measured, such as NaN."""


class GateError(CompressError):
    """No variant kept enough quality to be shipped; `table` shows what failed, for a terminal."""

    exit_code = 3
    """Of the command: the model was made, but must not be shipped."""

    def __init__(self, message: str, table: Any = None) -> None:
        super().__init__(message)
        self.table = table
