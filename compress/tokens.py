"""Rebuild a `tokenizer.json` with fewer tokens, so that a text whose pieces are all kept is cut as before.

What must stay beside the tokens that are asked for depends on how a tokenizer finds its pieces:

- WordPiece takes the longest piece that fits, again and again. Without pieces that a text did not use it finds the same
  ones. Single characters stay, and pieces with a character that has no piece of its own (which other pieces that stay
  may not lead to: in a vocabulary with such characters a word with one can become unknown).
- BPE joins neighbors by rank. All merges that lead to a kept piece stay, with the pieces between; leaving out others
  never puts another merge first.
- Unigram takes the most probable cut. A cut into kept pieces stays the most probable one. The least probable piece
  stays, too, since unknown characters are scored by it, and pieces with a character that has no piece of its own.

Special tokens, single characters and bytes always stay. Ids keep their order and lose their gaps.
"""

import json
from collections.abc import Collection
from typing import Any

from compress.errors import ModelError

_KINDS = ("WordPiece", "BPE", "Unigram")


def check_kind(document: dict[str, Any]) -> None:
    """Raise ModelError for a tokenizer whose vocabulary cannot be pruned; `document` is its tokenizer.json."""
    kind = document["model"].get("type", "of no stated type")
    if kind not in _KINDS:
        reason = "a word that is not in it has no smaller pieces" if kind == "WordLevel" else "it is not known here"
        raise ModelError(
            f"vocabulary: the tokenizer is {kind}, and {reason}; expected {', '.join(_KINDS)}, or leave out "
            "`vocabulary`"
        )


def kept_ids(document: dict[str, Any], wanted: Collection[int]) -> list[int]:
    """Return the ids that stay, rising, when those `wanted` are to be kept; raises ModelError."""
    check_kind(document)
    model = document["model"]
    tokens = _tokens(model)
    kept = {tokens[index] for index in wanted if index in tokens}
    always = {token["id"] for token in document["added_tokens"]}
    kept |= {token for token in tokens.values() if _is_single(token, model)}
    unknown = model.get("unk_token")
    if unknown is not None:
        kept.add(unknown)
    if model["type"] == "WordPiece":
        kept |= _with_characters_of_their_own(set(tokens.values()), model["continuing_subword_prefix"])
    elif model["type"] == "BPE":
        kept |= _built_from(kept, model)
    else:
        always.add(min(tokens, key=lambda index: model["vocab"][index][1]))
        always |= set() if model["unk_id"] is None else {model["unk_id"]}
        kept |= set() if model.get("byte_fallback") else _with_lone_characters(set(tokens.values()))
    return sorted(always | {index for index, token in tokens.items() if token in kept})


def rebuilt(document: dict[str, Any], ids: list[int]) -> dict[str, Any]:
    """Return the tokenizer.json with the tokens of these old ids alone; the new id is the place in the list."""
    new_id = {old: new for new, old in enumerate(ids)}
    result: dict[str, Any] = json.loads(json.dumps(document))
    model, old = result["model"], document["model"]
    names = {token: new_id[index] for index, token in _tokens(old).items() if index in new_id}
    if old["type"] == "Unigram":
        model["vocab"] = [entry for index, entry in enumerate(old["vocab"]) if index in new_id]
        model["unk_id"] = None if old["unk_id"] is None else new_id[old["unk_id"]]
    else:
        model["vocab"] = names
    if old["type"] == "BPE":
        known = [all(part in names for part in (*pair, _joined(pair, old))) for pair in _merges(old)]
        model["merges"] = [merge for merge, stays in zip(old["merges"], known, strict=True) if stays]
    for token in result["added_tokens"]:
        token["id"] = new_id[token["id"]]
    _renumber(result["post_processor"], new_id)
    if result["padding"] is not None:
        result["padding"]["pad_id"] = new_id[result["padding"]["pad_id"]]
    return result


def _tokens(model: dict[str, Any]) -> dict[int, str]:
    """Return the tokens of the model by id."""
    if model["type"] == "Unigram":
        return {index: piece for index, (piece, _) in enumerate(model["vocab"])}
    return {index: token for token, index in model["vocab"].items()}


def _is_single(token: str, model: dict[str, Any]) -> bool:
    """Whether a token is one character, perhaps after a mark of the beginning or the middle of a word, or one byte."""
    bare = token
    for mark in (model.get("continuing_subword_prefix"), "▁"):
        bare = bare.removeprefix(mark) if mark and bare != mark else bare
    ending = model.get("end_of_word_suffix")
    bare = bare.removesuffix(ending) if ending and bare != ending else bare
    return len(bare) <= 1 or (len(token) == 6 and token.startswith("<0x") and token.endswith(">"))


def _with_characters_of_their_own(tokens: set[str], prefix: str) -> set[str]:
    """Return the pieces with a character that has no piece of its own where it stands in a word."""

    def needed(token: str) -> bool:
        inside = token.startswith(prefix) and token != prefix
        letters = token.removeprefix(prefix) if inside else token
        rest = letters if inside else letters[1:]
        return (not inside and letters[:1] not in tokens) or any(f"{prefix}{letter}" not in tokens for letter in rest)

    return {token for token in tokens if needed(token)}


def _with_lone_characters(tokens: set[str]) -> set[str]:
    """Return the pieces with a character that has no piece of its own, a word's first one also not after the mark."""

    def needed(token: str) -> bool:
        marked = token.startswith("▁") and "▁" not in tokens and token[:2] in tokens
        return any(letter not in tokens for letter in (token[2:] if marked else token))

    return {token for token in tokens if needed(token)}


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the pairs that are merged, in their order; older files write a pair as one string."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    return [(first, second) for first, second in pairs]


def _joined(pair: tuple[str, str], model: dict[str, Any]) -> str:
    prefix = model.get("continuing_subword_prefix") or ""
    return pair[0] + pair[1].removeprefix(prefix)


def _built_from(kept: set[str], model: dict[str, Any]) -> set[str]:
    """Return the pieces between single characters and the kept ones: every part of every merge that makes one."""
    makers: dict[str, list[tuple[str, str]]] = {}
    for pair in _merges(model):
        makers.setdefault(_joined(pair, model), []).append(pair)
    pending, found = list(kept), set(kept)
    while pending:
        for pair in makers.get(pending.pop(), []):
            new = set(pair) - found
            found |= new
            pending += new
    return found


def _renumber(part: Any, new_id: dict[int, int]) -> None:
    """Give the special tokens of a post-processor, in place, their new ids."""
    if part is None:
        return
    if part["type"] == "Sequence":
        for one in part["processors"]:
            _renumber(one, new_id)
    for name in ("cls", "sep"):  # BERT's and RoBERTa's: a token and its id
        if name in part:
            part[name][1] = new_id[part[name][1]]
    if part["type"] == "TemplateProcessing":
        for token in part["special_tokens"].values():
            token["ids"] = [new_id[index] for index in token["ids"]]
