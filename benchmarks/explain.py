"""Whether the words that `/v1/explain` puts first are those that count: the score falls more without them.

    .venv/bin/python -m benchmarks.explain runs/movie-reviews/bundle --data examples/movie-reviews/data

Of each text the effects of all words are computed as the service does it. Then the k words with the highest effect are
taken out together, and for comparison k random ones that hold a letter or a digit; the score of the predicted label is
computed again. Printed are mean falls of that score over the texts, with paired 95 % bootstrap intervals. Texts of
fewer than `--words` words are left out. `--compare` instead tries, on the validation texts, what could stand in an
occluded word's place, which is how the service's way was chosen.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bulk import Classifier
from bundle import LAYOUT
from compress.machine import describe_machine, load_average
from service.engine.tokenization import Tokenizer
from service.occlusion import BLANK, Span, effects, variants, words_of

LIBRARIES = ("numpy", "onnxruntime", "tokenizers")
MOST = 5  # words taken out together
DRAWS = 10  # random choices of words, a text
RESAMPLES = 10_000
SEED = 13
WAYS = {"a space": BLANK, "nothing": "", "[MASK]": " [MASK] ", "[UNK]": " [UNK] "}

Floats = NDArray[np.float64]


class Text(NamedTuple):
    """A text that is read whole, and its words."""

    text: str
    words: list[Span]


def texts_of(path: Path, tokenizer: Tokenizer, least: int) -> list[Text]:
    """Return the texts of at least `least` words that the model reads whole."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = json.loads(line)["text"]
        reach = tokenizer.reach(text)
        words, _ = words_of(text, reach)
        if len(words) >= least and reach.ends[0] == len(text):
            found.append(Text(text, words))
    return found


def without(text: str, words: Sequence[Span], by: str) -> str:
    """Return the text with all these words replaced."""
    for word in sorted(words, reverse=True):
        text = text[: word.start] + by + text[word.end :]
    return text


def rank(classifier: Classifier, tokenizer: Tokenizer, texts: Sequence[Text], by: str) -> list[list[float]]:
    """Return the effect of every word of every text on its predicted label."""
    inputs: list[str] = []
    for text, words in texts:
        inputs += [text, *map(str, variants(text, words, tokenizer.reach(text), by))]
    scores = classifier.scores(inputs)
    found, first = [], 0
    for _, words in texts:
        part = scores[first : first + 1 + len(words)]
        found.append(effects(part, int(part[0].argmax())))
        first += len(part)
    return found


def falls(classifier: Classifier, texts: Sequence[Text], outs: Sequence[list[list[Span]]], by: str = BLANK) -> Floats:
    """Return what the score of each text's predicted label loses (texts, n) without each of n lists of its words."""
    inputs: list[str] = []
    for (text, _), lists in zip(texts, outs, strict=True):
        inputs += [text, *(without(text, words, by) for words in lists)]
    scores = classifier.scores(inputs).reshape(len(texts), -1, len(classifier.labels)).astype(np.float64)
    label = scores[:, 0].argmax(axis=1)
    own = np.take_along_axis(scores, label[:, None, None], axis=2)[:, :, 0]
    return own[:, :1] - own[:, 1:]


def top(texts: Sequence[Text], ranked: Sequence[list[float]]) -> list[list[list[Span]]]:
    """Return, of each text, the words with the highest effect: one of them, two, and so on."""
    outs = []
    for (_, words), found in zip(texts, ranked, strict=True):
        best = sorted(range(len(words)), key=lambda index: -found[index])
        outs.append([[words[index] for index in best[:k]] for k in range(1, MOST + 1)])
    return outs


def at_random(texts: Sequence[Text]) -> list[list[list[Span]]]:
    """Return, of each text, DRAWS times one random word that holds a letter or a digit, two, and so on."""
    chance = random.Random(SEED)
    outs = []
    for text, words in texts:
        plain = [word for word in words if any(character.isalnum() for character in text[word.start : word.end])]
        draws = [chance.sample(plain, min(MOST, len(plain))) for _ in range(DRAWS)]
        outs.append([draw[:k] for k in range(1, MOST + 1) for draw in draws])
    return outs


def interval(values: Floats) -> str:
    """Write the mean of values (N,) with its 95 % percentile bootstrap interval (Efron & Tibshirani 1993, 13.3)."""
    generator = np.random.default_rng(SEED)
    means = [values[generator.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, (2.5, 97.5))
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="of single texts and labels")
    parser.add_argument("--data", type=Path, required=True, help="folder with test.jsonl and validation.jsonl")
    parser.add_argument("--words", type=int, default=8, help="fewest words of a text (default: 8)")
    parser.add_argument("--texts", type=int, help="only so many of the texts, the first ones")
    parser.add_argument("--compare", action="store_true", help="ways to occlude, on the validation texts")
    arguments = parser.parse_args()
    split = "validation" if arguments.compare else "test"
    with Classifier(arguments.bundle) as classifier:
        manifest = classifier.manifest
        tokenizer = Tokenizer(classifier.bundle.path(LAYOUT.tokenizer), manifest.max_length)
        texts = texts_of(arguments.data / f"{split}.jsonl", tokenizer, arguments.words)[: arguments.texts]
        print(f"Machine: {describe_machine()}; load average {load_average():.2f} before the start.")
        libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
        print(f"Versions: Python {sys.version.split()[0]}, {libraries}.")
        print(f"{manifest.name} {manifest.version}: {len(texts)} {split} texts of", end=" ")
        print(f"{np.mean([len(text.words) for text in texts]):.1f} words in the mean.\n")
        if arguments.compare:
            compare(classifier, tokenizer, texts)
        else:
            report(classifier, texts, rank(classifier, tokenizer, texts, BLANK))


def report(classifier: Classifier, texts: Sequence[Text], ranked: Sequence[list[float]]) -> None:
    best = falls(classifier, texts, top(texts, ranked))
    chance = falls(classifier, texts, at_random(texts)).reshape(len(texts), MOST, DRAWS).mean(axis=2)
    print("| words taken out | score falls by: top words | random words | difference | texts with top ahead |")
    print("|---|---|---|---|---|")
    for k in range(MOST):
        more = f"{(best[:, k] > chance[:, k]).mean():.1%}"
        cells = [interval(values[:, k]) for values in (best, chance, best - chance)]
        print(f"| {k + 1} | {' | '.join(cells)} | {more} |")


def compare(classifier: Classifier, tokenizer: Tokenizer, texts: Sequence[Text]) -> None:
    print(f"| in the word's place | {' | '.join(f'k = {k + 1}' for k in range(MOST))} |")
    print("|---" * (MOST + 1) + "|")
    first = None
    for name, by in WAYS.items():
        ranked = rank(classifier, tokenizer, texts, by)
        found = falls(classifier, texts, top(texts, ranked))
        if first is None:
            first = found
            cells = [interval(found[:, k]) for k in range(MOST)]
            ties = sum(tied(text, row) for text, row in zip(texts, ranked, strict=True))
        else:
            cells = [interval(found[:, k] - first[:, k]) for k in range(MOST)]
        print(f"| {name}{'' if found is first else ', less the first row'} | {' | '.join(cells)} |", flush=True)
    print(f"\nTexts in which float32 cannot tell the {MOST} highest effects of different words apart: {ties}.")


def tied(text: Text, found: Sequence[float]) -> bool:
    """Whether two of the highest effects are equal, and not because the text reads alike without either word."""
    best = sorted(range(len(found)), key=lambda index: -found[index])[:MOST]
    left = {tuple(without(text.text, [text.words[index]], BLANK).split()) for index in best}
    return len({found[index] for index in best}) < len(left)


if __name__ == "__main__":
    main()
