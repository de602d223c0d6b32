"""What is counted of a model's answers is what its clients were told."""

import asyncio
import collections
import json

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from scipy import stats

from bundle import Activation, Task
from service.drift import normalized_entropy
from tests.service.helpers import changed, running, settings_for

TEXTS = ["good", "bad movie", "very dull plot", "not very good", "unheard of", "great", "awful awful film"]


def told_and_counted(bundle) -> tuple[list[dict], dict[str, float]]:
    async def run():
        async with running(settings_for(bundle)) as client:
            answers = [(await client.post("/v1/classify", json={"inputs": text})).json() for text in TEXTS]
            return answers, (await client.get("/metrics")).text

    answers, metrics = asyncio.run(run())
    samples = {
        f"{sample.name}:{sample.labels.get('label', sample.labels.get('le', ''))}": sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
    }
    return [answer["results"][0] for answer in answers], samples


def test_labels_confidence_and_tokens(tiny_bundle, tmp_path):
    bundle = changed(tiny_bundle, tmp_path / "b", reference_statistics={"label_share": {"negative": 0.25}})
    results, counted = told_and_counted(bundle)
    labels = collections.Counter(result["labels"][0]["label"] for result in results)
    assert {label: counted[f"limbeck_predictions_total:{label}"] for label in ("negative", "positive")} == {
        label: labels[label] for label in ("negative", "positive")
    }
    scores = np.array([result["labels"][0]["score"] for result in results])
    assert counted["limbeck_prediction_confidence_bucket:0.7"] == (scores <= 0.7).sum()
    assert np.isclose(counted["limbeck_prediction_confidence_sum:"], scores.sum())
    assert counted["limbeck_tokens_total:"] == sum(result["tokens"] for result in results)
    assert counted["limbeck_unknown_tokens_total:"] == 2  # "unheard of"
    assert counted["limbeck_reference_label_share:negative"] == 0.25
    assert counted["limbeck_prediction_entropy_count:"] == len(TEXTS)


def test_multi_label_counts_each_label_given_and_those_that_got_none(tiny_bundle, tmp_path):
    many = changed(
        tiny_bundle,
        tmp_path / "many",
        files={"golden.jsonl": _sigmoid_golden(tiny_bundle)},
        task=Task.MULTI_LABEL,
        activation=Activation.SIGMOID,
        thresholds={"negative": 0.6, "positive": 0.6},
    )
    results, counted = told_and_counted(many)
    given = collections.Counter(label for result in results for label in result["predicted"] or ["(none)"])
    assert {label: counted[f"limbeck_predictions_total:{label}"] for label in given} == dict(given)
    assert "limbeck_prediction_entropy_count:" not in counted


def _sigmoid_golden(bundle) -> bytes:
    """Golden lines of the same logits under a sigmoid; two softmax scores fix only the difference of the logits."""
    from service.engine.session import Session
    from service.engine.tokenization import Tokenizer, pad

    tokenizer = Tokenizer(bundle.path("tokenizer.json"), 16)
    logits = Session(bundle.path("model.fp32.onnx")).run(pad(tokenizer.encode(["good movie"]), 0))[0]
    scores = [float(1 / (1 + np.exp(-value))) for value in logits]
    return json.dumps({"text": "good movie", "scores": {"fp32": scores}}).encode() + b"\n"


def test_entropy_is_that_of_scipy():
    scores = np.random.default_rng(0).dirichlet([0.3] * 5, size=50).astype(np.float32)
    np.testing.assert_allclose(normalized_entropy(scores), stats.entropy(scores, base=5, axis=1), atol=1e-5)
    assert normalized_entropy(np.array([[1, 0]], dtype=np.float32))[0] == 0
