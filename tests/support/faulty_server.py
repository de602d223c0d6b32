"""`python -m service` with faults that a word in a text asks for; they quote the text, as foreign code does.

    python -m tests.support.faulty_server

`tokenizing` cannot be tokenized, `writing` not be answered, `masking` not be masked; `sending` and `receiving` break
the connection's protocol, `callback` and `task` leave something behind that fails on the event loop; `awful` fails in
the model, which has not seen the text.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from service import masking
from service.__main__ import main
from service.api import tei
from service.api.classify import Classifier, Question
from service.api.fast_path import FastPath
from service.engine.tokenization import Tokenizer
from service.model import Model
from tests.support.bundles import WORDS

MODEL_FAULT = "indices element out of data bounds, idx=30523"
_AWFUL = 4 + WORDS.index("awful")


def broken(what: str, given: object) -> None:
    raise ValueError(f"{what} failed on {given!r}")


def before(owner: Any, name: str, check: Callable[..., None]) -> None:
    """Have `check` called with the arguments of a function before it is."""
    real = getattr(owner, name)

    def checked(*arguments: Any, **named: Any) -> Any:
        check(*arguments)
        return real(*arguments, **named)

    setattr(owner, name, checked)


def tokenize(_tokenizer: Tokenizer, inputs: Sequence[str], *_: object) -> None:
    if any("tokenizing" in text for text in inputs):
        broken("the tokenizer", inputs)


def infer(_model: Model, encodings: Sequence[Any]) -> None:
    if any(_AWFUL in encoding.ids for encoding in encodings):
        raise RuntimeError(MODEL_FAULT)


def write(_classifier: Classifier, question: Question, *_: object) -> None:
    if "writing" in question.inputs[0]:
        try:
            broken("the encoder", question)
        except ValueError as error:
            raise KeyError(question.inputs[0]) from error


def measure(_model: Model, inputs: Sequence[str], *_: object) -> None:
    if "writing" in inputs[0]:
        broken("the route", inputs)


def begin(_path: FastPath, head: object, _model: object, body: bytes, *_: object) -> None:
    loop = asyncio.get_running_loop()
    if b"callback" in body:
        loop.call_soon(broken, "a callback", body)
    if b"task" in body:
        left_behind = loop.create_task(fail_later(body))
        left_behind.add_done_callback(lambda _: None)
        del left_behind
    if b"receiving" in body:
        broken("the protocol", (head, body))


def finish(_path: FastPath, work: Any) -> None:
    if "sending" in work.question.inputs[0]:
        broken("the connection", work)


async def fail_later(body: bytes) -> None:
    broken("a task", body)


def mask(text: str) -> None:
    if "masking" in text:
        broken("the masker", text)


def break_what_texts_ask_for() -> None:
    for owner, name, check in (
        (Tokenizer, "encode", tokenize),
        (Model, "infer", infer),
        (Classifier, "encode", write),
        (tei, "measured", measure),
        (FastPath, "begin", begin),
        (FastPath, "finish", finish),
        (masking, "mask", mask),
    ):
        before(owner, name, check)


if __name__ == "__main__":
    break_what_texts_ask_for()
    main()
