"""The engine in-process: the scores of the weights, bit for bit those of the HTTP service, in order."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, softmax

from bulk import Classifier
from bulk.classifier import batches_by_length
from bulk.errors import BulkError, InputError, TaskError
from bundle import Bundle, Task
from bundle.errors import HashMismatchError
from service.errors import StartupError
from tests.bulk.helpers import multi_label_bundle, pair_bundle, reference_logits, sentences
from tests.service.helpers import changed, running, settings_for
from tests.support.bundles import tiny_tokenizer

TEXTS = sentences(300)


def over_http(bundle: Bundle, inputs: list[object]) -> list[dict[str, object]]:
    async def ask() -> list[dict[str, object]]:
        async with running(settings_for(bundle)) as client:
            results = []
            for at in range(0, len(inputs), 100):
                response = await client.post("/v1/classify", json={"inputs": inputs[at : at + 100]})
                results += response.json()["results"]
            return results

    return asyncio.run(ask())


def test_scores_are_those_of_the_weights(bundle: Bundle) -> None:
    with Classifier(bundle.folder) as classifier:
        scores = classifier.scores(TEXTS)
    assert scores.shape == (300, 2)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, [softmax(reference_logits(text)) for text in TEXTS], atol=1e-6)


def test_results_are_bit_for_bit_those_of_the_service(bundle: Bundle) -> None:
    served = over_http(bundle, TEXTS)
    with Classifier(str(bundle.folder), sessions=3) as classifier:
        results = classifier.classify(TEXTS)
    assert [
        {
            "labels": [{"label": label, "score": score} for label, score in result.labels],
            "truncated": result.truncated,
            "tokens": result.tokens,
        }
        for result in results
    ] == served
    assert {result.truncated for result in results} == {True, False}


def test_pairs_are_bit_for_bit_those_of_the_service(bundle: Bundle, tmp_path: Path) -> None:
    pairing = pair_bundle(bundle, tmp_path / "pairs")
    pairs = list(zip(TEXTS[:100], TEXTS[100:200], strict=True))
    served = over_http(pairing, [{"text": text, "text_pair": text_pair} for text, text_pair in pairs])
    with Classifier(pairing.folder) as classifier:
        results = classifier.classify([*pairs[:50], *map(list, pairs[50:])])
    assert [dict(result.labels) for result in results] == [
        {item["label"]: item["score"] for item in result["labels"]} for result in served
    ]


def test_a_texts_scores_do_not_depend_on_what_is_around_it(bundle: Bundle) -> None:
    with Classifier(bundle.folder) as classifier:
        together = classifier.scores(TEXTS)
        assert np.concatenate([classifier.scores(text) for text in TEXTS[:50]]).tobytes() == together[:50].tobytes()
        assert classifier.scores(reversed(TEXTS)).tobytes() == together[::-1].tobytes()


def test_more_than_one_window_keeps_the_order(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with Classifier(bundle.folder) as classifier:
        whole = classifier.scores(TEXTS)
        monkeypatch.setattr("bulk.inputs._WINDOW_ROWS", 7)
        assert classifier.scores(iter(TEXTS)).tobytes() == whole.tobytes()
        assert [r.tokens for r in classifier.classify(TEXTS)] == [
            min(16, len(tiny_tokenizer().encode(text).ids)) for text in TEXTS
        ]


def test_several_threads_share_it(bundle: Bundle) -> None:
    with Classifier(bundle.folder, sessions=2) as classifier, ThreadPoolExecutor(6) as threads:
        expected = [classifier.scores(TEXTS[at : at + 50]).tobytes() for at in range(0, 300, 50)]
        found = threads.map(lambda at: classifier.scores(TEXTS[at : at + 50]).tobytes(), [*range(0, 300, 50)] * 5)
        assert list(found) == expected * 5


def test_one_text_no_text_and_top_k(bundle: Bundle) -> None:
    with Classifier(bundle.folder) as classifier:
        (result,) = classifier.classify("a good movie", top_k=1)
        assert len(result.labels) == 1
        assert (
            result.predicted
            == (result.labels[0][0],)
            == (classifier.labels[classifier.scores("a good movie").argmax()],)
        )
        assert result.confident is None
        assert classifier.classify([]) == []
        assert classifier.scores([]).shape == (0, 2)
        assert (classifier.variant, classifier.provider) == ("fp32", "CPUExecutionProvider")


def test_multi_label_gives_the_labels_that_reach_their_thresholds(bundle: Bundle, tmp_path: Path) -> None:
    reference = np.array([expit(reference_logits(text)) for text in TEXTS])
    thresholds = np.median(reference, axis=0) + 1e-5
    several = multi_label_bundle(
        bundle, tmp_path / "several", thresholds=dict(zip(bundle.manifest.labels, thresholds, strict=True))
    )
    with Classifier(several.folder) as classifier:
        results = classifier.classify(TEXTS)
        np.testing.assert_allclose(classifier.scores(TEXTS), reference, atol=1e-6)
    expected = [
        {label for label, given in zip(several.manifest.labels, row >= thresholds, strict=True) if given}
        for row in reference
    ]
    assert [set(result.predicted) for result in results] == expected
    assert {len(labels) for labels in expected} >= {0, 1}
    plain = multi_label_bundle(bundle, tmp_path / "plain")
    with Classifier(plain.folder) as classifier:
        found = [len(result.predicted) for result in classifier.classify(TEXTS)]
    assert found == (reference >= 0.5).sum(axis=1).tolist()


def test_abstention_says_which_answers_are_sure(bundle: Bundle, tmp_path: Path) -> None:
    unsure = changed(bundle, tmp_path / "unsure", abstention={"threshold": 0.7, "precision": 0.95, "coverage": 0.5})
    with Classifier(unsure.folder) as classifier:
        results = classifier.classify(TEXTS)
    assert [result.confident for result in results] == [result.labels[0][1] >= 0.7 for result in results]
    assert {result.confident for result in results} == {True, False}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["good", " \n"], "inputs[1]: found an empty text"),
        (["good", None], "inputs[1]: found null, expected a text"),
        ([3.5], "inputs[0]: found float, expected a text"),
        ([("a", "b")], "inputs[0]: found a pair"),
        (["\ud800"], "inputs[0]: found half of a surrogate pair"),
        (["a" * 1_048_577], "inputs[0]: found a text of 1048577 characters"),
        ([" " * 1_048_577], "inputs[0]: found an empty text"),
    ],
)
def test_an_input_that_cannot_be_classified_is_named(bundle: Bundle, given: list[object], problem: str) -> None:
    with Classifier(bundle.folder) as classifier, pytest.raises(InputError) as raised:
        classifier.scores(given)
    assert str(raised.value).startswith(problem)


def test_a_pair_model_wants_pairs(bundle: Bundle, tmp_path: Path) -> None:
    with (
        Classifier(pair_bundle(bundle, tmp_path / "pairs").folder) as classifier,
        pytest.raises(InputError, match="expected a pair"),
    ):
        classifier.classify(["a good movie"])


def test_what_cannot_be_classified_with_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    tags = changed(bundle, tmp_path / "tags", task=Task.TOKEN_CLASSIFICATION)
    with pytest.raises(TaskError, match="token-classification"):
        Classifier(tags.folder)
    with pytest.raises(StartupError, match="no variant 'int4'"):
        Classifier(bundle.folder, variant="int4")
    path = bundle.path("model.fp32.onnx")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(HashMismatchError):
        Classifier(bundle.folder)


def test_top_k_below_one_and_a_closed_classifier_are_refused(bundle: Bundle) -> None:
    with Classifier(bundle.folder) as classifier, pytest.raises(InputError, match="top_k"):
        classifier.classify("good", top_k=0)
    with pytest.raises(BulkError, match="closed"):
        classifier.scores("good")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("limbeck")]


def test_batches_hold_texts_of_like_length_within_both_bounds() -> None:
    source = np.random.default_rng(0)
    tokens = source.integers(2, 500, size=1000).tolist()
    batches = list(batches_by_length(tokens, 16, 4096))
    assert sorted(index for batch in batches for index in batch) == list(range(1000))
    for batch in batches:
        assert len(batch) <= 16
        assert max(tokens[index] for index in batch) * len(batch) <= 4096
    padded = sum(max(tokens[index] for index in batch) * len(batch) for batch in batches)
    assert padded <= 1.05 * sum(tokens)
    assert list(batches_by_length([9000, 5], 16, 4096)) == [[0], [1]]
