"""What a language model is asked about one text: each answer is kept on the disk before it is used."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from compress.llm_cache import AnswerCache, key_of
from compress.llm_client import Endpoint, RejectedError
from compress.recipe_llm import Llm


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


class Requests:
    """Asks about prompts through an endpoint, and counts; what is in the cache is not asked for again."""

    def __init__(self, config: Llm, cache: AnswerCache, endpoint: Endpoint) -> None:
        self._config = config
        self._cache = cache
        self._endpoint = endpoint
        self._one_at_a_time = False
        self._counted: set[str] = set()
        self.answered = 0
        """Responses so far, those that were kept before included."""
        self.tally = Tally()

    async def greedy(self, prompt: str, top_logprobs: int) -> list[dict[str, Any]]:
        """Return the choices of the most probable answer, with the log-probabilities of that many tokens in a place."""
        body = self._body(prompt, 0.0) | {"logprobs": True, "top_logprobs": top_logprobs}
        return list((await self._response(body, 0))["choices"])

    async def samples(self, prompt: str) -> list[dict[str, Any]]:
        """Return as many answers as the recipe asks for, also of a server that gives fewer at a time, or only one.

        Fewer come back where a response holds none.
        """
        wanted, choices = self._config.samples, list[dict[str, Any]]()
        body = self._body(prompt, self._config.temperature)
        turn = 0
        while len(choices) < wanted:
            missing = wanted - len(choices)
            found = (await self._several(body, missing, turn))["choices"][:missing]
            if not found:
                break
            choices += found
            turn += 1
        return choices

    async def _several(self, body: dict[str, Any], number: int, turn: int) -> dict[str, Any]:
        """Return the response to a request for so many answers, or for one where that is all the server takes."""
        together = body | {"n": number}
        kept, kept_alone = (key_of(self._config.endpoint, asked, turn) in self._cache for asked in (together, body))
        if number > 1 and (kept or not (self._one_at_a_time or kept_alone)):
            try:
                return await self._response(together, turn)
            except RejectedError:  # of the number or of the text: one answer will tell
                response = await self._response(body, turn)
            self._one_at_a_time = True
            return response
        return await self._response(body, turn)

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
        self.answered += 1
        if key not in self._counted:
            self._counted.add(key)
            self.tally.responses += 1
            self.tally.kept_before += kept_before
            self.tally.prompt_tokens += response["usage"]["prompt_tokens"]
            self.tally.completion_tokens += response["usage"]["completion_tokens"]
        return response
