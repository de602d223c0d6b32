"""The baselines learn what a rule can label, as scikit-learn and a hand-written distillation do."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bundle.manifest import Task
from compress import baselines, static_embeddings
from compress.baselines import Predictions, static_predict, tfidf_predict
from compress.errors import DataError, ModelError
from compress.examples import Example
from compress.static_embeddings import StaticEmbeddings
from tests.support.bundles import WORDS, tiny_tokenizer
from tests.support.models import FAMILIES, tiny_classifier, tiny_rows

SENTIMENT = ["negative", "positive"]
TOPICS = ["film", "never", "plot"]
TAGS = ["B-MARK", "I-MARK", "O"]


@pytest.fixture(autouse=True)
def quick_and_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few timed texts; the same figures on machines with and without bf16 units."""
    monkeypatch.setattr(baselines, "_TIMED_TEXTS", 2)
    monkeypatch.setattr(static_embeddings, "autocast_dtype", lambda precision, device: None)


@pytest.fixture
def tokenizer_path(tmp_path: Path) -> Path:
    tokenizer = tiny_tokenizer()
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def sentiment(count: int, seed: int) -> list[Example]:
    return [Example(row["text"], row["label"], "rows") for row in tiny_rows(count, seed)]


def topics(count: int, seed: int) -> list[Example]:
    """The labels film and plot where those words are; never is no text's label."""
    return [
        replace(example, target=tuple(topic for topic in ("film", "plot") if topic in example.text.split()))
        for example in sentiment(count, seed)
    ]


def pairs(count: int, seed: int) -> list[Example]:
    """Positive where the second text has the first one's words in another order."""
    source = random.Random(seed)
    examples = []
    for index in range(count):
        first = source.sample(WORDS, 4)
        second = first[::-1] if index % 2 else source.sample([word for word in WORDS if word not in first], 4)
        examples.append(Example(" ".join(first), SENTIMENT[index % 2], "rows", text_pair=" ".join(second)))
    return examples


def tagged(count: int, seed: int) -> list[Example]:
    """The words good and bad are marks; a mark goes on for the word after it."""
    source = random.Random(seed)
    examples = []
    for _ in range(count):
        words = tuple(source.choices(WORDS, k=source.randint(1, 10)))
        tags = []
        for index, word in enumerate(words):
            inside = index > 0 and words[index - 1] in ("good", "bad")
            tags.append("B-MARK" if word in ("good", "bad") else "I-MARK" if inside else "O")
        examples.append(Example(" ".join(words), tuple(tags), "rows", words=words))
    return examples


DATA = {
    Task.SINGLE_LABEL: (sentiment, SENTIMENT),
    Task.MULTI_LABEL: (topics, TOPICS),
    Task.PAIR: (pairs, SENTIMENT),
    Task.TOKEN_CLASSIFICATION: (tagged, TAGS),
}


def flat(task: Task, examples: Sequence[Example], labels: list[str]) -> np.ndarray:
    """What a perfect baseline decides, in one array."""
    if task is Task.MULTI_LABEL:
        return np.array([[label in (e.target or ()) for label in labels] for e in examples])
    if task is Task.TOKEN_CLASSIFICATION:
        return np.array([tag for e in examples for tag in e.target or ()])
    return np.array([labels.index(str(e.target)) for e in examples])


def decided(task: Task, found: Predictions) -> np.ndarray:
    if task is Task.TOKEN_CLASSIFICATION:
        return np.array([tag for tags in found.decisions for tag in tags])
    return np.asarray(found.decisions)


def predict(
    kind: str, task: Task, train: Sequence[Example], test: Sequence[Example], tokenizer_path: Path, seed: int = 1
) -> Predictions:
    labels = DATA[task][1]
    if kind == "tfidf":
        return tfidf_predict(task, train, test, labels, seed)
    return static_predict(task, train, test, labels, tiny_classifier(), tokenizer_path, seed)


@pytest.mark.parametrize("task", DATA)
@pytest.mark.parametrize("kind", ["tfidf", "static"])
def test_a_rule_is_learned(kind: str, task: Task, tokenizer_path: Path) -> None:
    rows, labels = DATA[task]
    train, test = rows(400, 0), rows(100, 1)
    found = predict(kind, task, train, test, tokenizer_path)
    assert (decided(task, found) == flat(task, test, labels)).mean() > 0.9
    assert found.latency_ms > 0


def test_shapes_and_types_are_as_stated(tokenizer_path: Path) -> None:
    single, multi, tags = (
        predict("tfidf", task, DATA[task][0](60, 0), DATA[task][0](9, 1), tokenizer_path).decisions
        for task in (Task.SINGLE_LABEL, Task.MULTI_LABEL, Task.TOKEN_CLASSIFICATION)
    )
    assert isinstance(single, np.ndarray)
    assert isinstance(multi, np.ndarray)
    assert (single.shape, single.dtype) == ((9,), np.int64)
    assert (multi.shape, multi.dtype) == ((9, 3), np.bool_)
    assert [len(row) for row in tags] == [len(example.words or ()) for example in tagged(9, 1)]


@pytest.mark.parametrize("task", DATA)
@pytest.mark.parametrize("kind", ["tfidf", "static"])
def test_the_same_seed_decides_the_same(
    kind: str, task: Task, tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "_MOST_TRAINING_ROWS", 50)  # so that a sample is drawn
    rows, _ = DATA[task]
    train, test = rows(60, 0), rows(40, 1)
    once, again = (predict(kind, task, train, test, tokenizer_path, seed=5) for _ in range(2))
    assert_array_equal(decided(task, once), decided(task, again))
    assert once.size_bytes == again.size_bytes


def test_single_label_against_scikit_learn() -> None:
    train, test = sentiment(60, 0), sentiment(200, 1)  # few, so that not all is right
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+")
    pipeline = make_pipeline(vectorizer, LogisticRegression(C=10))
    pipeline.fit([e.text for e in train], [e.target for e in train])
    found = tfidf_predict(Task.SINGLE_LABEL, train, test, SENTIMENT, seed=1)
    expected = pipeline.predict([e.text for e in test])
    assert 0.6 < (expected == [e.target for e in test]).mean() < 1
    assert [SENTIMENT[index] for index in found.decisions] == expected.tolist()
    # idf, one row of weights, its intercept
    assert found.size_bytes == 4 * (2 * len(vectorizer.vocabulary_) + 1)


def test_multi_label_against_scikit_learn() -> None:
    train, test = topics(40, 0), topics(200, 1)
    pipeline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+"),
        OneVsRestClassifier(LogisticRegression(C=10)),
    )
    pipeline.fit([e.text for e in train], flat(Task.MULTI_LABEL, train, ["film", "plot"]).astype(int))
    found = tfidf_predict(Task.MULTI_LABEL, train, test, ["film", "plot"], seed=1)
    assert_array_equal(found.decisions, pipeline.predict([e.text for e in test]).astype(bool))


def test_pairs_against_scikit_learn_on_dense_features() -> None:
    train, test = pairs(20, 0), pairs(200, 1)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+")
    vectorizer.fit([text for e in train for text in (e.text, e.text_pair)])

    def features(examples: list[Example]) -> np.ndarray:
        first, second = (
            vectorizer.transform([getattr(e, name) for e in examples]).toarray() for name in ("text", "text_pair")
        )
        cosine = [[a @ b] for a, b in zip(first, second, strict=True)]  # rows have length 1
        return np.hstack([first, second, first * second, cosine])

    expected = LogisticRegression(C=10).fit(features(train), [e.target for e in train]).predict(features(test))
    found = tfidf_predict(Task.PAIR, train, test, SENTIMENT, seed=1)
    assert [SENTIMENT[index] for index in found.decisions] == expected.tolist()


def test_tags_of_unknown_words_come_from_shape_and_neighbors() -> None:
    names = ["Ada", "Bob", "Eve", "Kim"]
    train = [Example("", ("O", "O", "B-MARK"), "rows", words=("film", "by", name)) for name in names]
    test = [Example("", None, "rows", words=("plot", "by", "Zoe")), Example("", None, "rows", words=("film",))]
    assert tfidf_predict(Task.TOKEN_CLASSIFICATION, train, test, TAGS, seed=1).decisions == [
        ["O", "O", "B-MARK"],
        ["O"],
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_static_vectors_against_the_encoder_token_by_token(family: str, tokenizer_path: Path) -> None:
    """Fewer tokens than dimensions: model2vec leaves PCA out, and the vectors can be held against the encoder's."""
    model = tiny_classifier(family)
    vocabulary = tiny_tokenizer().get_vocab()
    words = sorted(WORDS, key=vocabulary.__getitem__)
    share = 1 / np.arange(2, len(vocabulary) + 2)  # Zipf's law over the ranks, specials first
    share /= share.sum()
    expected = []
    for word in words:
        ids = torch.tensor([[vocabulary["[CLS]"], vocabulary[word], vocabulary["[SEP]"]]])
        with torch.inference_mode():
            hidden = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        expected.append(hidden.mean(dim=0).numpy() * (1e-4 / (1e-4 + share[vocabulary[word]])))
    mean = expected[0] + expected[1]  # of a text of two words, to be made one long
    found = StaticEmbeddings(model, tokenizer_path).encode([*words, f"{words[0]} {words[1]}", "?"])
    for row, vector in enumerate([*expected, mean]):
        assert_allclose(found[row], vector / np.linalg.norm(vector), atol=2e-3)  # the table is float16
    assert not found[-1].any()


def test_a_static_vector_does_not_depend_on_batch_mates(tokenizer_path: Path) -> None:
    embeddings = StaticEmbeddings(tiny_classifier(), tokenizer_path)
    texts = ["good", "bad plot and good film", " ".join(WORDS)]
    together = embeddings.encode(texts)
    assert_array_equal(together, np.concatenate([embeddings.encode([text]) for text in texts]))


def test_static_single_label_against_scikit_learn(tokenizer_path: Path) -> None:
    train, test = sentiment(60, 0), sentiment(200, 1)
    embeddings = StaticEmbeddings(tiny_classifier(), tokenizer_path)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    pipeline.fit(embeddings.encode([e.text for e in train]).astype(np.float64), [e.target for e in train])
    found = predict("static", Task.SINGLE_LABEL, train, test, tokenizer_path)
    expected = pipeline.predict(embeddings.encode([e.text for e in test]))
    # float32 against float64 may decide otherwise at the very boundary
    assert ([SENTIMENT[index] for index in found.decisions] == expected).mean() > 0.99
    assert found.size_bytes == embeddings.size_bytes + 4 * (embeddings.dimensions + 1)


def test_windows_hold_the_words_before_at_and_after(tokenizer_path: Path) -> None:
    embeddings = StaticEmbeddings(tiny_classifier(), tokenizer_path)
    good, bad = embeddings.encode(["good", "bad"])
    none = np.zeros_like(good)
    found = embeddings.windows([("good", "bad"), (), ("bad",)])
    assert_array_equal(found, [[*none, *good, *bad], [*good, *bad, *none], [*none, *bad, *none]])


def test_distilling_leaves_the_model_alone_and_asks_no_hub(
    tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr("model2vec.distill.distillation.model_info", asked.append)
    model = tiny_classifier()
    model.base_model.name_or_path = "somebody/somewhere"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    StaticEmbeddings(model, tokenizer_path)
    assert asked == []
    assert model.base_model.name_or_path == "somebody/somewhere"
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert capfd.readouterr().err == ""


def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        StaticEmbeddings(tiny_classifier(), path)


@pytest.mark.parametrize("kind", ["tfidf", "static"])
def test_texts_of_letters_and_marks_only(kind: str, tokenizer_path: Path) -> None:
    targets = {"x": "negative", "!": "positive", "☺": "positive"}
    train = [Example(text, target, "rows") for text, target in targets.items()]
    found = predict(kind, Task.SINGLE_LABEL, train * 5, train, tokenizer_path)
    if kind == "tfidf":
        assert found.decisions.tolist() == [0, 1, 1]  # type: ignore[union-attr]
    else:  # no token is known: the label with the most rows
        assert found.decisions.tolist() == [1, 1, 1]  # type: ignore[union-attr]


def test_texts_without_a_token_are_refused() -> None:
    blank = [Example(" ", "negative", "train.jsonl:1"), Example("\t", "positive", "train.jsonl:2")]
    with pytest.raises(DataError, match=r"train\.jsonl:1 and 1 more rows: no word"):
        tfidf_predict(Task.SINGLE_LABEL, blank, blank, SENTIMENT, seed=1)


@pytest.mark.parametrize("side", ["train", "test"])
def test_nothing_to_train_on_or_to_test_is_refused(side: str) -> None:
    rows = sentiment(10, 0)
    train = [replace(row, target=None) for row in rows] if side == "train" else rows
    with pytest.raises(DataError, match="expected some of each"):
        tfidf_predict(Task.SINGLE_LABEL, train, [] if side == "test" else rows, SENTIMENT, seed=1)


@pytest.mark.parametrize("kind", ["tfidf", "static"])
def test_one_class_is_always_predicted(kind: str, tokenizer_path: Path) -> None:
    train = [replace(example, target="positive") for example in sentiment(10, 0)]
    found = predict(kind, Task.SINGLE_LABEL, train, sentiment(5, 1), tokenizer_path)
    assert_array_equal(found.decisions, [1] * 5)


@pytest.mark.parametrize("kind", ["tfidf", "static"])
def test_a_label_that_all_or_no_texts_have(kind: str, tokenizer_path: Path) -> None:
    train = [replace(example, target=("plot",)) for example in topics(10, 0)]
    found = predict(kind, Task.MULTI_LABEL, train, topics(5, 1), tokenizer_path)
    assert_array_equal(found.decisions, [[False, False, True]] * 5)


def test_three_classes_and_one_that_training_lacks() -> None:
    rows = [Example(text, text, "rows") for text in ("bad", "fine", "good")] * 4
    labels = ["absent", "bad", "fine", "good"]
    found = tfidf_predict(Task.SINGLE_LABEL, rows, rows[:3], labels, seed=1)
    assert_array_equal(found.decisions, [1, 2, 3])
