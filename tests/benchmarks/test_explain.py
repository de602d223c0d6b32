"""The figure of explanations is what the model's weights say."""

import json

import pytest
from scipy.special import softmax

from benchmarks import explain
from bulk import Classifier
from service.engine.tokenization import Tokenizer
from tests.bulk.helpers import exact_bundle, reference_logits

TEXTS = ["a good movie not very dull", "the plot was awful , bad film", "great", "dull " * 20]


def test_falls_are_those_of_the_weights_and_the_table_is_printed(tiny_bundle, tmp_path, monkeypatch, capsys):
    bundle = exact_bundle(tiny_bundle, tmp_path / "exact")
    (tmp_path / "test.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    tokenizer = Tokenizer(bundle.path("tokenizer.json"), 16)
    texts = explain.texts_of(tmp_path / "test.jsonl", tokenizer, least=6)
    assert [text.text for text in texts] == TEXTS[:2]  # one is short, one is cut
    with Classifier(bundle.folder) as classifier:
        ranked = explain.rank(classifier, tokenizer, texts, " ")
        found = explain.falls(classifier, texts, explain.top(texts, ranked))
    for (text, _), effects, falls in zip(texts, ranked, found, strict=True):
        words = text.split()
        label = softmax(reference_logits(text)).argmax()

        def fall(out, text=text, label=label, words=words):
            left = " ".join(word for index, word in enumerate(words) if index not in out)
            return softmax(reference_logits(text))[label] - softmax(reference_logits(left))[label]

        assert effects == pytest.approx([fall({index}) for index in range(len(words))], abs=1e-6)
        best = sorted(range(len(words)), key=lambda index: -fall({index}))
        assert falls == pytest.approx([fall(set(best[:k])) for k in range(1, 6)], abs=1e-6)

    monkeypatch.setattr("sys.argv", ["explain", str(bundle.folder), "--data", str(tmp_path), "--words", "6"])
    explain.main()
    printed = capsys.readouterr().out
    assert "2 test texts of" in printed
    assert printed.count("\n|") == 7
