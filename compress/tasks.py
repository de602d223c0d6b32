"""What differs between tasks; every other file is the same for all of them."""

from dataclasses import dataclass

from bundle.manifest import Activation, Task


@dataclass(frozen=True)
class TaskSpec:
    """The parts of one task."""

    task: Task
    activation: Activation
    exporter_task: str
    """The name of the task in optimum's exporter."""


SPECS = {
    Task.SINGLE_LABEL: TaskSpec(Task.SINGLE_LABEL, Activation.SOFTMAX, "text-classification"),
    Task.PAIR: TaskSpec(Task.PAIR, Activation.SOFTMAX, "text-classification"),
}
