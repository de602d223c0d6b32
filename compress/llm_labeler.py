"""Ask a language model for the labels of many texts: side by side, each answer kept before the next is asked for."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
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
from compress.llm_cache import AnswerCache
from compress.llm_client import Endpoint, ExhaustedError, FilteredError, RejectedError, read_key
from compress.llm_requests import Requests, Tally
from compress.progress import track
from compress.recipe_llm import Llm

_TOP_LOGPROBS = (20, 5)
"""The most that OpenAI and vLLM give, and what others do."""
_FIRST_PROMPTS = 5
"""So many are tried to find out whether the server gives log-probabilities."""
_REJECTED_AT_FIRST = 4
"""So many rejections before any answer are not the texts' fault."""
_SILENT = 3
"""So many texts in a row may go without any answer while others are still to be asked about; then it is dead."""


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
        self._endpoint = endpoint
        self._requests = Requests(config, cache, endpoint)
        self._multi_label = multi_label
        self._top_logprobs = _TOP_LOGPROBS[0]
        self._answered_before = 0
        self._silent = 0
        self._untried = 0
        self.tally = self._requests.tally

    async def choose_method(self, prompts: Sequence[str]) -> str:
        """Return `logprobs` or `votes`: what the recipe says, or what the server can do, by the first prompts.

        Only an answer that was given without log-probabilities shows that the server gives none: one that was refused,
        filtered or rejected says something of its text. Where some are rejected and none is answered, fewer
        alternatives are asked for. Raises LlmError where the server gives no log-probabilities and the recipe asks for
        them, and where it answers nothing at all.
        """
        wanted = self._config.method
        if wanted == "votes" or self._multi_label:
            return "votes"
        for self._top_logprobs in _TOP_LOGPROBS:
            outcomes = list[list[dict[str, Any]] | Exception]()
            for group in (prompts[:1], prompts[1:_FIRST_PROMPTS]):
                await _together([self._try(prompt, outcomes) for prompt in group], self._endpoint.end)
                method = self._shown_by(outcomes)
                if method is not None:
                    return method
            silent = [found for found in outcomes if isinstance(found, ExhaustedError)]
            if outcomes and len(silent) == len(outcomes):
                raise self._dead(silent[-1]) from silent[-1]
            rejected = any(isinstance(found, RejectedError) for found in outcomes)
            if not rejected or any(isinstance(found, list) for found in outcomes):
                break  # fewer alternatives would change nothing
        return "logprobs" if wanted == "logprobs" else "votes"  # perhaps it does not know the field: votes will tell

    async def _try(self, prompt: str, outcomes: list[list[dict[str, Any]] | Exception]) -> None:
        """Add what a prompt is answered, or why it is not."""
        try:
            outcomes.append(await self._requests.greedy(prompt, self._top_logprobs))
        except (RejectedError, FilteredError, ExhaustedError) as error:
            outcomes.append(error)

    def _shown_by(self, outcomes: Sequence[list[dict[str, Any]] | Exception]) -> str | None:
        """Return the method that answers show, or None where they show nothing; raises LlmError."""
        choices = [choice for found in outcomes if isinstance(found, list) for choice in found]
        if any(choice["logprobs"] for choice in choices):
            return "logprobs"
        if not any(self._answers_without(choice) for choice in choices):
            return None
        if self._config.method == "logprobs":
            raise LlmError(
                f"{self._config.endpoint}: the server returns no log-probabilities; set teacher.llm.method to votes"
            )
        return "votes"

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
        waiting, self._untried = iter(prompts), len(prompts)
        self._answered_before = self._requests.answered  # those of `choose_method` were of other requests

        async def work() -> None:
            for prompt in waiting:
                self._untried -= 1
                kind, probabilities = await self._label(prompt, method)
                self.tally.texts[kind] += 1
                if probabilities is not None:
                    found[prompt] = probabilities
                done()

        await _together([work() for _ in range(min(self._config.concurrency, len(prompts)))], self._endpoint.end)
        return found

    async def _label(self, prompt: str, method: str) -> tuple[str, Probabilities | None]:
        try:
            if method == "logprobs":
                choices = await self._requests.greedy(prompt, self._top_logprobs)
            else:
                choices = await self._requests.samples(prompt)
        except FilteredError as error:
            self.tally.problem, self._silent = str(error), 0
            return Kind.REFUSED, None
        except RejectedError as error:
            self.tally.problem, self._silent = str(error), 0
            nobody = self._requests.answered == self._answered_before
            if nobody and self.tally.texts["rejected"] >= _REJECTED_AT_FIRST:
                raise LlmError(
                    f"{self._config.endpoint}: answers none of the requests: {error}; look at teacher.llm.request and "
                    "method"
                ) from error
            return "rejected", None
        except ExhaustedError as error:
            self.tally.problem = str(error)
            self._silent += 1
            if self._silent > _SILENT and self._untried:  # at the end it may be the texts: more of them came before
                raise self._dead(error) from error
            return "failed", None
        self._silent = 0
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
        if method == "logprobs" and choices and not kinds[Kind.REFUSED]:
            probabilities = from_logprobs(choices[0]["logprobs"] or (), self._answers)
            if probabilities is not None:
                return Kind.ANSWERED, probabilities
        if votes:
            return Kind.ANSWERED, from_votes(votes, len(self._answers))
        return (Kind.REFUSED if kinds[Kind.REFUSED] > kinds[Kind.UNPARSABLE] else Kind.UNPARSABLE), None

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
