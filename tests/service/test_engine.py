import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, softmax

from bundle import Activation
from bundle.errors import LabelMismatchError
from service.engine import session as session_module
from service.engine.errors import SessionError, TokenizerLoadError
from service.engine.postprocess import activate, rank
from service.engine.session import Session, available_providers
from service.engine.session_options import CPU, CUDA, SessionOptions
from service.engine.shapes import build_grid
from service.engine.tokenization import Tokenizer, pad
from tests.service.helpers import VOCABULARY, reference_scores
from tests.support.bundles import TEXTS, tiny_tokenizer

logits = st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3), min_size=1, max_size=4).map(
    lambda rows: np.array(rows, dtype=np.float32)
)


@given(logits, st.floats(0.5, 4))
def test_softmax_and_sigmoid_are_scipys(values, temperature):
    scaled = values.astype(np.float64) / temperature
    ours = activate(values, Activation.SOFTMAX, temperature)
    np.testing.assert_allclose(ours, softmax(scaled, axis=1), atol=3e-3 if np.abs(scaled).max() > 100 else 1e-4)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(activate(values, Activation.SIGMOID, temperature), expit(scaled), atol=1e-4)


def test_no_activation_gives_the_logits():
    values = np.array([[1.5, -2.0]], dtype=np.float32)
    assert activate(values, Activation.NONE).tolist() == values.tolist()


def test_rank_is_highest_first_with_ties_in_label_order():
    scores = np.array([0.25, 0.5, 0.25], dtype=np.float32)
    assert rank(scores, ["a", "b", "c"]) == [("b", 0.5), ("a", 0.25), ("c", 0.25)]
    assert rank(scores, ["a", "b", "c"], 1) == [("b", 0.5)]
    assert len(rank(scores, ["a", "b", "c"], 9)) == 3


@pytest.fixture
def tokenizer(tmp_path) -> Tokenizer:
    path = tmp_path / "tokenizer.json"
    tiny_tokenizer().save(str(path))
    return Tokenizer(path, 6)


def test_encodings_have_the_ids_of_the_vocabulary_and_say_when_they_were_cut(tokenizer):
    short, exact, long = tokenizer.encode(["a good film", "a good film is", "a good film is fine"])
    words = ["[CLS]", "a", "good", "film", "[SEP]"]
    assert short.ids == [VOCABULARY.index(word) for word in words]
    assert [short.truncated, exact.truncated, long.truncated] == [False, False, True]
    assert long.tokens == exact.tokens == 6


def test_pairs_have_the_second_type_after_the_first_separator(tokenizer):
    (pair,) = tokenizer.encode([("good", "bad film")])
    assert pair.type_ids == [0, 0, 0, 1, 1, 1]
    assert not pair.truncated


def test_padding_is_on_the_right_and_masked(tokenizer):
    encodings = tokenizer.encode(["good", "a good film"])
    arrays = pad(encodings, tokenizer.pad_id)
    assert arrays["input_ids"].shape == (2, 5)
    assert arrays["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert arrays["input_ids"][0, 3:].tolist() == [0, 0]
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.int64)}


def test_padding_keeps_the_types_of_pairs(tokenizer):
    arrays = pad(tokenizer.encode([("good", "bad"), "a good film"]), tokenizer.pad_id)
    assert arrays["token_type_ids"].tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]


def test_a_broken_tokenizer_file_has_its_own_error(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(TokenizerLoadError, match=r"tokenizer\.json"):
        Tokenizer(path, 8)


def test_the_session_computes_what_the_weights_say_and_batch_mates_change_nothing(tiny_bundle):
    tokenizer = Tokenizer(tiny_bundle.path("tokenizer.json"), 16)
    session = Session(tiny_bundle.path("model.fp32.onnx"), labels=2)
    together = activate(session.run(pad(tokenizer.encode(TEXTS), 0)), Activation.SOFTMAX)
    for text, row in zip(TEXTS, together, strict=True):
        alone = activate(session.run(pad(tokenizer.encode([text]), 0)), Activation.SOFTMAX)[0]
        assert alone.tolist() == row.tolist()
        np.testing.assert_allclose(row, reference_scores(text), atol=1e-6)


def test_no_choice_of_memory_or_threads_changes_a_bit(tiny_bundle):
    tokenizer = Tokenizer(tiny_bundle.path("tokenizer.json"), 16)
    arrays = pad(tokenizer.encode(TEXTS), 0)
    model = tiny_bundle.path("model.fp32.onnx")
    usual = Session(model).run(arrays)
    for options in (SessionOptions(arena=False), SessionOptions(threads=2), SessionOptions(threads=2, spinning=True)):
        assert Session(model, options=options).run(arrays).tobytes() == usual.tobytes()


def test_a_cpu_runs_batches_as_they_come_whatever_grid_is_given(tiny_bundle):
    grid = build_grid(max_batch_size=1, max_batch_tokens=16, max_length=16)
    session = Session(tiny_bundle.path("model.fp32.onnx"), options=SessionOptions(grid=grid))
    ids = np.ones((3, 40), dtype=np.int64)
    assert session.grid is None
    assert session.run({"input_ids": ids, "attention_mask": ids}).shape == (3, 2)


@pytest.mark.skipif(CUDA in available_providers(), reason="this ONNX Runtime knows CUDA, and so drops nothing")
def test_a_provider_that_onnx_runtime_drops_in_silence_is_an_error(tiny_bundle, monkeypatch):
    monkeypatch.setattr(session_module, "available_providers", lambda: [CUDA, CPU])
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"), pytest.raises(SessionError, match="fell back"):
        Session(tiny_bundle.path("model.fp32.onnx"), provider=CUDA)


def test_session_errors_say_what_is_wrong(tiny_bundle, tmp_path):
    model = tiny_bundle.path("model.fp32.onnx")
    with pytest.raises(SessionError, match="TensorrtExecutionProvider was asked for"):
        Session(model, provider="TensorrtExecutionProvider")
    with pytest.raises(LabelMismatchError, match="2 outputs, but there are 3 labels"):
        Session(model, labels=3)
    corrupt = tmp_path / "corrupt.onnx"
    corrupt.write_bytes(model.read_bytes()[:-200])
    with pytest.raises(SessionError, match=r"corrupt\.onnx"):
        Session(corrupt)
    with pytest.raises(SessionError, match="wants input"):
        Session(model).run({"input_ids": np.ones((1, 3), dtype=np.int64)})
