"""Asking the server of `llm_server`: one request, or the labels of some texts."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from compress.llm_answers import default_prompt, filled
from compress.llm_client import Endpoint
from compress.llm_labeler import ask_all
from compress.llm_requests import Tally
from compress.recipe_llm import Llm
from tests.support.llm_server import KEY, Answer, Body, Server, with_logprobs
from tests.support.rows import tiny_rows

LABELS = ["negative", "positive"]
BODY = {"model": "m", "messages": [{"role": "user", "content": "Text: a good film\n\nLabel:"}]}
# no two texts alike, since a text is asked for once
TEXTS = list(dict.fromkeys(row["text"] for row in tiny_rows(80, 5)))[:40]
PROMPTS = [filled(default_prompt(multi_label=False, paired=False), text, None, LABELS) for text in TEXTS]


def config(server: Server, **changes: Any) -> Llm:
    return Llm.model_validate({"endpoint": server.url, "model": "m", "retries": 3, "timeout_s": 5} | changes)


def ask(settings: Llm, body: Body = BODY, key: str | None = KEY, tell: Callable[[str], None] = lambda _: None) -> Any:
    async def run() -> Any:
        async with Endpoint(settings, key, tell) as endpoint:
            return await endpoint.ask(body)

    return asyncio.run(run())


def label(
    settings: Llm, folder: Path, prompts: list[str] = PROMPTS, multi_label: bool = False
) -> tuple[dict[str, Any], Tally, str]:
    cache, quiet = folder / "answers.jsonl", Console(quiet=True)
    return ask_all(settings, folder, cache, prompts, LABELS, multi_label=multi_label, console=quiet)


def scripted(*answers: Answer) -> Callable[[Body, int], Answer]:
    """These answers, one after another to each body, then good ones."""
    return lambda body, number: answers[number] if number < len(answers) else with_logprobs(body, number)
