"""How much padding is worth a call, from a clock that only the model moves."""

import pytest

from service.engine.call_cost import padding_worth_a_call


class Clock:
    """A model's cost, `call_s` and `token_s` for each token, on a clock of its own; `noise_s` comes on top at first."""

    def __init__(self, call_s: float, token_s: float, noise_s: float = 0.0) -> None:
        self.now_s = 0.0
        self.lengths: list[int] = []
        self._call_s, self._token_s, self._noise_s = call_s, token_s, noise_s

    def __call__(self) -> float:
        return self.now_s

    def run(self, length: int) -> None:
        if length not in self.lengths:
            self.now_s += self._noise_s
        self.lengths.append(length)
        self.now_s += self._call_s + self._token_s * length


def measured(clock: Clock, longest: int = 128) -> int:
    return padding_worth_a_call(clock.run, longest, clock)


def test_a_call_that_costs_much_is_worth_more_padding() -> None:
    small, large = Clock(call_s=80e-6, token_s=3e-6), Clock(call_s=400e-6, token_s=25e-6)
    # the model's own fixed cost and 0.1 ms of the engine, of which 0.4 is saved
    assert measured(small) == round(0.4 * 180 / 3)
    assert measured(large) == round(0.4 * 500 / 25)


def test_the_first_slow_run_does_not_count() -> None:
    assert measured(Clock(80e-6, 3e-6, noise_s=0.05)) == measured(Clock(80e-6, 3e-6))


@pytest.mark.parametrize(("call_s", "token_s", "expected"), [(0.0, 1e-3, 4), (1.0, 1e-6, 64), (1e-3, 0.0, 64)])
def test_it_stays_within_bounds(call_s: float, token_s: float, expected: int) -> None:
    assert measured(Clock(call_s, token_s)) == expected


@pytest.mark.parametrize("longest", [4, 8])
def test_a_model_of_very_short_texts_is_not_timed(longest: int) -> None:
    clock = Clock(1e-3, 1e-6)
    assert measured(clock, longest) == 4
    assert clock.lengths == []


def test_no_text_is_longer_than_the_model_reads() -> None:
    clock = Clock(1e-4, 1e-5)
    measured(clock, longest=32)
    assert set(clock.lengths) == {8, 32}


def test_a_slow_model_is_not_run_ten_times() -> None:
    clock = Clock(1.0, 0.0)
    measured(clock)
    assert len(clock.lengths) == 2
