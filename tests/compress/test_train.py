"""The training loop: same gradients however it is cut, same weights wherever it is killed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from rich.console import Console

from compress.errors import TrainingError
from compress.recipe import Training
from compress.train import Batch, TrainingSet, autocast_dtype, length_bucketed_batches, make_batch, predict_all, train
from service.engine.tokenization import Encoding
from tests.support.models import VOCABULARY, tiny_classifier

CPU = torch.device("cpu")
QUIET = Console(quiet=True)


def data(count: int = 64, seed: int = 0) -> TrainingSet:
    """Texts labeled by whether token 4 is in them."""
    source = np.random.default_rng(seed)
    encodings, labels = [], []
    for _ in range(count):
        ids = source.integers(5, VOCABULARY, size=source.integers(2, 12)).tolist()
        label = int(source.integers(0, 2))
        encodings.append(Encoding([2, *([4] * label), *ids, 3], [0] * (len(ids) + 2 + label), False))
        labels.append(label)
    return TrainingSet(encodings, np.array(labels, dtype=np.int64))


def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(logits, batch.labels)


def run(
    folder: Path, config: Training, validate: Callable[[torch.nn.Module], float] = lambda model: 0.0
) -> tuple[torch.nn.Module, dict]:
    model = tiny_classifier()
    summary = train(
        model, data(), loss, validate, config, pad_id=0, seed=3, folder=folder, console=QUIET, title="training"
    )
    return model, summary


def weights(model: torch.nn.Module) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())


def config(**changes: object) -> Training:
    return Training.model_validate(
        {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "precision": "fp32", "patience": 9} | changes
    )


def test_it_learns(tmp_path: Path) -> None:
    test = data(seed=9)

    def accuracy(model: torch.nn.Module) -> float:
        return float((predict_all(model, test.encodings, 0).argmax(1) == test.labels).mean())

    before = accuracy(tiny_classifier())
    model, summary = run(tmp_path, config(epochs=8, learning_rate=2e-3), accuracy)
    assert before < 0.7
    assert accuracy(model) > 0.85
    assert accuracy(model) == summary["validation_accuracy"] == max(summary["history"])


class _Killed(BaseException):
    """Stands for SIGKILL: nothing in the loop may catch it."""


@pytest.mark.parametrize("calls", [1, 3, 8, 9, 14])
def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout is on, so this needs the random state as well as optimizer, schedule and order of batches."""
    whole, _ = run(tmp_path / "whole", config())
    seen = 0

    def dies(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        nonlocal seen
        seen += 1
        if seen > calls:
            raise _Killed
        return loss(logits, batch)

    arguments = (config(checkpoint_seconds=0),)
    options = {"pad_id": 0, "seed": 3, "folder": tmp_path / "killed", "console": QUIET, "title": "training"}
    with pytest.raises(_Killed):
        train(tiny_classifier(), data(), dies, lambda model: 0.0, *arguments, **options)
    torch.manual_seed(999)  # a new process starts from another state
    resumed = tiny_classifier()
    train(resumed, data(), loss, lambda model: 0.0, *arguments, **options)
    assert weights(resumed) == weights(whole)


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    """Without dropout the accumulated gradient is that of one pass; lengths differ, so padding must not matter."""
    from compress.train import _step

    examples, indices = data(), list(range(12))
    gradients = []
    for size in (None, 5):
        model = tiny_classifier()  # eval mode: no dropout
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        settings = config(micro_batch_size=size, max_grad_norm=1e9)
        _step(model, optimizer, scaler, loss, examples, indices, settings, 0, CPU, None)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, atol=1e-6)
    assert gradients[0].norm() > 0.01


def test_gradients_are_clipped() -> None:
    from compress.train import _step

    model = tiny_classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    _step(model, optimizer, scaler, loss, data(), [0, 1, 2], config(max_grad_norm=0.01), 0, CPU, None)
    norm = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


def test_early_stopping_keeps_the_best_epoch(tmp_path: Path) -> None:
    scores = iter([0.5, 0.9, 0.4, 0.8, 0.95])
    seen = []

    def validate(model: torch.nn.Module) -> float:
        seen.append(weights(model))
        return next(scores)

    model, summary = run(tmp_path, config(epochs=5, patience=2), validate)
    assert summary["epochs"] == 4
    assert summary["best_epoch"] == 2
    assert weights(model) == seen[1]


def test_a_loss_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="lower learning_rate"):
        train(
            tiny_classifier(),
            data(),
            lambda logits, batch: logits.sum() * float("nan"),
            lambda model: 0.0,
            config(),
            pad_id=0,
            seed=0,
            folder=tmp_path,
            console=QUIET,
            title="training",
        )


def test_buckets_hold_every_text_once_with_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(3, 128, size=1000).tolist()
    batches = length_bucketed_batches(lengths, 16, seed=1, epoch=0)
    assert sorted(index for batch in batches for index in batch) == list(range(1000))
    assert max(map(len, batches)) == 16
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)
    assert batches == length_bucketed_batches(lengths, 16, seed=1, epoch=0)
    assert batches != length_bucketed_batches(lengths, 16, seed=1, epoch=1)
    first = [max(lengths[i] for i in batch) for batch in batches]
    assert first != sorted(first)  # short texts must not all come first


def test_autocast_is_chosen_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for amx, avx, expected in ((True, False, torch.bfloat16), (False, True, torch.bfloat16), (False, False, None)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda value=amx: value)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda value=avx: value)
        assert autocast_dtype("auto", CPU) is expected
    assert autocast_dtype("fp32", torch.device("cuda")) is None
    assert autocast_dtype("fp16", torch.device("cuda")) is torch.float16


def test_bf16_trains(tmp_path: Path) -> None:
    _, summary = run(tmp_path, config(precision="bf16"))
    assert summary["precision"] == "bfloat16"


def test_predictions_keep_the_order_of_the_texts() -> None:
    model, examples = tiny_classifier(), data(30)
    together = predict_all(model, examples.encodings, 0)
    for index in (0, 7, 29):
        batch = make_batch(examples, [index], 0, CPU)
        with torch.inference_mode():
            alone = model(**batch.inputs).logits.numpy()
        assert np.allclose(together[index], alone, atol=1e-5)
