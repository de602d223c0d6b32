"""Token buckets against what a minute holds, on a clock of the test's own."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import RateLimitedError
from service.quota import Quota

gaps = st.lists(st.floats(0, 30), min_size=1, max_size=200)


@given(st.integers(1, 100), st.integers(1, 8), gaps)
def test_no_minute_sees_more_than_two_minutes_worth_and_none_waits_longer_than_it_is_told(limit, workers, steps):
    quota = Quota(limit, None, workers)
    now_s, admitted, told_s = 0.0, [], 0.0
    for step in steps:
        now_s += step
        try:
            quota.check(now_s)
        except RateLimitedError as error:
            told_s = now_s + error.retry_after_s
            continue
        quota.take_request()
        admitted.append(now_s)
    mine = limit / workers
    for begin_s in admitted:
        within = [then_s for then_s in admitted if begin_s <= then_s < begin_s + 60]
        assert len(within) <= 2 * mine + 1  # a full bucket, and what flows in
    if told_s > now_s:
        quota.check(told_s + 1e-6)  # raises if the wait was too short


def test_tokens_delay_the_next_request_by_what_was_overdrawn():
    quota = Quota(None, 600, 1)
    quota.check(0.0)
    quota.take_tokens(900)  # 300 too many: half a minute's worth
    with pytest.raises(RateLimitedError, match="tokens") as refused:
        quota.check(0.0)
    assert refused.value.retry_after_s == math.ceil(301 / 10)
    with pytest.raises(RateLimitedError):
        quota.check(30.0)
    quota.check(30.2)


def test_headers_tell_of_the_nearest_bound_over_all_workers():
    quota = Quota(100, 1000, 2)
    quota.check(0.0)
    quota.take_request()
    quota.take_tokens(400)  # of this worker's 500
    assert dict(quota.headers(0.0)) == {
        b"ratelimit-limit": b"1000",
        b"ratelimit-remaining": b"200",
        b"ratelimit-reset": b"48",  # 400 of 500 a minute
    }
    assert dict(Quota(1, None, 8).headers(0.0))[b"ratelimit-remaining"] == b"1"
    assert Quota(None, None, 1).headers(0.0) == []
