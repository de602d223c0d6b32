"""Which heads, neurons, layers and hidden numbers to keep, so that a budget holds and the least importance is lost.

The search over heads and neurons is that of Kwon et al. 2022 (algorithm 1): keep the n most important heads, give what
is left of the budget to the most important neurons, and take the n that loses least. Neurons go in blocks. Around it
stand two more loops: how many of the least important layers are skipped, and how wide the hidden states are. A layer
that stays keeps its best head and its best block of neurons, or as many blocks as make a matrix that INT8 is worth.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from compress.cut import Kept
from compress.importance import Importance, Scores

Curve = NDArray[np.float64]
"""Cost of 0 … N of something; it never falls."""


@dataclass(frozen=True)
class Costs:
    """What each part of a model costs, in milliseconds or bytes, for each hidden width that may be chosen."""

    rest: Mapping[int, float]
    """Hidden width -> all that is in no layer."""
    heads: Mapping[int, Curve]
    """Hidden width -> cost of an attention with so many heads."""
    neurons: Mapping[int, Curve]
    """Hidden width -> cost of a feed-forward net with so many neurons."""

    def of(self, hidden: int, layers: Sequence[tuple[int, int]]) -> float:
        """Return the cost of a model with these heads and neurons in its layers."""
        parts = (self.heads[hidden][heads] + self.neurons[hidden][neurons] for heads, neurons in layers)
        return float(self.rest[hidden] + sum(parts))


@dataclass(frozen=True)
class Found:
    """What a search chose."""

    kept: Kept
    cost: float
    lost: float
    """Importance of what goes."""

    @property
    def shape(self) -> tuple[int, list[tuple[int, int]]]:
        """The hidden width, and the heads and neurons of each layer."""
        pairs = zip(self.kept.heads, self.kept.neurons, strict=True)
        return len(self.kept.hidden), [(len(heads), len(neurons)) for heads, neurons in pairs]


def search(
    importance: Importance, costs: Costs, budget: float, *, block: int, matrix: int = 1, skip_layers: bool = True
) -> Found | None:
    """Return the cut that fits into `budget` and loses the least importance, or None when nothing fits.

    Hidden widths are those of `costs`; neurons stay in multiples of `block`, or all of them, and at least as many as
    make a matrix of `matrix` numbers.
    """
    best: Found | None = None
    for hidden in sorted(costs.rest, reverse=True):
        if hidden > len(importance.hidden):
            continue
        numbers, lost_hidden = _strongest(importance.hidden, hidden)
        for layers in _layer_sets(importance, skip_layers):
            lost = lost_hidden + float(importance.layers.sum() - importance.layers[layers].sum())
            if best is not None and lost >= best.lost:
                break  # fewer layers lose more
            room = budget - costs.rest[hidden]
            curves = costs.heads[hidden], costs.neurons[hidden]
            found = _heads_and_neurons(importance, layers, *curves, room, block, fewest_blocks(hidden, block, matrix))
            if found is None:
                continue
            heads, neurons, lost_inside = found
            if best is None or lost + lost_inside < best.lost:
                kept = Kept(tuple(layers), heads, neurons, numbers)
                shape = [(len(h), len(n)) for h, n in zip(heads, neurons, strict=True)]
                best = Found(kept, costs.of(hidden, shape), lost + lost_inside)
    return best


def fewest_blocks(hidden: int, block: int, matrix: int) -> int:
    """Return how many blocks of neurons make a matrix of at least `matrix` numbers with `hidden` of them each."""
    return max(1, math.ceil(matrix / (hidden * block)))


def smallest(importance: Importance, costs: Costs, *, block: int, matrix: int = 1, skip_layers: bool = True) -> Found:
    """Return the cheapest cut there is: one head and the fewest blocks of neurons in as few layers as may be."""
    hidden = min(costs.rest)
    fewest = block * fewest_blocks(hidden, block, matrix)
    numbers, lost = _strongest(importance.hidden, hidden)
    layers = list(_layer_sets(importance, skip_layers))[-1]
    heads = tuple(_strongest(importance.heads[layer], 1)[0] for layer in layers)
    neurons = tuple(_strongest(importance.neurons[layer], fewest)[0] for layer in layers)
    shape = [(1, len(kept)) for kept in neurons]
    return Found(Kept(tuple(layers), heads, neurons, numbers), costs.of(hidden, shape), lost)


def _layer_sets(importance: Importance, skip_layers: bool) -> Iterator[list[int]]:
    """Yield all layers, then all but the least important one, and so on."""
    order = np.argsort(importance.layers, kind="stable").tolist()
    for dropped in range(len(order) if skip_layers else 1):
        yield sorted(order[dropped:])


def _heads_and_neurons(
    importance: Importance,
    layers: Sequence[int],
    head_cost: Curve,
    neuron_cost: Curve,
    room: float,
    block: int,
    fewest: int,
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...], float] | None:
    """Return heads and neurons of each layer, and the importance of those that go; None where nothing fits."""
    heads = _Ranked([importance.heads[layer] for layer in layers], head_cost, 1, 1)
    neurons = _Ranked([importance.neurons[layer] for layer in layers], neuron_cost, block, fewest)
    best, choice = np.inf, None
    for more_heads, (cost, lost) in enumerate(zip(heads.costs, heads.lost, strict=True)):
        more_neurons = int(np.searchsorted(neurons.costs, room - cost, side="right")) - 1
        if more_neurons < 0:
            break  # more heads cost more
        total = lost + neurons.lost[more_neurons]
        if total < best:
            best, choice = total, (more_heads, more_neurons)
    if choice is None:
        return None
    return heads.chosen(choice[0]), neurons.chosen(choice[1]), float(best)


class _Ranked:
    """Units (blocks of members) of several layers: the `fewest` best of each layer, then the others by importance."""

    def __init__(self, layers: Sequence[Scores], cost: Curve, block: int, fewest: int) -> None:
        self._members = [np.argsort(-scores, kind="stable") for scores in layers]
        self._block, self._fewest = block, fewest
        sums = [
            [float(scores[order[start : start + block]].sum()) for start in range(0, len(scores), block)]
            for scores, order in zip(layers, self._members, strict=True)
        ]
        # a layer's units come in falling order, so the global order takes them from best to worst in each layer, too
        others = [
            (-value, layer, unit)
            for layer, units in enumerate(sums)
            for unit, value in enumerate(units)
            if unit >= fewest
        ]
        self._order = [layer for _, layer, _ in sorted(others)]
        taken = [fewest] * len(layers)
        steps, gains = [], []
        for layer in self._order:
            before, after = self._size(layer, taken[layer]), self._size(layer, taken[layer] + 1)
            steps.append(float(cost[after] - cost[before]))
            gains.append(sums[layer][taken[layer]])
            taken[layer] += 1
        first = float(sum(cost[self._size(layer, fewest)] for layer in range(len(layers))))
        self.costs = np.array(list(accumulate(steps, initial=first)))
        """Cost with 0, 1 … more units than the fewest a layer."""
        everything = float(sum(scores.sum() for scores in layers))
        kept = list(accumulate(gains, initial=float(sum(sum(units[:fewest]) for units in sums))))
        self.lost = everything - np.array(kept)
        """Importance that goes, with as many."""

    def _size(self, layer: int, units: int) -> int:
        return min(units * self._block, len(self._members[layer]))

    def chosen(self, more: int) -> tuple[tuple[int, ...], ...]:
        """Return the members of each layer with `more` units than the fewest a layer, rising."""
        units = np.bincount(self._order[:more], minlength=len(self._members)) + self._fewest
        return tuple(
            tuple(sorted(members[: self._size(layer, int(count))].tolist()))
            for layer, (members, count) in enumerate(zip(self._members, units, strict=True))
        )


def _strongest(scores: Scores, number: int) -> tuple[tuple[int, ...], float]:
    """Return the indices of the largest scores, rising, and the sum of the others."""
    chosen = np.sort(np.argsort(-scores, kind="stable")[:number])
    return tuple(chosen.tolist()), float(scores.sum() - scores[chosen].sum())
