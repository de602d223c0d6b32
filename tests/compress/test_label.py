"""Runs in which a language model labels the unlabeled texts, through the command, against a local server."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from bundle import open_bundle
from compress import label, targets, teacher
from compress.batches import make_batch
from compress.errors import RecipeError
from compress.llm_answers import to_logits
from compress.recipe_file import load_recipe
from compress.recipe_training import Teacher
from compress.stage import StageReport
from service.engine.tokenization import Tokenizer
from tests.compress.test_targets import torch_rows
from tests.support.command import limbeck, started
from tests.support.llm_server import (
    KEY,
    SURE,
    Answer,
    Body,
    completion,
    error,
    label_of,
    of_topics,
    serving,
    text_of,
    with_logprobs,
)
from tests.support.models import write_tiny_recipe
from tests.support.runs import Finished, reopened, stage_folder

PRICES = {"price_per_million_input_tokens": 2.0, "price_per_million_output_tokens": 8.0}


def llm(url: str, **changes: Any) -> str:
    """The override that names a server."""
    given = {"endpoint": url, "model": "m", "validation_texts": 20, "retries": 2, "api_key_env": "LABEL_KEY"}
    return "teacher.llm=" + json.dumps(given | PRICES | changes)


def with_key() -> None:
    os.environ["LABEL_KEY"] = KEY


def labeled(finished: Finished, out: Path, url: str, *overrides: str, **changes: Any) -> Any:
    """Run the stage by itself; its run, and its summary."""
    os.environ.pop("LABEL_KEY", None)
    run = reopened(finished, out, (), [llm(url, api_key_env=None, **changes), *overrides])
    summary = label.run(run, stage_folder(run, "label"))
    run.reports["label"] = StageReport("label", 0.0, {}, summary)
    return run, summary


@pytest.fixture
def single(finished: Callable[[str], Finished]) -> Finished:
    return finished("single-label")


def test_answers_become_logits_of_the_unlabeled_texts(single: Finished, tmp_path: Path) -> None:
    """In their order; what is said of validation texts is compared with their labels, which the rule makes."""
    with serving() as server:
        run, summary = labeled(single, tmp_path, server.url)
    logits = label.read_logits(run)
    assert run.splits.labels == ["negative", "positive"]
    for example, row in zip(run.unlabeled, logits, strict=True):
        sure = [1 - SURE, SURE] if label_of(example.text) == "positive" else [SURE, 1 - SURE]
        assert row == pytest.approx(to_logits(np.array(sure), 0.02, multi_label=False), abs=1e-5)
    assert summary["labeled"] == summary["texts"] == 60
    assert summary["validation"] == {"texts": 20, "labeled": 20, "accuracy": 1.0}
    prompt_tokens = sum(len(body["messages"][0]["content"].split()) for body in server.bodies)
    assert summary["prompt_tokens"] == prompt_tokens
    assert summary["cost"] == pytest.approx((2 * prompt_tokens + 8 * len(server.bodies)) / 1e6)
    assert summary["cost_per_million_texts"] == pytest.approx(1e6 * summary["cost"] / len(server.bodies))


def test_several_labels_are_voted_on(finished: Callable[[str], Finished], tmp_path: Path) -> None:
    with serving(of_topics) as server:
        run, summary = labeled(finished("multi-label"), tmp_path, server.url, samples=3)
    assert summary["method"] == "votes"
    assert summary["validation"]["micro_f1"] == 1.0
    logits = label.read_logits(run)
    assert np.allclose(np.abs(logits), np.log(0.99 / 0.01), atol=1e-4)


def test_pairs_are_asked_together(finished: Callable[[str], Finished], tmp_path: Path) -> None:
    with serving(lambda body, number: completion(["better"] * body.get("n", 1), body)) as server:
        run, _ = labeled(finished("pair"), tmp_path, server.url, validation_texts=0)
    first = run.unlabeled[0]
    prompts = [body["messages"][0]["content"] for body in server.bodies]
    assert any(f"First text: {first.text}\n\nSecond text: {first.text_pair}" in prompt for prompt in prompts)


def test_only_so_many_texts_are_asked_for(single: Finished, tmp_path: Path) -> None:
    with serving() as server:
        run, summary = labeled(single, tmp_path, server.url, texts=10, validation_texts=0)
    assert summary["texts"] == summary["labeled"] == 10
    assert summary["validation"] is None
    assert len(server.bodies) <= 10
    assert len(label.answered(label.read_logits(run))) == 10


def test_what_it_says_is_averaged_with_the_teachers_logits(
    single: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training rows, and texts without an answer, are the teacher's alone."""
    monkeypatch.setattr(targets, "autocast_dtype", lambda *_: None)

    def rule(body: Body, number: int) -> Answer:
        return completion(["banana"], body) if text_of(body).startswith("the") else with_logprobs(body, number)

    with serving(rule) as server:
        run, summary = labeled(single, tmp_path, server.url, weight=3.0)
    assert summary["unparsable"] > 0
    logits = label.read_logits(run)

    shutil.copytree(single.out / "work/teacher", run.folder("teacher"))
    targets.run(run, stage_folder(run, "targets"))
    kept = np.load(run.folder("targets") / targets.LOGITS)
    own = torch_rows(run, targets.transfer_set(run, run.folder("targets")))
    train = len(run.splits.train)
    assert np.allclose(kept[:train], own[:train], atol=1e-5)
    for row, said, alone in zip(kept[train:], logits, own[train:], strict=True):
        assert row == pytest.approx(alone if np.isnan(said).any() else (alone + 3 * said) / 4, abs=1e-4)


def test_a_teacher_that_is_fine_tuned_learns_from_it(single: Finished, tmp_path: Path) -> None:
    """Rows with a true label have its cross-entropy, labeled texts the KL from what was said, both by torch alone."""
    with serving() as server:
        run, _ = labeled(single, tmp_path, server.url)
    data, loss = teacher._lessons(run, Tokenizer(single.out / "work/teacher" / teacher.TOKENIZER, 32))
    train = len(run.splits.train)
    assert len(data.encoded.encodings) == train + 60
    batch = make_batch(data, [0, train + 1], 0, torch.device("cpu"))
    rows = torch.tensor([[0.3, -1.0], [2.0, 0.5]])
    said = torch.softmax(torch.from_numpy(label.read_logits(run)[1]), 0)
    hard = F.cross_entropy(rows[:1], torch.tensor([run.splits.labels.index(run.splits.train[0].target)]))
    soft = F.kl_div(torch.log_softmax(rows[1], 0), said, reduction="sum")
    assert loss(rows, batch).tolist() == pytest.approx([float(hard), float(soft)], abs=1e-6)
    summary = teacher.run(run, stage_folder(run, "teacher"))
    assert summary["validation_score"] > 0.8


@pytest.mark.slow
def test_a_whole_run_never_tells_the_key(tmp_path: Path) -> None:
    """Not on the terminal, not in the bundle, not in any file of the run; the report has cost and counts."""
    recipe = write_tiny_recipe(tmp_path, evaluate={"baselines": False}, price_per_core_hour=0.05)
    with serving() as server:
        arguments = ("compress", recipe, "--out", tmp_path / "out", "--set", llm(server.url))
        result = limbeck(*arguments, setup=with_key)
        assert result.returncode == 0, result.stderr
        assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
        asked = len(server.bodies)
        again = limbeck(*arguments, setup=with_key)
        assert "label: done earlier" in again.stdout
        dearer = limbeck(*arguments[:-1], llm(server.url, price_per_million_input_tokens=4.0), setup=with_key)
        assert dearer.returncode == 0, dearer.stderr
        assert len(server.bodies) == asked  # other prices, and nothing is asked for again
        assert "teacher: done earlier" in dearer.stdout
    for text in (result.stdout, result.stderr, again.stdout, dearer.stdout):
        assert KEY not in text
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    assert "60 of 60 unlabeled texts labeled; dropped: none" in result.stdout
    card = (tmp_path / "out/bundle/README.md").read_text()
    assert "`m` labeled 60 of 60 unlabeled texts by logprobs" in card
    assert "m, asked for labels" in card
    assert open_bundle(tmp_path / "out/bundle").manifest.lineage.teachers["llm"]["labeled"] == 60


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_pays_for_nothing_twice(tmp_path: Path, number: signal.Signals) -> None:
    """What was answered and kept is never asked for again: only what was under way, at most as many as side by side."""
    recipe = write_tiny_recipe(tmp_path)
    with serving(delay_s=0.03) as server:
        arguments = ("compress", recipe, "--out", tmp_path / "out", "--set", llm(server.url, concurrency=2))
        for wanted in (10, 30):
            with started(*arguments, setup=with_key) as running:
                running.wait_until(lambda wanted=wanted: len(server.bodies) >= wanted)
                running.send(number)
                result = running.result()
            assert result.returncode == (-signal.SIGKILL if number is signal.SIGKILL else 130), result.stderr
            assert not (tmp_path / "out/work/label/stage.json").exists()
        kept = (tmp_path / "out/work" / label.CACHE).read_bytes().count(b"\n")
        assert kept >= 24
        before = len(server.bodies)
        with started(*arguments, setup=with_key) as running:
            running.wait_until(lambda: (tmp_path / "out/work/label/stage.json").exists())
            running.send(signal.SIGKILL)
        distinct = len({json.dumps(body) for body in server.bodies})
        assert len(server.bodies) - before == distinct - kept
        assert sum(count - 1 for count in server.asked().values()) <= 2 * 2
    report = json.loads((tmp_path / "out/work/label/stage.json").read_text())["report"]["summary"]
    assert report["labeled"] == 60


@pytest.mark.parametrize(
    ("changes", "setup", "message"),
    [
        ({}, None, "the environment variable LABEL_KEY, which teacher.llm.api_key_env names, holds no key"),
        ({"answers": {"neutral": "x"}}, with_key, "teacher.llm.answers: no label 'neutral'; expected some of negative"),
        pytest.param(
            {"answers": {"negative": "Positive!"}},
            with_key,
            "reads like 'Positive!' without case and the marks",
            marks=pytest.mark.slow,
        ),
        ({"prompt": "Say banana: {text}"}, with_key, "none of the texts got a label"),
    ],
)
def test_what_a_user_can_mend_is_one_message(
    single: Finished, tmp_path: Path, changes: dict, setup: Callable[[], None] | None, message: str
) -> None:
    def rule(body: Body, number: int) -> Answer:
        banana = "banana" in body["messages"][0]["content"]
        return completion(["banana"] * body.get("n", 1), body) if banana else with_logprobs(body, number)

    with serving(rule) as server:
        override = llm(server.url, **changes)
        result = limbeck("compress", single.recipe, "--out", tmp_path / "out", "--set", override, setup=setup)
    assert result.returncode == 1, result.stdout
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert message in result.stderr
    assert not (tmp_path / "out/bundle").exists()


def test_no_unlabeled_texts_is_told_at_once(tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path)
    (tmp_path / "data/unlabeled.jsonl").unlink()
    with serving() as server:
        result = limbeck("compress", recipe, "--out", tmp_path / "out", "--set", llm(server.url), setup=with_key)
    assert "teacher.llm labels unlabeled texts, of which there are none" in result.stderr
    assert not server.bodies


@pytest.mark.slow
def test_an_endpoint_that_dies_is_one_message_and_the_run_goes_on_later(tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, evaluate={"baselines": False})

    def dies(body: Body, number: int) -> Answer:
        return with_logprobs(body, number) if len(server.bodies) < 20 else error(401, "the key was withdrawn")

    with serving(dies) as server:
        arguments = ("compress", recipe, "--out", tmp_path / "out", "--set", llm(server.url))
        result = limbeck(*arguments, setup=with_key)
        assert result.returncode == 1
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
        assert "refused the key: status 401: the key was withdrawn; what was answered is kept" in result.stderr
        server.rule = with_logprobs
        assert limbeck(*arguments, setup=with_key).returncode == 0
        assert set(server.asked().values()) == {1}


LLM = {"endpoint": "http://localhost:1/v1", "model": "m"}


@pytest.mark.parametrize(
    ("changes", "task", "message"),
    [
        ({"endpoint": "localhost:1"}, "single-label", "endpoint: expected the base URL of an API"),
        ({"endpoint": "http://me:secret@host/v1"}, "single-label", "keys belong in api_key_env or api_key_file"),
        ({"endpoint": "http://host/v1?key=secret"}, "single-label", "expected no user, password, query or fragment"),
        ({"endpoint": "http://host:99999/v1"}, "single-label", "endpoint: expected a port from 1 to 65535"),
        ({"endpoint": "http://host:abc/v1"}, "single-label", "endpoint: expected a port from 1 to 65535"),
        ({"endpoint": "http://host:0/v1"}, "single-label", "endpoint: expected a port from 1 to 65535"),
        ({"api_key_env": KEY}, "single-label", "expected the name of an environment variable, not the key itself"),
        ({"api_key": KEY}, "single-label", "teacher.llm.api_key: unknown key; did you mean 'api_key_"),
        ({"api_key_env": "A", "api_key_file": "b"}, "single-label", "expected api_key_env or api_key_file, found both"),
        ({"prompt": "no place"}, "single-label", "prompt: expected {text} in it"),
        ({"prompt": "{text}"}, "pair", "{text_pair} belongs to task pair; found task pair"),
        ({"prompt": "{text} {text_pair}"}, "single-label", "{text_pair} belongs to task pair; found task single"),
        ({}, "token-classification", "teacher.llm labels whole texts"),
        ({"request": {"messages": []}}, "single-label", "request: messages is decided by other keys"),
        ({"price_per_million_input_tokens": 1}, "single-label", "expected a price for input and output tokens both"),
        ({"method": "guess"}, "single-label", "teacher.llm.method"),
        ({"weight": 0}, "single-label", "teacher: llm.weight: found 0 and no teacher with fine_tune"),
    ],
)
def test_a_recipe_that_cannot_be_followed(tmp_path: Path, changes: dict, task: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    document = {
        "name": "x",
        "task": task,
        "data": {"folder": "d"},
        "teacher": {"model": "m", "llm": LLM | changes},
        "student": {"layers": 2},
    }
    path.write_text(json.dumps(document))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert message in str(caught.value)
    assert KEY not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("where", ["first", "other"])
def test_a_language_model_without_weight_may_teach_a_teacher(where: str) -> None:
    learning, other = {"fine_tune": {}} if where == "first" else {}, {"model": "b"}
    others = [other | ({"fine_tune": {}} if where == "other" else {})]
    found = Teacher.model_validate({"model": "m", "llm": LLM | {"weight": 0}, "others": others} | learning)
    assert found.llm is not None


def test_a_key_of_another_teacher_that_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    others = [{"model": "b"}, {"modle": "c"}]
    document = {"name": "x", "data": {"folder": "d"}, "teacher": {"model": "m", "others": others}}
    path.write_text(json.dumps(document | {"student": {"layers": 2}}))
    with pytest.raises(RecipeError, match=r"teacher.others.1.modle: unknown key; did you mean 'model'"):
        load_recipe(path)
