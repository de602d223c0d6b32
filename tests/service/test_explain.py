"""What `/v1/explain` says is what anybody finds who leaves the words out and classifies again."""

import asyncio
import json
import os

import onnx
import pytest
from onnx import helper, numpy_helper
from prometheus_client.parser import text_string_to_metric_families
from scipy.special import expit, softmax

from bundle import LAYOUT, Task
from service import app as app_module
from service.app import create_app
from service.request_log import RequestLog
from tests.bulk.helpers import exact_bundle, multi_label_bundle, pair_bundle, reference_logits
from tests.service.helpers import VOCABULARY, changed, running, settings_for
from tests.support.bundles import tiny_model

TEXT = "The movie was good, not great... but 🎬 was dull!"


def explain(bundle, body, path="/v1/explain", **changes):
    async def run():
        async with running(settings_for(bundle, **changes)) as client:
            return await client.post(path, json=body)

    return asyncio.run(run())


async def label_score(client, given, label) -> float:
    response = await client.post("/v1/classify", json={"inputs": [given]})
    assert response.status_code == 200, response.text
    return {one["label"]: one["score"] for one in response.json()["results"][0]["labels"]}[label]


def without(text: str, word: dict) -> str:
    return f"{text[: word['start']]} {text[word['end'] :]}"


async def samples(client) -> dict[tuple, float]:
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


@pytest.mark.parametrize("label", [None, "negative", "positive"])
def test_effects_are_what_classifying_without_the_word_shows(tiny_bundle, tmp_path, label):
    bundle = exact_bundle(tiny_bundle, tmp_path / "exact", max_length=32)

    async def run():
        async with running(settings_for(bundle)) as client:
            response = await client.post("/v1/explain", json={"inputs": TEXT} | ({"label": label} if label else {}))
            found = response.json()
            score = await label_score(client, TEXT, found["label"])
            others = [await label_score(client, without(TEXT, word), found["label"]) for word in found["words"]]
            best = (await client.post("/v1/classify", json={"inputs": TEXT})).json()["results"][0]
            return response, found, score, others, best

    response, found, score, others, best = asyncio.run(run())
    assert response.status_code == 200
    named = {key: found[key] for key in ("model", "version", "variant", "method", "words_left_out")}
    assert named == {"model": "tiny", "version": "1", "variant": "fp32", "method": "occlusion", "words_left_out": 0}
    assert found["label"] == (label or best["labels"][0]["label"])
    assert (found["tokens"], found["truncated"]) == (best["tokens"], best["truncated"])
    assert found["score"] == score
    assert [word["effect"] for word in found["words"]] == [score - other for other in others]
    assert "".join(word["text"] for word in found["words"]) == "".join(TEXT.split())
    assert all(TEXT[word["start"] : word["end"]] == word["text"] for word in found["words"])
    assert {word["field"] for word in found["words"]} == {"text"}


def test_effects_are_those_of_the_weights(tiny_bundle, tmp_path):
    """Against the model computed with NumPy and SciPy alone."""
    text = "the plot was not very good"
    found = explain(exact_bundle(tiny_bundle, tmp_path / "exact"), {"inputs": text, "label": "positive"}).json()
    score = softmax(reference_logits(text))[1]
    words = text.split()
    expected = [score - softmax(reference_logits(" ".join(words[:i] + words[i + 1 :])))[1] for i in range(len(words))]
    assert [word["text"] for word in found["words"]] == words
    assert [word["effect"] for word in found["words"]] == pytest.approx(expected, abs=1e-6)
    assert found["score"] == pytest.approx(score, abs=1e-6)


def test_each_label_of_a_multi_label_model_has_its_own_effects(tiny_bundle, tmp_path):
    text, bundle = "great plot", multi_label_bundle(tiny_bundle, tmp_path / "many")
    found = [explain(bundle, {"inputs": text, "label": label}).json() for label in ("negative", "positive")]
    alone = [expit(reference_logits(word)) for word in ("plot", "great")]
    for index, one in enumerate(found):
        score = expit(reference_logits(text))[index]
        assert one["score"] == pytest.approx(score, abs=1e-6)
        assert [word["effect"] for word in one["words"]] == pytest.approx(
            [score - left[index] for left in alone], abs=1e-6
        )


def test_of_a_pair_both_texts_are_explained(tiny_bundle, tmp_path):
    pair = {"text": "A good 🎬", "text_pair": "the plot"}

    async def run():
        async with running(settings_for(pair_bundle(tiny_bundle, tmp_path / "pairs"))) as client:
            found = (await client.post("/v1/models/pairs/versions/1/explain", json={"inputs": pair})).json()
            changed_pairs = [pair | {word["field"]: without(pair[word["field"]], word)} for word in found["words"]]
            return found, [await label_score(client, one, found["label"]) for one in changed_pairs]

    found, others = asyncio.run(run())
    told = [(word["field"], word["text"], word["start"], word["end"]) for word in found["words"]]
    assert told == [
        ("text", "A", 0, 1),
        ("text", "good", 2, 6),
        ("text", "🎬", 7, 8),
        ("text_pair", "the", 0, 3),
        ("text_pair", "plot", 4, 8),
    ]
    assert [word["effect"] for word in found["words"]] == [found["score"] - other for other in others]


def test_what_the_model_does_not_read_is_left_out(tiny_bundle, tmp_path):
    """And no word moves up into the place of one that was left out."""
    read = " ".join(["good", "film", "dull"] * 5)[:-5]  # 14 words, and two special tokens
    text = f"{read} bad awful bad awful"

    async def run():
        async with running(settings_for(exact_bundle(tiny_bundle, tmp_path / "exact"))) as client:
            found = (await client.post("/v1/explain", json={"inputs": text})).json()
            score = await label_score(client, text, found["label"])
            return (
                found,
                score,
                [await label_score(client, without(read, word), found["label"]) for word in found["words"]],
            )

    found, score, others = asyncio.run(run())
    assert (found["tokens"], found["truncated"], found["words_left_out"]) == (16, True, 4)
    assert [word["text"] for word in found["words"]] == read.split()
    assert found["score"] == score
    assert [word["effect"] for word in found["words"]] == [score - other for other in others]


def test_a_text_of_one_word_has_the_effect_of_all_of_it(tiny_bundle, tmp_path):
    found = explain(exact_bundle(tiny_bundle, tmp_path / "exact"), {"inputs": "good", "label": "positive"}).json()
    (word,) = found["words"]
    expected = softmax(reference_logits("good"))[1] - softmax(reference_logits(""))[1]
    assert word["effect"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("body", "field", "parts"),
    [
        ({"inputs": "good", "label": "neutral"}, "label", ["found 'neutral'", "expected one of negative, positive"]),
        ({"inputs": "good", "label": 1}, "label", ["found 1"]),
        ({"inputs": " \n"}, "inputs", ["empty text"]),
        ({"inputs": ["good"]}, "inputs", ["expected a string or an object with text and text_pair, found a list"]),
        ({"inputs": {"text": "a", "text_pair": "b"}}, "inputs", ["found a pair", "single texts"]),
        ({"inputs": {"text": "a"}}, "inputs.text_pair", ["missing"]),
        ({"inputs": "a \ud800"}, "inputs", ["surrogate pair at character 2"]),
        ({}, "inputs", ["missing"]),
        ({"inputs": "good", "top_k": 1}, "top_k", ["unknown key"]),
        ({"inputs": "good", "priority": "interactive"}, "priority", ["unknown key"]),
        ({"inputs": "good", "timeout_ms": 0}, "timeout_ms", ["greater than or equal to 1, found 0"]),
    ],
)
def test_bad_requests_get_422_with_the_field(tiny_bundle, body, field, parts):
    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            headers = {"content-type": "application/json"}
            return await client.post("/v1/explain", content=json.dumps(body).encode(), headers=headers)

    response = asyncio.run(run())
    assert response.status_code == 422
    error = response.json()["error"]
    assert (error["code"], error["field"]) == ("invalid_input", field)
    assert all(part in error["message"] for part in parts), error


def test_models_that_tag_and_models_that_are_not_there_are_refused(tiny_bundle, tmp_path):
    """The tags are those of the words' own embeddings."""
    weights = {tensor.name: tensor for tensor in tiny_model(0).graph.initializer}
    graph = tiny_model(0).graph
    nodes = [
        helper.make_node("Gather", ["embeddings", "input_ids"], ["words"]),
        helper.make_node("MatMul", ["words", "classifier"], ["logits"]),
    ]
    output = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["B", "T", 2])
    kept = [weights["embeddings"], weights["classifier"]]
    model = helper.make_model(
        helper.make_graph(nodes, "tags", list(graph.input), [output], kept),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    rows = numpy_helper.to_array(kept[0])[[2, VOCABULARY.index("good"), 3]] @ numpy_helper.to_array(kept[1])
    golden = {"text": "good", "scores": {"fp32": softmax(rows, axis=1).reshape(-1).tolist()}}
    files = {LAYOUT.model("fp32"): model.SerializeToString(), LAYOUT.golden: json.dumps(golden).encode() + b"\n"}
    tags = changed(tiny_bundle, tmp_path / "tags", task=Task.TOKEN_CLASSIFICATION, labels=["O", "PER"], files=files)
    refused = explain(tags, {"inputs": "good"})
    assert refused.status_code == 422
    assert refused.json()["error"]["message"] == "model: tiny gives tags to words, not labels to texts; ask it to tag"
    for path in ("/v1/models/none/explain", "/v1/models/tiny/versions/9/explain"):
        missing = explain(tiny_bundle, {"inputs": "good"}, path)
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_model")


def test_it_can_be_turned_off(tiny_bundle):
    assert explain(tiny_bundle, {"inputs": "good"}, explain=False).status_code == 404
    assert "/v1/explain" not in create_app(settings_for(tiny_bundle, explain=False)).openapi()["paths"]


def test_variants_are_no_predictions(tiny_bundle):
    """Nothing of what drift is seen by changes; the engine's own work is counted."""

    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            await client.post("/v1/classify", json={"inputs": "good unheard film"})
            before = await samples(client)
            assert (await client.post("/v1/explain", json={"inputs": "good unheard film"})).status_code == 200
            return before, await samples(client)

    before, after = asyncio.run(run())
    drift = ("limbeck_prediction", "limbeck_tokens", "limbeck_unknown_tokens")
    watched = {key: value for key, value in before.items() if key[0].startswith(drift)}
    assert watched[("limbeck_unknown_tokens_total", "tiny", "1")] == 1
    assert {key: after[key] for key in watched} == watched
    assert after[("limbeck_inputs_total", "tiny", "1")] == before[("limbeck_inputs_total", "tiny", "1")] + 4


def test_only_the_text_itself_is_logged(tiny_bundle, monkeypatch):
    reading, writing = os.pipe()
    monkeypatch.setattr(app_module, "RequestLog", lambda share: RequestLog(share, writing))
    try:
        explain(tiny_bundle, {"inputs": "not very good"}, request_log=True, log_texts=1)
        line = json.loads(os.read(reading, 1 << 16))
    finally:
        os.close(reading)
        os.close(writing)
    assert line["texts"] == ["not very good"]
    assert (line["route"], line["inputs"], line["tokens"]) == ("/v1/explain", 4, 17)


def test_the_openapi_document_describes_it(tiny_bundle):
    document = create_app(settings_for(tiny_bundle)).openapi()
    for path in ("/v1/explain", "/v1/models/{model}/explain", "/v1/models/{model}/versions/{version}/explain"):
        responses = document["paths"][path]["post"]["responses"]
        assert set(responses) == {"200", "401", "403", "404", "413", "415", "422", "429", "500", "503", "504"}
        assert "Retry-After" in responses["429"]["headers"]
    assert set(document["components"]["schemas"]["ExplainResponse"]["required"]) >= {"label", "score", "words"}
