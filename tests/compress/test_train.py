"""The training loop: same gradients however it is cut, same weights wherever it is killed."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from rich.console import Console

from bundle.manifest import Task
from compress import train as module
from compress.batches import Batch, TrainingSet, autocast_dtype, length_bucketed_batches, make_batch, predict_all
from compress.errors import TrainingError
from compress.intermediate import IntermediateLoss
from compress.recipe_training import Training
from compress.rows import UNLABELED, Encoded, one_row_each
from compress.train import Beside, train
from service.engine.tokenization import Encoding
from tests.support.models import VOCABULARY, tiny_classifier

CPU = torch.device("cpu")
QUIET = Console(quiet=True)


def encodings_of(count: int, seed: int) -> tuple[list[Encoding], list[int]]:
    """Texts labeled by whether token 4 is in them."""
    source = np.random.default_rng(seed)
    encodings, labels = [], []
    for _ in range(count):
        ids = source.integers(5, VOCABULARY, size=source.integers(2, 12)).tolist()
        label = int(source.integers(0, 2))
        encodings.append(Encoding([2, *([4] * label), *ids, 3], [0] * (len(ids) + 2 + label), False))
        labels.append(label)
    return encodings, labels


def data(count: int = 64, seed: int = 0) -> TrainingSet:
    encodings, labels = encodings_of(count, seed)
    return TrainingSet(one_row_each(encodings, np.array(labels, dtype=np.int64)))


def tagged(count: int = 24, seed: int = 0) -> TrainingSet:
    """Tokens labeled by whether they are token 4; every third text has no row at all."""
    encodings, _ = encodings_of(count, seed)
    first, positions, targets = [0], [], []
    for index, encoding in enumerate(encodings):
        own = [] if index % 3 == 2 else range(1, encoding.tokens - 1)
        positions += own
        targets += [int(encoding.ids[position] == 4) for position in own]
        first.append(len(positions))
    arrays = [np.array(values, dtype=np.int64) for values in (targets, first, positions, positions)]
    return TrainingSet(Encoded(encodings, *arrays))


def loss(rows: torch.Tensor, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(rows, batch.targets, reduction="none")


def run(
    folder: Path,
    config: Training,
    validate: Callable[[torch.nn.Module], float] = lambda model: 0.0,
    loss: Callable = loss,
    **options: Any,
) -> tuple[torch.nn.Module, dict]:
    model = options.pop("model", None) or tiny_classifier()
    arguments = {"pad_id": 0, "seed": 3, "folder": folder, "console": QUIET, "title": "training", "metric": "accuracy"}
    return model, train(model, options.pop("data", None) or data(), loss, validate, config, **arguments, **options)


def weights(model: torch.nn.Module) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())


def config(**changes: object) -> Training:
    return Training.model_validate(
        {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "precision": "fp32", "patience": 9} | changes
    )


def stepped(
    settings: Training, examples: TrainingSet, indices: list[int], model: torch.nn.Module, beside: Beside | None = None
) -> float:
    """Take one step of rate 0, which leaves the gradients where they can be looked at; return its loss."""
    trained = torch.nn.ModuleDict({"model": model} | ({"beside": beside.loss} if beside else {}))
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return module._Step(trained, optimizer, scaler, loss, beside, examples, settings, 0, CPU, None)(indices)


def gradients(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_it_learns(tmp_path: Path) -> None:
    test = data(seed=9)

    def accuracy(model: torch.nn.Module) -> float:
        return float((predict_all(model, test.encoded, 0).argmax(1) == test.encoded.targets).mean())

    before = accuracy(tiny_classifier())
    model, summary = run(tmp_path, config(epochs=8, learning_rate=2e-3), accuracy)
    assert before < 0.7
    assert accuracy(model) > 0.85
    assert accuracy(model) == summary["validation_score"] == max(summary["history"])


class _Killed(BaseException):
    """Stands for SIGKILL: nothing in the loop may catch it."""


@pytest.mark.parametrize("calls", [1, 3, 8, 9, 14])
def test_a_killed_run_ends_with_the_same_weights(tmp_path: Path, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout is on, so this needs the random state as well as optimizer, schedule and order of batches."""
    whole, _ = run(tmp_path / "whole", config())
    seen = 0

    def dies(rows: torch.Tensor, batch: Batch) -> torch.Tensor:
        nonlocal seen
        seen += 1
        if seen > calls:
            raise _Killed
        return loss(rows, batch)

    settings = config(checkpoint_seconds=0)
    with pytest.raises(_Killed):
        run(tmp_path / "killed", settings, loss=dies)
    torch.manual_seed(999)  # a new process starts from another state
    resumed, _ = run(tmp_path / "killed", settings)
    assert weights(resumed) == weights(whole)


def beside_of(student: torch.nn.Module) -> Beside:
    teacher = tiny_classifier(layers=4, seed=5)
    weights = {"hidden": 1.0, "embedding": 0.5, "relation": 1.0, "attention": 0.3}
    return Beside(IntermediateLoss(student, teacher, **weights), teacher)


OPTIONS = {
    "plain": {},
    "fgm": {"fgm_epsilon": 0.5},
    "r_drop": {"r_drop": 1.0},
    "fgm and r_drop": {"fgm_epsilon": 0.5, "r_drop": 1.0},
}


@pytest.mark.parametrize("with_beside", [False, True], ids=["alone", "beside"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_micro_batches_add_up_to_the_whole_batch(options: dict[str, float], with_beside: bool) -> None:
    """Without dropout the accumulated gradient is that of one pass; lengths differ, so padding must not matter."""
    found, losses = [], []
    for size in (None, 5):
        model = tiny_classifier()  # evaluation mode: no dropout
        beside = beside_of(model) if with_beside else None
        settings = config(micro_batch_size=size, max_grad_norm=1e9, **options)
        losses.append(stepped(settings, data(), list(range(12)), model, beside))
        found.append(gradients(model))
    assert torch.allclose(*found, atol=2e-6)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert found[0].norm() > 0.01


def test_the_gradient_is_that_of_torchs_own_mean() -> None:
    """transformers' own loss of the same batch, which is the mean over its texts."""
    model, examples = tiny_classifier(), data()
    value = stepped(config(max_grad_norm=1e9), examples, list(range(12)), model)
    reference = tiny_classifier()
    batch = make_batch(examples, list(range(12)), 0, CPU)
    expected = reference(**batch.inputs, labels=batch.targets).loss
    expected.backward()
    assert value == pytest.approx(float(expected.detach()), rel=1e-5)
    assert torch.allclose(gradients(model), gradients(reference), atol=1e-6)


def test_rows_of_tokens_are_weighed_alike_whatever_text_they_stand_in() -> None:
    """Token classification: transformers' own loss is the mean over all labeled tokens of the batch."""
    examples, indices = tagged(), list(range(10))
    found = []
    for size in (None, 1, 3):  # with 1, some micro-batches have no row
        model = tiny_classifier(task=Task.TOKEN_CLASSIFICATION)
        stepped(config(micro_batch_size=size, max_grad_norm=1e9), examples, indices, model)
        found.append(gradients(model))
    reference = tiny_classifier(task=Task.TOKEN_CLASSIFICATION)
    batch = make_batch(examples, indices, 0, CPU)
    labels = torch.full_like(batch.inputs["input_ids"], UNLABELED)
    labels[batch.where] = batch.targets
    reference(**batch.inputs, labels=labels).loss.backward()
    for own in found:
        assert torch.allclose(own, gradients(reference), atol=2e-6)


def test_fgm_adds_the_gradient_at_the_moved_embeddings() -> None:
    """Miyato et al. 2017: the clean gradient plus that at e + ε g / ‖g‖, by torch alone."""
    examples, indices = data(), list(range(12))
    model = tiny_classifier()
    stepped(config(fgm_epsilon=0.7, max_grad_norm=1e9), examples, indices, model)
    reference = tiny_classifier()
    batch = make_batch(examples, indices, 0, CPU)
    reference(**batch.inputs, labels=batch.targets).loss.backward()
    table = reference.get_input_embeddings().weight
    moved = table.detach() + 0.7 * table.grad / table.grad.norm()
    with torch.no_grad():
        table.copy_(moved)
    reference(**batch.inputs, labels=batch.targets).loss.backward()
    assert torch.allclose(gradients(model), gradients(reference), atol=1e-6)
    assert torch.equal(model.get_input_embeddings().weight, tiny_classifier().get_input_embeddings().weight)


def test_the_projections_beside_are_trained_and_kept_in_checkpoints(tmp_path: Path) -> None:
    """The student is narrower than its teacher here, so a projection is needed; a kill must not lose it."""
    from compress.narrow import narrow

    def parts() -> tuple[torch.nn.Module, Beside]:
        teacher = tiny_classifier(seed=5)
        student = narrow(tiny_classifier(), 32, heads=2, intermediate_size=64, seed=0)
        return student, Beside(IntermediateLoss(student, teacher, hidden=1.0, seed=1), teacher)

    student, beside = parts()
    before = beside.loss.projections.hidden.detach().clone()
    teacher_before = weights(beside.teacher)
    run(tmp_path / "whole", config(), model=student, beside=beside)
    assert not torch.equal(beside.loss.projections.hidden, before)
    assert weights(beside.teacher) == teacher_before
    calls = 0

    def dies(rows: torch.Tensor, batch: Batch) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise _Killed
        return loss(rows, batch)

    killed, killed_beside = parts()
    with pytest.raises(_Killed):
        run(tmp_path / "killed", config(checkpoint_seconds=0), loss=dies, model=killed, beside=killed_beside)
    resumed, resumed_beside = parts()
    run(tmp_path / "killed", config(checkpoint_seconds=0), model=resumed, beside=resumed_beside)
    assert weights(resumed) == weights(student)
    assert torch.equal(resumed_beside.loss.projections.hidden, beside.loss.projections.hidden)


def test_gradients_are_clipped() -> None:
    model = tiny_classifier()
    stepped(config(max_grad_norm=0.01), data(), [0, 1, 2], model)
    assert float(gradients(model).norm()) == pytest.approx(0.01, rel=1e-3)


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


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_names_the_step(tmp_path: Path, bad: float) -> None:
    calls = 0

    def breaks(rows: torch.Tensor, batch: Batch) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return loss(rows, batch) * (bad if calls == 11 else 1)  # 8 steps an epoch

    with pytest.raises(TrainingError, match=f"training: the loss became {bad} at step 3 of epoch 2; lower learning_ra"):
        run(tmp_path, config(), loss=breaks)


def test_a_loss_beside_that_is_not_finite_stops_too(tmp_path: Path) -> None:
    model = tiny_classifier()
    beside = beside_of(model)
    with torch.no_grad():
        beside.teacher.get_input_embeddings().weight[5] = float("nan")
    with pytest.raises(TrainingError, match="the loss became nan at step 1 of epoch 1"):
        run(tmp_path, config(), model=model, beside=beside)


@pytest.mark.parametrize("how", ["torch", "system"])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """torch says it as a RuntimeError; the last bytes are the system's to refuse. Then the run goes on from before."""
    whole, _ = run(tmp_path / "whole", config())
    save, saves = torch.save, 0

    def full(content: object, file: Any) -> None:
        nonlocal saves
        saves += 1
        if saves > 4:
            file.write(b"half")
            if how == "torch":
                raise RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, file)

    settings = config(checkpoint_seconds=0)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(TrainingError, match=r"checkpoint\.pt: the checkpoint cannot be written; is the disk full"):
            run(tmp_path / "full", settings)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["checkpoint.pt"]
    resumed, _ = run(tmp_path / "full", settings)
    assert weights(resumed) == weights(whole)


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
    together = predict_all(model, examples.encoded, 0)
    for index in (0, 7, 29):
        batch = make_batch(examples, [index], 0, CPU)
        with torch.inference_mode():
            alone = model(**batch.inputs).logits.numpy()
        assert np.allclose(together[index], alone, atol=1e-5)


def test_predictions_of_tokens_are_read_where_their_rows_are() -> None:
    model, examples = tiny_classifier(task=Task.TOKEN_CLASSIFICATION), tagged(30)
    encoded = examples.encoded
    together = predict_all(model, encoded, 0)
    assert len(together) == encoded.first[-1]
    for index in (0, 2, 16):  # the second has no rows
        ids = torch.tensor([encoded.encodings[index].ids])
        with torch.inference_mode():
            alone = model(input_ids=ids).logits[0].numpy()
        rows = encoded.rows_of([index])
        assert np.allclose(together[rows], alone[encoded.positions[rows]], atol=1e-5)


def test_inputs_that_a_family_does_not_take_are_left_out() -> None:
    assert predict_all(tiny_classifier("distilbert"), data(3).encoded, 0).shape == (3, 2)
