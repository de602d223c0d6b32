"""From a request of the Open Inference Protocol to a question, and from results to its outputs."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from service.api.classify import Question, scored
from service.api.openinference_info import inputs_of, outputs_of
from service.api.tag import as_json, entities_of
from service.api.tensors import InferRequest, WantedOutput
from service.engine.queue import Priority
from service.engine.request import Classified
from service.engine.tagging import Strategy
from service.engine.tokenization import TextInput
from service.errors import InvalidInputError
from service.model import Model
from service.settings import MAX_TIMEOUT_MS


def question_of(asked: InferRequest, texts: dict[str, list[str]], model: Model) -> Question:
    """Return what is asked for; raises InvalidInputError, which names the input or the parameter."""
    names = [tensor["name"] for tensor in inputs_of(model)]
    if sorted(texts) != sorted(names) or len(asked.inputs) != len(names):
        found = ", ".join(tensor.name[:64] for tensor in asked.inputs) or "none"
        raise InvalidInputError("inputs", f"found {found}, expected {' and '.join(names)}")
    columns = [texts[name] for name in names]
    if len({len(column) for column in columns}) > 1:
        raise InvalidInputError("inputs", "found inputs of different lengths, expected one text_pair for each text")
    inputs: Sequence[TextInput] = list(zip(*columns, strict=True)) if len(columns) == 2 else columns[0]
    timeout_us, priority = asked.parameters.get("timeout", 0), asked.parameters.get("priority", 0)
    for name, value in (("timeout", timeout_us), ("priority", priority)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise InvalidInputError(f"parameters.{name}", f"found {str(value)[:40]}, expected a whole number from 0 on")
    return Question(
        inputs,
        field="text",
        timeout_ms=min(max(1, timeout_us // 1000), MAX_TIMEOUT_MS) if timeout_us else None,
        # in Triton 1 is the highest priority and 0 the default one
        priority=Priority.BULK if priority > 1 else Priority.INTERACTIVE,
    )


def wanted_of(asked: InferRequest, model: Model) -> list[WantedOutput]:
    """Return the outputs that are asked for, all where none is named; raises InvalidInputError."""
    known = [tensor["name"] for tensor in outputs_of(model)]
    wanted = asked.outputs or [WantedOutput(name) for name in known]
    if len({one.name for one in wanted}) < len(wanted):
        raise InvalidInputError("outputs", "found an output twice, expected each at most once")
    for one in wanted:
        if one.name not in known:
            raise InvalidInputError("outputs", f"found {one.name[:64]}, expected {' or '.join(known)}")
        count = one.parameters.get("classification", 0)
        if not isinstance(count, int) or isinstance(count, bool) or count < 0 or (count and one.name != "scores"):
            raise InvalidInputError(
                f"outputs.{one.name}", f"found classification {str(count)[:40]}, expected a count of scores"
            )
    return wanted


async def arrays_of(question: Question, model: Model, results: Sequence[Classified]) -> dict[str, Any]:
    """Return what each output holds: arrays whose first axis are the texts."""
    if model.tags:
        found = await entities_of(list(map(str, question.inputs)), model, results, Strategy.SIMPLE, frozenset("O"))
        return {"entities": _texts([json.dumps([as_json(one) for one in entities]) for entities in found])}
    scores = np.stack([one.scores for one in scored(question, model, results)])
    labels = [",".join(model.manifest.labels[index] for index in chosen) for chosen in model.decider.predicted(scores)]
    return {"scores": scores, "label": _texts(labels)}


def ranked(one: WantedOutput, array: Any, model: Model) -> Any:
    """Return an output, or the best of it as the classification extension writes it: "value:index:label"."""
    count = one.parameters.get("classification", 0)
    if not count:
        return array
    order = np.argsort(-array, axis=1, kind="stable")[:, :count]
    labels = model.manifest.labels
    rows = [[f"{array[row, index]:f}:{index}:{labels[index]}" for index in best] for row, best in enumerate(order)]
    return np.array(rows, dtype=object)


def is_raw(one: WantedOutput, asked: InferRequest) -> bool:
    """Say whether an output is to be sent as raw bytes."""
    return bool(one.parameters.get("binary_data", asked.parameters.get("binary_data_output", False)))


def _texts(values: list[str]) -> Any:
    return np.array(values, dtype=object)
