"""The search for what to keep, against trying everything."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from compress.cut import Kept
from compress.importance import Importance
from compress.mask_search import Costs, Found, search, smallest

LAYERS, HEADS, NEURONS, HIDDEN = 2, 3, 3, 4


def importance(seed: int, layers: int = LAYERS) -> Importance:
    random = np.random.default_rng(seed)
    return Importance(
        tuple(random.exponential(size=HEADS) for _ in range(layers)),
        tuple(random.exponential(size=NEURONS) for _ in range(layers)),
        random.exponential(size=layers) * 3,
        random.exponential(size=HIDDEN) * 2,
    )


def costs(widths: tuple[int, ...] = (HIDDEN,)) -> Costs:
    """A head costs 3, a neuron 1, per hidden number 1/4 of that; the rest 1 for each hidden number."""
    return Costs(
        {h: float(h) for h in widths},
        {h: 3.0 * np.arange(HEADS + 1) * h / HIDDEN for h in widths},
        {h: 1.0 * np.arange(NEURONS + 1) * h / HIDDEN for h in widths},
    )


def subsets(number: int) -> Iterator[tuple[int, ...]]:
    for size in range(1, number + 1):
        yield from itertools.combinations(range(number), size)


def lost(found: Importance, kept: Kept) -> float:
    total = found.layers.sum() - found.layers[list(kept.layers)].sum()
    total += found.hidden.sum() - found.hidden[list(kept.hidden)].sum()
    for layer, heads, neurons in zip(kept.layers, kept.heads, kept.neurons, strict=True):
        total += found.heads[layer].sum() - found.heads[layer][list(heads)].sum()
        total += found.neurons[layer].sum() - found.neurons[layer][list(neurons)].sum()
    return float(total)


def cost(table: Costs, kept: Kept) -> float:
    shape = [(len(h), len(n)) for h, n in zip(kept.heads, kept.neurons, strict=True)]
    return table.of(len(kept.hidden), shape)


def by_trying(found: Importance, table: Costs, budget: float, layer_sets: list[tuple[int, ...]]) -> float | None:
    """The least importance that any cut within the budget loses."""
    best = None
    for layers in layer_sets:
        parts = [list(itertools.product(subsets(HEADS), subsets(NEURONS)))] * len(layers)
        for inside in itertools.product(*parts):
            for width in table.rest:
                strongest = tuple(sorted(np.argsort(-found.hidden)[:width].tolist()))
                kept = Kept(layers, tuple(h for h, _ in inside), tuple(n for _, n in inside), strongest)
                if cost(table, kept) <= budget + 1e-9:
                    value = lost(found, kept)
                    best = value if best is None else min(best, value)
    return best


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", [11.9, 13, 14.5, 17, 20, 23, 28, 30])
def test_heads_and_neurons_are_the_best_there_are(seed: int, budget: float) -> None:
    found = search(importance(seed), costs(), budget, block=1, skip_layers=False)
    expected = by_trying(importance(seed), costs(), budget, [(0, 1)])
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.lost == pytest.approx(expected)
    check(found, importance(seed), costs(), budget)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", [4, 6, 9, 12, 15, 20, 25])
def test_layers_and_width_too(seed: int, budget: float) -> None:
    given, table = importance(seed), costs((2, 3, HIDDEN))
    fewest = int(given.layers.argmax())  # the less important layer goes first
    expected = by_trying(given, table, budget, [(0, 1), (fewest,)])
    found = search(given, table, budget, block=1)
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.lost == pytest.approx(expected)
    check(found, given, table, budget)


def check(found: Found, given: Importance, table: Costs, budget: float) -> None:
    assert found.cost == pytest.approx(cost(table, found.kept))
    assert found.cost <= budget + 1e-9
    assert found.lost == pytest.approx(lost(given, found.kept))
    assert all(found.kept.heads)
    assert all(found.kept.neurons)


def test_a_larger_budget_never_loses_more() -> None:
    given, table = importance(7), costs((2, HIDDEN))
    found = [search(given, table, budget, block=1) for budget in np.arange(8, 32, 0.5)]
    losses = [one.lost for one in found if one is not None]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(0)


def test_neurons_go_in_blocks() -> None:
    random = np.random.default_rng(0)
    scores = random.exponential(size=70)
    given = Importance((np.ones(2),), (scores,), np.ones(1), np.ones(8))
    table = Costs({8: 0.0}, {8: np.zeros(3)}, {8: np.arange(71) * 1.0})
    for budget, number in ((31.5, None), (32, 32), (63, 32), (64, 64), (69, 64), (70, 70)):
        found = search(given, table, budget, block=32)
        if number is None:
            assert found is None
        else:
            assert found is not None
            assert found.kept.neurons == (tuple(np.sort(np.argsort(-scores)[:number]).tolist()),)


def test_a_layer_keeps_a_matrix_that_is_large_enough() -> None:
    """8 wide and of at least 400 numbers: 50 neurons, so two blocks of 32 in each layer, however little is wanted."""
    random = np.random.default_rng(1)
    scores = tuple(random.exponential(size=96) for _ in range(2))
    given = Importance((np.ones(2),) * 2, scores, np.array([2000.0, 1000.0]), np.ones(8))
    table = Costs({8: 0.0}, {8: np.zeros(3)}, {8: np.arange(97) * 1.0})
    options = {"block": 32, "matrix": 400}
    least = smallest(given, table, **options)
    assert least.shape == (8, [(1, 64)])
    assert search(given, table, 63, **options) is None
    for budget, numbers in ((64, [64]), (128, [64, 64]), (161, [64, 96]), (192, [96, 96])):
        found = search(given, table, budget, **options)
        assert found is not None
        assert sorted(neurons for _, neurons in found.shape[1]) == numbers
        assert found.cost == sum(numbers)
    best = search(given, table, 161, **options)
    assert best is not None
    for kept, importance_ in zip(best.kept.neurons, scores, strict=True):
        assert set(np.argsort(-importance_)[:64].tolist()) <= set(kept)


def test_the_smallest_is_as_small_as_can_be() -> None:
    given, table = importance(3), costs((2, HIDDEN))
    least = smallest(given, table, block=1)
    assert least.shape == (2, [(1, 1)])
    assert least.cost == pytest.approx(cost(table, least.kept))
    assert search(given, table, least.cost, block=1) is not None
    assert search(given, table, least.cost * 0.99, block=1) is None
    assert smallest(given, table, block=1, skip_layers=False).shape == (2, [(1, 1), (1, 1)])


def test_equal_scores_are_decided_by_place() -> None:
    given = Importance((np.ones(3),) * 2, (np.ones(3),) * 2, np.ones(2), np.ones(HIDDEN))
    found = search(given, costs(), 20, block=1, skip_layers=False)
    assert found is not None
    assert found.kept.heads == ((0, 1), (0,))
    assert found.kept == search(given, costs(), 20, block=1, skip_layers=False).kept
