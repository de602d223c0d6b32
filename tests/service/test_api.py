import asyncio
import threading

import pytest

from service import app as app_module
from service.app import create_app
from service.errors import StartupError
from tests.service.helpers import (
    changed,
    lifespan,
    pair_bundle,
    post_scope,
    reference_scores,
    running,
    settings_for,
    until,
)
from tests.support.bundles import TEXTS, make_bundle

JSON = {"content-type": "application/json"}


async def send(client, body, path="/v1/classify", **headers):
    content = body if isinstance(body, bytes) else None
    return await client.post(path, content=content, json=None if content else body, headers=JSON | headers)


def ask(bundle, body, path="/v1/classify", **changes):
    async def run():
        async with running(settings_for(bundle, **changes)) as client:
            return await send(client, body, path)

    return asyncio.run(run())


def test_scores_are_the_models_in_order_and_independent_of_batch_mates(tiny_bundle):
    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            together = (await send(client, {"inputs": TEXTS})).json()
            alone = [(await send(client, {"inputs": text})).json()["results"][0] for text in TEXTS]
            return together, alone

    together, alone = asyncio.run(run())
    assert {key: together[key] for key in ("model", "version", "variant")} == {
        "model": "tiny",
        "version": "1",
        "variant": "fp32",
    }
    assert together["results"] == alone
    for text, result in zip(TEXTS, together["results"], strict=True):
        scores = [label["score"] for label in result["labels"]]
        assert scores == sorted(scores, reverse=True)
        by_label = {label["label"]: label["score"] for label in result["labels"]}
        assert [by_label["negative"], by_label["positive"]] == pytest.approx(reference_scores(text), abs=1e-6)
        assert (result["tokens"], result["truncated"]) == (len(text.split()) + 2, False)


def test_calibration_temperature_is_part_of_the_served_score(tiny_bundle, tmp_path):
    from scipy.special import logit

    line = '{"text": "good", "scores": {"fp32": [0.5, 0.5]}}'
    variants = [tiny_bundle.manifest.variants[0].model_dump() | {"golden_tolerance": 1.0}]
    hot = changed(
        tiny_bundle, tmp_path / "hot", temperature=2.0, variants=variants, files={"golden.jsonl": line.encode()}
    )
    labels = ask(hot, {"inputs": "a good movie"}).json()["results"][0]["labels"]
    served = {label["label"]: label["score"] for label in labels}
    # with two labels, softmax is the sigmoid of the difference, which the temperature divides
    assert logit(served["positive"]) == pytest.approx(logit(reference_scores("a good movie")[1]) / 2, abs=1e-5)


def test_top_k_and_truncation(tiny_bundle):
    results = ask(tiny_bundle, {"inputs": ["good " * 30], "top_k": 1}).json()["results"]
    assert len(results[0]["labels"]) == 1
    assert (results[0]["tokens"], results[0]["truncated"]) == (16, True)


def test_pairs_go_to_pair_models_and_only_there(tiny_bundle, tmp_path):
    pair = {"text": "a good movie", "text_pair": "the plot"}
    pairs = pair_bundle(tiny_bundle, tmp_path / "pairs")
    labels = ask(pairs, {"inputs": [pair]}).json()["results"][0]["labels"]
    expected = dict(zip(("negative", "positive"), reference_scores("a good movie", "the plot"), strict=True))
    assert {label["label"]: label["score"] for label in labels} == pytest.approx(expected, abs=1e-6)
    for bundle, body, word in ((pairs, "a", "compares two"), (tiny_bundle, [pair], "single texts")):
        response = ask(bundle, {"inputs": body})
        assert response.status_code == 422
        assert word in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"inputs": ["a", "b", "c", " \n"]}, "inputs[3]", "empty text"),
        ({"inputs": [""]}, "inputs[0]", "empty text"),
        ({"inputs": []}, "inputs", "at least one"),
        ({"inputs": ["a"] * 5}, "inputs", "found 5, expected at most 4"),
        ({"inputs": ["a", 7]}, "inputs[1]", "expected a string or an object with text and text_pair, found 7"),
        ({"inputs": [None]}, "inputs[0]", "found null"),
        ({"inputs": [["a", "b"]]}, "inputs[0]", "found a list of 2"),
        ({"inputs": [{"text": "a"}]}, "inputs[0].text_pair", "missing"),
        ({"inputs": [{"text": "a", "text_pair": 1}]}, "inputs[0].text_pair", "valid string, found 1"),
        ({"inputs": [{"text": "a", "text_pair": "b", "extra": 1}]}, "inputs[0].extra", "unknown key"),
        ({"inputs": 3}, "inputs", "expected a list, found 3"),
        ({"inputs": {"text": "a", "text_pair": "b"}}, "inputs", "expected a list, found an object"),
        ({}, "inputs", "missing"),
        ({"inputs": "a", "topk": 1}, "topk", "unknown key"),
        ({"inputs": "a", "top_k": 0}, "top_k", "greater than or equal to 1, found 0"),
        ({"inputs": "a", "top_k": "1"}, "top_k", 'valid integer, found "1"'),
        ({"inputs": "a", "top_k": True}, "top_k", "found true"),
        ({"inputs": "a", "top_k": 1.5}, "top_k", "found 1.5"),
        ([1], "body", "expected a JSON object, found a list of 1"),
        (b"null", "body", "expected a JSON object"),
        (b"", "body", "missing"),
        (b'{"inputs": "a"', "body", "not JSON at character 14"),
        (b'{"inputs": "\xff"}', "body", "not UTF-8 at byte 12"),
        (b'{"inputs": "a", "top_k": NaN}', "top_k", "found NaN"),
        (b'{"inputs": "a", "top_k": ' + b"9" * 5000 + b"}", "body", "cannot be read"),
        (b"[" * 100_000, "body", "cannot be read"),
        (rb'{"inputs": ["a \ud800"]}', "inputs[0]", "surrogate pair at character 2"),
        (rb'{"inputs": "a", "\ud800": 1}', "body", "surrogate pair"),
    ],
)
def test_invalid_requests_get_422_with_the_field(tiny_bundle, body, field, words):
    response = ask(tiny_bundle, body, max_inputs=4)
    assert response.status_code == 422
    error = response.json()["error"]
    assert (error["code"], error["field"]) == ("invalid_input", field)
    assert words in error["message"]
    assert error["message"].startswith(field)


def test_odd_but_valid_texts_are_classified(tiny_bundle):
    texts = ["\x00", "🎬 fine", "e\u0301", "\u202egood", "a" * 20_000, "\ufeffgood"]
    assert len(ask(tiny_bundle, {"inputs": texts}).json()["results"]) == len(texts)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=UTF-8", 200),
        ("application/json; charset=latin-1", 415),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("", 415),
    ],
)
def test_only_json_is_taken(tiny_bundle, content_type, status):
    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            return await client.post("/v1/classify", content=b'{"inputs":"a"}', headers={"content-type": content_type})

    response = asyncio.run(run())
    assert response.status_code == status
    if status == 415:
        assert response.json()["error"]["code"] == "unsupported_content_type"


def test_a_large_body_is_refused_by_declared_length_and_by_counted_bytes(tiny_bundle):
    big = b'{"inputs": "' + b"a" * 200 + b'"}'

    async def chunks():
        for start in range(0, len(big), 50):
            yield big[start : start + 50]

    async def run():
        async with running(settings_for(tiny_bundle, max_body_bytes=100)) as client:
            declared = await client.post("/v1/classify", content=big, headers=JSON)
            streamed = await client.post("/v1/classify", content=chunks(), headers=JSON)
            exact = await client.post("/v1/classify", content=b'{"inputs":"a"}'.ljust(100), headers=JSON)
            return declared, streamed, exact, (await client.get("/metrics")).text

    declared, streamed, exact, metrics = asyncio.run(run())
    for response in (declared, streamed):
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"
        assert "at most 100 bytes" in response.json()["error"]["message"]
    assert exact.status_code == 200
    assert 'limbeck_rejected_total{reason="body_too_large"} 2.0' in metrics


def test_paths_methods_models_and_versions_that_are_not_there(tiny_bundle):
    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            return [
                await client.get("/nothing"),
                await client.get("/v1/classify"),
                await client.get("/v1/models/x"),
                await send(client, {"inputs": "a"}, "/v1/models/x/classify"),
                await send(client, {"inputs": "a"}, "/v1/models/tiny/versions/9/classify"),
                await send(client, {"inputs": "a"}, "/v1/classify/"),
            ]

    responses = asyncio.run(run())
    assert [response.status_code for response in responses] == [404, 405, 404, 404, 404, 404]
    codes = [response.json()["error"]["code"] for response in responses]
    assert codes == ["not_found", "method_not_allowed", "unknown_model", "unknown_model", "unknown_model", "not_found"]
    assert responses[1].headers["allow"] == "POST"


def test_models_and_versions_are_listed_and_can_be_asked(tiny_bundle, tmp_path):
    newer = changed(make_bundle(tmp_path / "two", seed=0), tmp_path / "newer", version="1.10")
    other = make_bundle(tmp_path / "other", name="other")

    async def run():
        settings = settings_for(tiny_bundle, newer, other, default_model="other")
        async with running(settings) as client:
            listed = (await client.get("/v1/models")).json()
            described = (await client.get("/v1/models/tiny")).json()
            answered = [
                (await send(client, {"inputs": "a"}, path)).json()
                for path in ("/v1/classify", "/v1/models/tiny/classify", "/v1/models/tiny/versions/1/classify")
            ]
            return listed, described, answered

    listed, described, answered = asyncio.run(run())
    assert listed["object"] == "list"
    assert [(card["id"], card["object"], card["ready"]) for card in listed["data"]] == [
        ("other", "model", True),
        ("tiny", "model", True),
    ]
    assert described["versions"] == ["1.10", "1"]
    expected = {"name": "tiny", "ready": True, "task": "single-label", "variant": "fp32", "max_length": 16}
    assert {key: described[key] for key in expected} == expected
    assert described["labels"] == ["negative", "positive"]
    assert [(a["model"], a["version"]) for a in answered] == [("other", "1"), ("tiny", "1.10"), ("tiny", "1")]


def test_an_unexpected_error_is_logged_and_answered_without_internals(tiny_bundle, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr("service.api.classify.check_inputs", broken)
    response = ask(tiny_bundle, {"inputs": "a"})
    assert response.status_code == 500
    assert response.json() == {
        "error": {"code": "internal_error", "message": "internal error; the service's log has the details"}
    }
    assert "secret of the inside" in caplog.text


def test_while_loading_the_service_is_alive_and_not_ready(tiny_bundle, monkeypatch):
    go = threading.Event()
    real = app_module.load_model

    def slow(*arguments):
        assert go.wait(20)
        return real(*arguments)

    monkeypatch.setattr(app_module, "load_model", slow)

    async def run():
        app = create_app(settings_for(tiny_bundle))
        async with lifespan(app) as client:
            live, not_ready = await client.get("/health/live"), await client.get("/health/ready")
            refused, unlisted = await send(client, {"inputs": "a"}), await client.get("/v1/models")
            go.set()
            await until(lambda: app.state.registry.ready)
            ready = await client.get("/health/ready")
            app.state.registry.begin_draining()
            draining = await client.get("/health/ready")
            return live, not_ready, refused, unlisted, ready, draining

    live, not_ready, refused, unlisted, ready, draining = asyncio.run(run())
    assert [r.status_code for r in (live, not_ready, refused, unlisted, ready, draining)] == [
        200,
        503,
        503,
        503,
        200,
        503,
    ]
    assert all(int(response.headers["retry-after"]) >= 1 for response in (not_ready, refused, unlisted, draining))
    assert refused.json()["error"]["code"] == "not_ready"
    assert [r.json()["status"] for r in (not_ready, ready, draining)] == ["not ready", "ready", "draining"]


def test_a_bundle_that_cannot_be_loaded_is_reported_once_and_nothing_is_served(tiny_bundle, tmp_path, caplog):
    errors: list[StartupError] = []
    bad = changed(tiny_bundle, tmp_path / "bad", temperature=9.0)

    async def run():
        app = create_app(settings_for(tiny_bundle, bad), on_startup_error=errors.append)
        async with lifespan(app) as client:
            await until(lambda: errors)
            return await client.get("/health/ready")

    assert asyncio.run(run()).status_code == 503
    assert [str(error) for error in errors] == [
        record.message for record in caplog.records if record.levelname == "ERROR"
    ]
    assert "GoldenMismatchError" in str(errors[0])


def test_twin_bundles_are_reported_too(tiny_bundle, tmp_path):
    errors: list[StartupError] = []

    async def run():
        app = create_app(settings_for(tiny_bundle, make_bundle(tmp_path / "twin")), on_startup_error=errors.append)
        async with lifespan(app):
            await until(lambda: errors)

    asyncio.run(run())
    assert "are both tiny version 1" in str(errors[0])


class Held:
    """Holds a model's inference until `release` is set."""

    def __init__(self, monkeypatch) -> None:
        self.release = threading.Event()
        self.release.set()
        self.calls = 0
        real = app_module.Model.infer

        def infer(model, encodings):
            self.calls += 1
            assert self.release.wait(20)
            return real(model, encodings)

        monkeypatch.setattr(app_module.Model, "infer", infer)


def test_overload_is_refused_with_429_and_nothing_accepted_is_lost(tiny_bundle, monkeypatch):
    held = Held(monkeypatch)

    async def run():
        settings = settings_for(tiny_bundle, queue_capacity=4, max_inputs=2)
        async with running(settings) as client:
            held.release.clear()
            calls = held.calls
            first = asyncio.create_task(send(client, {"inputs": "a"}))
            await until(lambda: held.calls > calls)  # the slot is busy; from now on the queue fills
            tasks = [asyncio.create_task(send(client, {"inputs": ["good", "bad"]})) for _ in range(10)]
            await until(lambda: sum(task.done() for task in tasks) == 8)  # two requests of two wait, eight are refused
            held.release.set()
            answers = [task.result() if task.done() else await task for task in tasks]
            return [await first, *answers], (await client.get("/metrics")).text

    try:
        responses, metrics = asyncio.run(run())
    finally:
        held.release.set()
    refused = [response for response in responses if response.status_code == 429]
    answered = [response for response in responses if response.status_code == 200]
    assert (len(refused), len(answered)) == (8, 3)
    assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
    assert {response.json()["error"]["code"] for response in refused} == {"queue_full"}
    assert [len(response.json()["results"]) for response in answered] == [1, 2, 2]
    assert 'limbeck_rejected_total{reason="queue_full"} 8.0' in metrics
    assert (
        'limbeck_requests_total{dialect="native",model="tiny",route="/v1/classify",status="429",version="1"} 8.0'
        in metrics
    )


@pytest.mark.parametrize(
    ("body", "headers", "default_timeout_ms"),
    [
        ({"timeout_ms": 50}, {}, 0),
        ({}, {"x-request-timeout-ms": "50"}, 0),
        ({}, {}, 50),
    ],
)
def test_a_request_past_its_deadline_gets_504_and_is_never_run(
    tiny_bundle, monkeypatch, body, headers, default_timeout_ms
):
    held = Held(monkeypatch)

    async def run():
        async with running(settings_for(tiny_bundle, default_timeout_ms=default_timeout_ms)) as client:
            held.release.clear()
            calls = held.calls
            first = asyncio.create_task(send(client, {"inputs": "a", "timeout_ms": 60_000}))
            await until(lambda: held.calls > calls)
            late = await client.post("/v1/classify", json={"inputs": ["b", "c"], **body}, headers=headers)
            held.release.set()
            return await first, late, held.calls - calls, (await client.get("/metrics")).text

    try:
        first, late, ran, metrics = asyncio.run(run())
    finally:
        held.release.set()
    assert (first.status_code, late.status_code, ran) == (200, 504, 1)
    assert late.json()["error"]["code"] == "deadline_exceeded"
    assert 'limbeck_expired_entries_total{model="tiny",version="1"} 2.0' in metrics


def test_a_client_that_leaves_is_not_worked_for(tiny_bundle, monkeypatch):
    held = Held(monkeypatch)
    body = b'{"inputs": "a"}'

    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            held.release.clear()
            calls = held.calls
            first = asyncio.create_task(send(client, {"inputs": "a"}))
            await until(lambda: held.calls > calls)
            messages: asyncio.Queue[dict] = asyncio.Queue()
            messages.put_nowait({"type": "http.request", "body": body, "more_body": False})

            async def ignore(_message):
                pass

            scope = post_scope("/v1/classify", [(b"content-type", b"application/json")])
            leaving = asyncio.create_task(client.app(scope, messages.get, ignore))
            registry = client.app.state.registry
            await until(lambda: registry.get().batcher._queue.waiting_entries == 1)
            messages.put_nowait({"type": "http.disconnect"})
            await leaving
            assert registry.get().batcher._queue.waiting_entries == 0
            held.release.set()
            assert (await first).status_code == 200
            return held.calls - calls, (await client.get("/metrics")).text

    try:
        calls, metrics = asyncio.run(run())
    finally:
        held.release.set()
    assert calls == 1
    assert (
        'limbeck_requests_total{dialect="native",model="tiny",route="/v1/classify",status="499",version="1"} 1.0'
        in metrics
    )


def test_a_dead_worker_turns_readiness_false(tiny_bundle, caplog):
    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            batcher = client.app.state.registry.get().batcher
            batcher._queue.next_batch = None  # whatever goes wrong in the owner's decisions
            assert (await send(client, {"inputs": "a"})).status_code == 500
            assert not batcher.healthy
            metrics = (await client.get("/metrics")).text
            return await client.get("/health/ready"), await send(client, {"inputs": "a"}), metrics

    ready, answer, metrics = asyncio.run(run())
    assert (ready.status_code, answer.status_code) == (503, 503)
    assert 'limbeck_model_ready{model="tiny",variant="fp32",version="1"} 0.0' in metrics


def test_cancellation_by_the_server_is_answered_with_503(tiny_bundle, monkeypatch):
    held = Held(monkeypatch)

    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            held.release.clear()
            calls = held.calls
            task = asyncio.create_task(send(client, {"inputs": "a"}))
            await until(lambda: held.calls > calls)
            task.cancel()
            response = await task
            held.release.set()
            return response

    try:
        response = asyncio.run(run())
    finally:
        held.release.set()
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "draining"


def test_every_metric_is_updated(tiny_bundle):
    async def run():
        async with running(settings_for(tiny_bundle, max_inputs=2)) as client:
            await send(client, {"inputs": ["good" + " good" * 9, "bad " * 30]})  # 12 tokens, and more than 16
            await client.get("/invented/path/1")
            await client.get("/v1/models/invented")
            return (await client.get("/metrics")).text

    lines = asyncio.run(run()).splitlines()
    samples = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    engine = '{model="tiny",version="1"}'
    exact = {
        'limbeck_requests_total{dialect="native",model="tiny",route="/v1/classify",status="200",version="1"}': 1,
        'limbeck_requests_total{dialect="",model="",route="unmatched",status="404",version=""}': 1,
        'limbeck_request_duration_seconds_count{route="/v1/classify"}': 1,
        f"limbeck_inputs_total{engine}": 2,
        f"limbeck_inputs_truncated_total{engine}": 1,
        f"limbeck_queue_wait_seconds_count{engine}": 2,
        f"limbeck_tokenization_seconds_count{engine}": 1,
        f"limbeck_inference_seconds_count{engine}": 1,
        f"limbeck_batch_size_sum{engine}": 2,
        f"limbeck_batch_tokens_sum{engine}": 32,
        f"limbeck_queue_entries{engine}": 0,
        f"limbeck_cancelled_entries_total{engine}": 0,  # test_batcher.py and test_chaos.py have them rise
        f"limbeck_expired_entries_total{engine}": 0,
        f"limbeck_failed_batches_total{engine}": 0,
        f"limbeck_hung_sessions_total{engine}": 0,
        'limbeck_model_ready{model="tiny",variant="fp32",version="1"}': 1,
    }
    assert {name: float(samples[name]) for name in exact} == exact
    assert not [line for line in lines if "invented" in line]


def test_two_apps_in_one_process_count_apart(tiny_bundle):
    async def run():
        async with running(settings_for(tiny_bundle)) as one, running(settings_for(tiny_bundle)) as two:
            await send(one, {"inputs": "a"})
            return (await two.get("/metrics")).text

    assert 'route="/v1/classify"' not in asyncio.run(run())


def test_the_openapi_document_is_complete(tiny_bundle):
    document = create_app(settings_for(tiny_bundle)).openapi()
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for path in ("/v1/classify", "/v1/models/{model}/classify", "/v1/models/{model}/versions/{version}/classify"):
        operation = document["paths"][path]["post"]
        assert set(operation["responses"]) == {
            "200",
            "401",
            "403",
            "404",
            "413",
            "415",
            "422",
            "429",
            "500",
            "503",
            "504",
        }
        for status, response in operation["responses"].items():
            content = response["content"]["application/json"]
            assert "$ref" in content["schema"]
            assert status == "200" or "error" in content["example"]
        assert "Retry-After" in operation["responses"]["429"]["headers"]
    schemas = document["components"]["schemas"]
    assert schemas["ClassifyRequest"]["examples"]
    assert schemas["ClassifyResponse"]["examples"]
