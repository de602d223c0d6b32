"""What the page `/playground` is made of and what it asks; tests/browser has it in a real browser."""

import asyncio
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from service.api import playground
from service.engine.tokenization import Tokenizer
from service.settings import Settings
from tests.browser.bundles import bundles_of_every_task
from tests.service.helpers import Wire, post, running, settings_for
from tests.support.bundles import tiny_tokenizer

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "service/static"
KEY = "lk_0123456789"
KEYS = f'[[keys]]\nid = "a"\nsha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"\nmodels = ["tiny"]\n'


def ask(settings: Settings, *requests: dict) -> list[httpx.Response]:
    """The answers of one running service: `url` and what else httpx takes; POST where there is `json`."""

    async def run():
        async with running(settings) as client:
            return [await client.request("POST" if "json" in one else "GET", **one) for one in requests]

    return asyncio.run(run())


def test_the_page_and_its_files_are_there_for_everybody_and_may_load_nothing_from_elsewhere(tiny_bundle, tmp_path):
    (tmp_path / "keys.toml").write_text(KEYS)
    settings = settings_for(tiny_bundle, keys_file=tmp_path / "keys.toml")
    paths = {f"/playground/static/{path.name}": path for path in STATIC.iterdir()}
    paths["/playground"] = STATIC / "index.html"
    assert len(paths) > 5
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    found = ask(settings, *({"url": url} for url in paths))
    for path, answer in zip(paths.values(), found, strict=True):
        assert (answer.status_code, answer.content) == (200, path.read_bytes()), path
        assert answer.headers["content-type"] == f"{kinds[path.suffix]}; charset=utf-8"
        assert answer.headers["x-content-type-options"] == "nosniff"
        rules = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        nothing = ["default-src", "base-uri", "form-action", "frame-ancestors"]
        own = {"script-src": "'self'", "style-src": "'self'", "connect-src": "'self'", "img-src": "'self' data:"}
        assert rules == dict.fromkeys(nothing, "'none'") | own
    tags = [{"If-None-Match": answer.headers["etag"]} for answer in found]
    kept = ask(settings, *({"url": url, "headers": tag} for url, tag in zip(paths, tags, strict=True)))
    assert {(answer.status_code, answer.content) for answer in kept} == {(304, b"")}
    (other,) = ask(settings, {"url": "/playground", "headers": {"If-None-Match": '"other"'}})
    assert other.status_code == 200


def test_no_file_names_another_place_and_each_that_is_named_is_there():
    named = {"index.html"}
    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"https?://[^\s\"']+", text)) <= {"http://www.w3.org/2000/svg"}, path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), path
        assert not re.search(r"style=|<style|onclick=", text), path
        named |= set(re.findall(r'(?:from "\./|playground/static/)([a-z-]+\.[a-z]+)"', text))
        assert len(text.splitlines()) <= 300, path
    assert named == {path.name for path in STATIC.iterdir()}


def test_what_is_not_of_the_page_is_not_given_out(tiny_bundle):
    paths = ("/playground/static/none.js", "/playground/static/..%2fapp.py", "/playground/")
    found = ask(settings_for(tiny_bundle), *({"url": path} for path in paths))
    assert [answer.status_code for answer in found] == [404] * 3


def test_it_can_be_turned_off(tiny_bundle):
    paths = ("/playground", "/playground/static/playground.js", "/playground/models")
    found = ask(settings_for(tiny_bundle, playground=False), *({"url": path} for path in paths))
    assert [answer.status_code for answer in found] == [404] * 3


def test_it_is_told_what_a_key_may_ask_and_nothing_without_one(tiny_bundle, tmp_path):
    (tmp_path / "keys.toml").write_text(KEYS)
    others = bundles_of_every_task(tmp_path / "all")
    folders = (tiny_bundle.folder, *others)
    settings = Settings(bundles=folders, sessions=1, default_model="tiny", keys_file=tmp_path / "keys.toml")
    models = {"url": "/playground/models"}
    cut = {"url": "/playground/cut", "json": {"model": "reviews", "version": "1", "text": "good"}}
    bearer = {"headers": {"Authorization": f"Bearer {KEY}"}}
    found = ask(settings, models, cut, models | bearer, cut | bearer)
    assert [answer.status_code for answer in found] == [401, 401, 200, 403]
    assert [model["name"] for model in found[2].json()["models"]] == ["tiny"]


def test_it_is_told_each_version_its_thresholds_and_examples(tmp_path):
    folders = bundles_of_every_task(tmp_path)
    settings = playground_settings(folders)
    told = ask(settings, {"url": "/playground/models"})[0].json()
    assert (told["default_model"], told["max_inputs"], told["timing_header"]) == ("reviews", 128, "x-request-timing")
    models = {(one["name"], one["version"]): one for one in told["models"]}
    assert set(models) == {("reviews", "1"), ("reviews", "2"), ("themes", "1"), ("pairs", "1"), ("names", "1")}
    assert models["themes", "1"]["thresholds"] == {"praise": 0.5, "blame": 0.5, "story": 0.8}
    assert models["reviews", "1"]["thresholds"] is None
    for folder, (name, version) in zip(folders, [("reviews", "1"), ("reviews", "2")], strict=False):
        golden = [json.loads(line) for line in (folder / "golden.jsonl").read_text().splitlines()]
        assert [one["text"] for one in models[name, version]["examples"]] == [one["text"] for one in golden]
    (pair,) = models["pairs", "1"]["examples"]
    assert pair == {"text": "a good movie", "text_pair": "the plot was awful", "label": None}


def test_long_examples_are_left_out_and_few_are_given(tiny_bundle, monkeypatch):
    monkeypatch.setattr(playground, "_LONGEST_EXAMPLE", 14)
    monkeypatch.setattr(playground, "_MOST_EXAMPLES", 2)
    (answer,) = ask(settings_for(tiny_bundle), {"url": "/playground/models"})
    (model,) = answer.json()["models"]
    assert [one["text"] for one in model["examples"]] == ["a good movie", "not very good"]


def test_a_bundle_whose_folder_is_gone_has_no_examples(tiny_bundle):
    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            (tiny_bundle.folder / "golden.jsonl").unlink()
            return (await client.get("/playground/models")).json()

    assert asyncio.run(run())["models"][0]["examples"] == []


def test_where_a_text_is_cut_is_told_in_code_points(tmp_path):
    settings = playground_settings(bundles_of_every_task(tmp_path))
    words = ["👍🏽", "é", "שלום", "good"] * 8
    text = " ".join(words)
    body = {"model": "reviews", "version": "2", "text": text}
    wrong = [body | {"text": " "}, body | {"text_pair": "good"}, body | {"more": 1}, {"model": "reviews"}]
    bodies = [body, body | {"text": "good"}, *wrong, body | {"version": "9"}]
    found = ask(settings, *({"url": "/playground/cut", "json": one} for one in bodies))
    assert [answer.status_code for answer in found] == [200, 200, *[422] * 4, 404]
    # of 16 tokens two are special; the end is the tokenizer's own, which cuts nothing here
    (_, end) = tiny_tokenizer().encode(text, add_special_tokens=False).offsets[13]
    assert [answer.json()["ends"] for answer in found[:2]] == [[end], [4]]


def test_a_pair_is_cut_in_both_texts(tmp_path):
    tiny_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", 9)
    # longest first: of 20 and 2 words 4 and 2 are left beside three special tokens
    assert tokenizer.reach(("good " * 20, "bad plot")).ends == (len("good good good good"), len("bad plot"))
    assert tokenizer.reach(("film", "bad plot")).ends == (4, 8)


def test_whoever_asks_for_times_gets_them_and_nobody_else(tiny_bundle):
    async def run():
        async with running(settings_for(tiny_bundle)) as client:
            wire = Wire(client.app, asyncio.get_running_loop())
            answers = []
            for more in ((), (("X-Request-Timing", "1"),)):
                body = json.dumps({"inputs": ["good", "a bad film"]}).encode()
                wire.protocol.data_received(post("/v1/classify", body, ("Content-Type", "application/json"), *more))
                answers.append(await wire.answer())
            refused = await client.post("/v1/classify", json={"inputs": []}, headers={"X-Request-Timing": "1"})
            return answers, refused

    ((_, plain, body), (_, timed, same)), refused = asyncio.run(run())
    assert body == same
    assert "server-timing" not in plain
    assert "server-timing" not in refused.headers
    parts = dict(part.split(";dur=") for part in timed["server-timing"].split(", "))
    assert list(parts) == ["tokenize", "queue", "inference", "total"]
    *inside, total = map(float, parts.values())
    assert all(part >= 0 for part in inside)
    assert parts["inference"] != "0.000"
    assert sum(inside) <= total + 0.01


@pytest.mark.slow
@pytest.mark.skipif(find_spec("setuptools") is None, reason="setuptools is not installed")
def test_the_page_is_in_the_wheel(tmp_path):
    command = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    for name in ("pyproject.toml", "README.md", "LICENSE", "limbeck.py", "limbeck_errors.py", "service"):
        (tmp_path / name).symlink_to(ROOT / name)
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    packed = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("service/static/")}
    assert packed == {path.name for path in STATIC.iterdir()}


def playground_settings(folders: list[Path]) -> Settings:
    return Settings(bundles=tuple(folders), sessions=1, default_model="reviews")
