"""Ask a language model for the labels of many texts: side by side, each answer kept before the next is asked for."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from compress.errors import LlmError
from compress.llm_answers import (
    Kind,
    Probabilities,
    from_logprobs,
    from_votes,
    kind_of,
    named_label,
    named_labels,
    said,
)
from compress.llm_cache import AnswerCache, key_of
from compress.llm_client import Endpoint, ExhaustedError, FilteredError, RejectedError, read_key
from compress.progress import track
from compress.recipe_llm import Llm

_TOP_LOGPROBS = 20
"""The most that OpenAI and vLLM give."""
_FIRST_PROMPTS = 5
"""So many are tried to find out whether the server gives log-probabilities."""
_REJECTED_AT_FIRST = 4
"""So many rejections before any answer are not the texts' fault."""


@dataclass
class Tally:
    """What was asked for, and what it cost."""

    texts: Counter[str] = field(default_factory=Counter)
    """`answered`, `refused`, `unparsable`, `rejected` (the endpoint's 400), `failed` (no attempt was answered)."""
    responses: int = 0
    kept_before: int = 0
    """Responses that were paid for by an earlier run."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    problem: str = ""
    """What the endpoint said last of a text that it did not answer."""

    def cost(self, config: Llm) -> float | None:
        """Return what all these responses cost at the recipe's prices, or None where it states none."""
        into, out = config.price_per_million_input_tokens, config.price_per_million_output_tokens
        if into is None or out is None:
            return None
        return (self.prompt_tokens * into + self.completion_tokens * out) / 1e6


def ask_all(
    config: Llm,
    folder: Path,
    cache_path: Path,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    multi_label: bool,
    console: Console,
) -> tuple[dict[str, Probabilities], Tally, str]:
    """Return the probabilities (C,) of each prompt that is answered, what was asked for, and the method.

    `folder` is the recipe's. Raises LlmError when the endpoint cannot be used or stops answering, and OSError when an
    answer cannot be kept; what is in the cache is not asked for again.
    """
    key = read_key(config, folder)
    different = list(dict.fromkeys(prompts))

    def tell(line: str) -> None:
        console.print(f"  {line}", markup=False, soft_wrap=True)

    async def ask() -> tuple[dict[str, Probabilities], Tally, str]:
        with AnswerCache(cache_path) as cache:
            async with Endpoint(config, key, tell) as endpoint:
                labeler = Labeler(config, answers, cache, endpoint, multi_label=multi_label)
                method = await labeler.choose_method(different)
                with track(console, f"{config.model} labels by {method}", len(different)) as advance:
                    found = await labeler.label_all(different, method, lambda: advance(1, ""))
        return found, labeler.tally, method

    return asyncio.run(ask())


class Labeler:
    """Labels prompts; what comes back depends on the answers alone, not on their order or on interruptions."""

    def __init__(
        self, config: Llm, answers: Sequence[str], cache: AnswerCache, endpoint: Endpoint, *, multi_label: bool
    ) -> None:
        self._config = config
        self._answers = answers
        self._cache = cache
        self._endpoint = endpoint
        self._multi_label = multi_label
        self._successes = 0
        self._one_at_a_time = False
        self._counted: set[str] = set()
        self.tally = Tally()

    async def choose_method(self, prompts: Sequence[str]) -> str:
        """Return `logprobs` or `votes`: what the recipe says, or what the server can do, by the first prompts.

        Only an answer that was given without log-probabilities shows that the server gives none: one that was refused,
        filtered or rejected says something of its text. Raises LlmError where it shows that and the recipe asks for
        them.
        """
        wanted = self._config.method
        if wanted == "votes" or self._multi_label:
            return "votes"
        for prompt in prompts[:_FIRST_PROMPTS]:
            try:
                response = await self._response(self._greedy(prompt), 0)
            except (RejectedError, FilteredError):
                continue
            except ExhaustedError as error:
                raise self._dead(error) from error
            if any(choice["logprobs"] for choice in response["choices"]):
                return "logprobs"
            if any(self._answers_without(choice) for choice in response["choices"]):
                if wanted == "logprobs":
                    raise LlmError(
                        f"{self._config.endpoint}: the server returns no log-probabilities; set teacher.llm.method to "
                        "votes"
                    )
                return "votes"
        return "logprobs" if wanted == "logprobs" else "votes"  # perhaps it does not know the field: votes will tell

    def _answers_without(self, choice: dict[str, Any]) -> bool:
        """Return whether a choice without log-probabilities says something and is no refusal."""
        named = named_label(said(choice), self._answers) is not None
        return bool(choice["content"]) and kind_of(choice, named=named) is not Kind.REFUSED

    async def label_all(
        self, prompts: Sequence[str], method: str, done: Callable[[], None]
    ) -> dict[str, Probabilities]:
        """Return the probabilities (C,) of each prompt that is answered; `done` is called after each.

        Raises LlmError when the endpoint stops answering, and OSError when an answer cannot be kept.
        """
        found: dict[str, Probabilities] = {}
        waiting = iter(prompts)
        self._successes = 0  # those of `choose_method` were of other requests

        async def work() -> None:
            for prompt in waiting:
                kind, probabilities = await self._label(prompt, method)
                self.tally.texts[kind] += 1
                if probabilities is not None:
                    found[prompt] = probabilities
                done()

        await _together([work() for _ in range(min(self._config.concurrency, len(prompts)))], self._endpoint.end)
        return found

    async def _label(self, prompt: str, method: str) -> tuple[str, Probabilities | None]:
        before = self._successes
        try:
            if method == "logprobs":
                choices = (await self._response(self._greedy(prompt), 0))["choices"]
            else:
                choices = await self._samples(prompt)
        except FilteredError as error:
            self.tally.problem = str(error)
            return Kind.REFUSED, None
        except RejectedError as error:
            self.tally.problem = str(error)
            if not self._successes and self.tally.texts["rejected"] >= _REJECTED_AT_FIRST:
                raise LlmError(
                    f"{self._config.endpoint}: answers none of the requests: {error}; look at teacher.llm.request and "
                    "method"
                ) from error
            return "rejected", None
        except ExhaustedError as error:
            self.tally.problem = str(error)
            if self._successes == before:  # nobody was answered meanwhile: it is not this text
                raise self._dead(error) from error
            return "failed", None
        return self._read(choices, method)

    def _read(self, choices: Sequence[dict[str, Any]], method: str) -> tuple[str, Probabilities | None]:
        """Return what the answers to one prompt are, and what they say."""
        votes, kinds = [], Counter[Kind]()
        for choice in choices:
            content = said(choice)
            if self._multi_label:
                vote = named_labels(content, self._answers)
            else:
                label = named_label(content, self._answers)
                vote = None if label is None else [label]
            kind = kind_of(choice, named=vote is not None)
            kinds[kind] += 1
            if vote is not None and kind is Kind.ANSWERED:
                votes.append(vote)
        if method == "logprobs" and not kinds[Kind.REFUSED]:
            probabilities = from_logprobs(choices[0]["logprobs"] or (), self._answers)
            if probabilities is not None:
                return Kind.ANSWERED, probabilities
        if votes:
            return Kind.ANSWERED, from_votes(votes, len(self._answers))
        return (Kind.REFUSED if kinds[Kind.REFUSED] > kinds[Kind.UNPARSABLE] else Kind.UNPARSABLE), None

    async def _samples(self, prompt: str) -> list[dict[str, Any]]:
        """Return as many answers as the recipe asks for, also of a server that gives fewer at a time, or only one."""
        wanted, choices = self._config.samples, list[dict[str, Any]]()
        body = self._body(prompt, self._config.temperature)
        turn = 0
        while len(choices) < wanted:
            missing = wanted - len(choices)
            response = await self._several(body, missing, turn)
            choices += response["choices"][:missing]
            turn += 1
        return choices

    async def _several(self, body: dict[str, Any], number: int, turn: int) -> dict[str, Any]:
        """Return the response to a request for so many answers, or for one where that is all the server takes."""
        if number > 1 and not self._one_at_a_time:
            try:
                return await self._response(body | {"n": number}, turn)
            except RejectedError:  # of the number or of the text: one answer will tell
                response = await self._response(body, turn)
            self._one_at_a_time = True
            return response
        return await self._response(body, turn)

    def _greedy(self, prompt: str) -> dict[str, Any]:
        return self._body(prompt, 0.0) | {"logprobs": True, "top_logprobs": _TOP_LOGPROBS}

    def _body(self, prompt: str, temperature: float) -> dict[str, Any]:
        body = {
            "model": self._config.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self._config.max_tokens,
            "temperature": temperature,
        } | self._config.request
        return {name: value for name, value in body.items() if value is not None}

    async def _response(self, body: dict[str, Any], turn: int) -> dict[str, Any]:
        """Return the response that is kept, or ask for it and keep it."""
        key = key_of(self._config.endpoint, body, turn)
        response = self._cache.get(key)
        kept_before = response is not None
        if response is None:
            response = await self._endpoint.ask(body)
            self._cache.put(key, response)
        self._successes += 1
        if key not in self._counted:
            self._counted.add(key)
            self.tally.responses += 1
            self.tally.kept_before += kept_before
            self.tally.prompt_tokens += response["usage"]["prompt_tokens"]
            self.tally.completion_tokens += response["usage"]["completion_tokens"]
        return response

    def _dead(self, error: Exception) -> LlmError:
        return LlmError(
            f"{self._config.endpoint}: gave no answer in {self._config.retries + 1} attempts, none else was answered "
            f"meanwhile; the last: {error}; what was answered is kept; give the same command again to go on"
        )


async def _together(workers: Sequence[Coroutine[Any, Any, None]], end: Callable[[], None]) -> None:
    """Run all until one fails; then raise what it raised.

    `end` makes the others stop once they have kept the answer to what they had sent, so that it is not paid for again.
    """
    tasks = [asyncio.create_task(worker) for worker in workers]
    try:
        await asyncio.gather(*tasks)
    except Exception:  # not Ctrl-C, which waits for nobody
        end()
        await asyncio.wait(tasks)
        raise
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
