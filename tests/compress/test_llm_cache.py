"""Answers on the disk: whole lines whatever happens, for one process at a time."""

import json
import os
import resource
import tracemalloc
from pathlib import Path

import pytest

from compress.errors import LlmError
from compress.llm_cache import AnswerCache, key_of
from tests.support.llm_asking import BODY


def test_a_cut_line_is_forgotten_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.jsonl"
    with AnswerCache(path) as cache:
        cache.put("a", {"choices": [], "text": "ä\ud800\n"})
        cache.put("b", {"choices": []})
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with AnswerCache(path) as cache:
        assert cache.get("a") == {"choices": [], "text": "ä\ud800\n"}
        assert cache.get("b") is None
        cache.put("c", {})
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "c"]


def test_a_file_that_is_no_cache_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"text": "my data"}\n')
    with pytest.raises(LlmError, match=r"answers.jsonl:1: not an answer that was kept here"):
        AnswerCache(path)
    assert path.read_text() == '{"text": "my data"}\n'


def test_two_runs_do_not_share_a_cache(tmp_path: Path) -> None:
    path, message = tmp_path / "answers.jsonl", "another run is writing answers there"
    with AnswerCache(path), pytest.raises(LlmError, match=message):
        AnswerCache(path)
    with AnswerCache(path):
        assert path.exists()


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with AnswerCache(tmp_path / "answers.jsonl") as cache:
        cache.put("a", {})
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: .*answers.jsonl"):
            cache.put("b", {})
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 1


def test_a_write_that_breaks_off_leaves_whole_lines(tmp_path: Path) -> None:
    """In the middle of a line, as a full disk does; what is kept later stands behind the last whole line."""
    path = tmp_path / "answers.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with AnswerCache(path) as cache:
        cache.put("a", {"text": "first"})
        size = path.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
        try:
            with pytest.raises(OSError, match=r"answers.jsonl"):
                cache.put("b", {"text": "x" * 100})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert path.stat().st_size == size
        assert cache.get("b") is None
        cache.put("c", {"text": "third"})
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "c"]
    with AnswerCache(path) as cache:
        assert (cache.get("a"), cache.get("b"), cache.get("c")) == ({"text": "first"}, None, {"text": "third"})
        assert len(cache) == 2


def test_answers_lie_on_the_disk_and_not_in_memory(tmp_path: Path) -> None:
    """A cache of a million answers would not fit there; each of these is 100 kB."""
    answers = {str(number): {"text": str(number) * 100_000} for number in range(10)}
    path = tmp_path / "answers.jsonl"
    with AnswerCache(path) as cache:
        for key, answer in answers.items():
            cache.put(key, answer)
    tracemalloc.start()
    try:
        with AnswerCache(path) as cache:
            held, _ = tracemalloc.get_traced_memory()
            assert all(cache.get(key) == answer for key, answer in answers.items())
            cache.put("more", {"text": "x" * 1_000_000})
            held_later, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert max(held, held_later) < 500_000


def test_requests_that_differ_have_keys_that_differ() -> None:
    keys = {key_of("http://a/v1", BODY, 0), key_of("http://a/v1", BODY, 1), key_of("http://b/v1", BODY, 0)}
    keys.add(key_of("http://a/v1", BODY | {"n": 2}, 0))
    assert len(keys) == 4
    assert key_of("http://a/v1", dict(reversed(BODY.items())), 0) in keys
