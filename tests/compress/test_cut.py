"""Physical removal against masks that torch alone applies; saved, loaded, exported, fused, quantised."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional

from bundle import Task
from compress import teacher
from compress.anatomy import anatomy_of, heads_of
from compress.cut import Kept, cut, whole
from compress.errors import ModelError
from compress.export import PARITY_TOLERANCE, check_parity, export_model, optimize
from compress.factorize import FactorizedEmbedding, factorize
from compress.graph import Graph
from compress.importance import gated
from compress.models import load_classifier, take_layers
from compress.outputs import batch_invariance
from compress.quantize import quantize_model
from compress.recipe import Quantize
from compress.tasks import SPECS
from compress.widths import FILE, widths_of
from service.engine.tokenization import Encoding
from tests.support.models import FAMILIES, VOCABULARY, tiny_classifier

ALL = (*FAMILIES, "xlm-roberta")
SINGLE = SPECS[Task.SINGLE_LABEL]
# of three layers the first and the last, with other numbers of heads and neurons each
KEPT = Kept((0, 2), ((1, 2, 3), (0, 3)), (tuple(range(0, 128, 2)), tuple(range(96))), tuple(range(64)))
NARROW = replace(KEPT, hidden=tuple(sorted((*range(0, 64, 2), *range(33, 64, 4)))))


def inputs(batch: int = 3, tokens: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCABULARY, (batch, tokens), generator=source)
    mask = torch.ones_like(ids)
    mask[0, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def logits(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(**inputs()).logits


class KeptNorm(nn.Module):
    """A normalization over some of the numbers; the others are zero."""

    def __init__(self, norm: nn.LayerNorm, kept: tuple[int, ...]) -> None:
        super().__init__()
        self.norm, self.kept = norm, torch.tensor(kept)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = torch.zeros_like(x)
        weight, bias = self.norm.weight[self.kept], self.norm.bias[self.kept]
        result[..., self.kept] = functional.layer_norm(
            x[..., self.kept], (len(self.kept),), weight, bias, self.norm.eps
        )
        return result


def masked(model: nn.Module, kept: Kept) -> nn.Module:
    """The whole model with the columns that read what goes set to zero, and layers out of its list."""
    model = copy.deepcopy(model)
    anatomy = anatomy_of(model)
    with torch.no_grad():
        for index, heads, neurons in zip(kept.layers, kept.heads, kept.neurons, strict=True):
            layer = anatomy.layers[index]
            for head in set(range(layer.heads)) - set(heads):
                layer.out.weight[:, head * layer.head_width : (head + 1) * layer.head_width] = 0
            layer.down.weight[:, sorted(set(range(layer.neurons)) - set(neurons))] = 0
    for index in sorted(set(range(len(anatomy.layers))) - set(kept.layers), reverse=True):
        del anatomy.layer_list[index]
    if len(kept.hidden) < anatomy.hidden:
        for module in list(model.base_model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.LayerNorm):
                    setattr(module, name, KeptNorm(child, kept.hidden))
    return model


@pytest.mark.parametrize("kept", [KEPT, NARROW], ids=["heads, neurons, layers", "and hidden width"])
@pytest.mark.parametrize("family", ALL)
def test_what_is_removed_might_as_well_have_been_masked(family: str, kept: Kept) -> None:
    model = tiny_classifier(family, layers=3)
    expected = logits(masked(model, kept))
    before = logits(model)
    cut(model, kept)
    assert torch.allclose(logits(model), expected, atol=1e-5)
    assert (logits(model) - before).abs().max() > 1e-2  # else nothing would be shown
    anatomy = anatomy_of(model)
    assert anatomy.hidden == len(kept.hidden)
    assert [layer.query.weight.shape for layer in anatomy.layers] == [(48, anatomy.hidden), (32, anatomy.hidden)]
    assert [layer.down.weight.shape for layer in anatomy.layers] == [(anatomy.hidden, 64), (anatomy.hidden, 96)]


@pytest.mark.parametrize("task", [Task.SINGLE_LABEL, Task.TOKEN_CLASSIFICATION])
@pytest.mark.parametrize("family", ALL)
def test_closed_gates_are_masks(family: str, task: Task) -> None:
    model = tiny_classifier(family, layers=3, task=task)
    batch = inputs()
    with torch.no_grad(), gated(anatomy_of(model), 3, torch.device("cpu")) as gates:
        gates.heads[0][:, 0] = 0
        gates.heads[2][:, 1:3] = 0
        gates.neurons[0][:, 1::2] = 0
        gates.neurons[2][:, 96:] = 0
        gates.layers[:, 1] = 0
        found = model(**batch).logits
    cut(model, KEPT)
    assert torch.allclose(found, logits(model), atol=1e-5)


def test_electra_with_narrow_embeddings() -> None:
    config = transformers.ElectraConfig(
        vocab_size=VOCABULARY,
        embedding_size=32,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
    )
    torch.manual_seed(0)
    model = transformers.ElectraForSequenceClassification(config).eval()
    reference = masked(model, KEPT)
    source: Any = reference
    for layer in source.electra.encoder.layer:  # the embeddings' own normalization is 32 wide and stays
        for part in (layer.attention.output, layer.output):
            part.LayerNorm = KeptNorm(part.LayerNorm, NARROW.hidden)
    dropped = sorted(set(range(64)) - set(NARROW.hidden))
    with torch.no_grad():
        source.electra.embeddings_project.weight[dropped] = 0
        source.electra.embeddings_project.bias[dropped] = 0
    cut(model, NARROW)
    assert torch.allclose(logits(model), logits(reference), atol=1e-5)


def test_a_second_cut_counts_in_what_the_first_left() -> None:
    """MPNet's heads share a table of position biases: each must go on finding its own."""
    once, twice = tiny_classifier("mpnet", layers=3), tiny_classifier("mpnet", layers=3)
    cut(once, Kept((0, 2), ((2, 3), (3,)), (tuple(range(64)), tuple(range(64))), tuple(range(64))))
    everything = (tuple(range(128)),) * 2
    cut(twice, Kept((0, 2), ((1, 2, 3), (0, 3)), everything, tuple(range(64))))
    cut(twice, Kept((0, 1), ((1, 2), (1,)), (tuple(range(64)), tuple(range(64))), tuple(range(64))))
    assert torch.equal(logits(once), logits(twice))


@pytest.mark.parametrize("family", ALL)
def test_a_cut_that_takes_nothing_changes_nothing(family: str) -> None:
    model = tiny_classifier(family)
    before = logits(model)
    cut(model, whole(model))
    assert torch.equal(logits(model), before)
    assert widths_of(model) is None


@pytest.mark.parametrize("rank", [None, 12])
@pytest.mark.parametrize("family", ALL)
def test_a_pruned_model_is_loaded_as_it_was_saved(family: str, rank: int | None, tmp_path: Path) -> None:
    model = tiny_classifier(family, layers=3)
    if rank:
        factorize(model, rank)
    cut(model, NARROW)
    teacher.save_model(model, tmp_path)
    assert (tmp_path / FILE).is_file()
    loaded = load_classifier(str(tmp_path), ["LABEL_0", "LABEL_1"], 0, SINGLE, keep_head=True)
    assert torch.equal(logits(loaded), logits(model))
    assert widths_of(loaded) == widths_of(model)
    assert list(loaded.state_dict()) == list(model.state_dict())  # resumed training steps through the same order
    with pytest.raises(ModelError, match="a pruned model keeps its own head"):
        load_classifier(str(tmp_path), ["a", "b"], 0, SINGLE, keep_head=False)


def test_widths_that_are_damaged(tmp_path: Path) -> None:
    model = tiny_classifier(layers=3)
    cut(model, KEPT)
    teacher.save_model(model, tmp_path)
    (tmp_path / FILE).write_text('{"hidden": 64}')
    with pytest.raises(ModelError, match=r"widths.json: not the widths of a pruned model"):
        load_classifier(str(tmp_path), ["LABEL_0", "LABEL_1"], 0, SINGLE, keep_head=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_uneven_heads_export_fuse_and_stay_exact_in_int8(family: str, tmp_path: Path) -> None:
    model = tiny_classifier(family, layers=3)
    cut(model, KEPT)
    assert heads_of(model) == [3, 2]
    graph = Graph(export_model(model, "text-classification", opset=18))
    done = optimize(graph, model)
    assert done["fused_attentions"] == 2
    fused = graph.finish()
    heads = [n.attribute[0].i for n in fused.graph.node if n.op_type == "MultiHeadAttention"]
    assert heads == [3, 2]
    path = tmp_path / "model.onnx"
    onnx.save(fused, path)
    assert check_parity(model, path, 2, max_length=32) <= PARITY_TOLERANCE
    quantized, counts = quantize_model(fused, Quantize())
    assert counts.matrices > 0
    onnx.save(quantized, path)
    random = np.random.default_rng(0)
    lengths = random.integers(2, 30, 60)
    texts = [Encoding(random.integers(4, VOCABULARY, n).tolist(), [0] * n, truncated=False) for n in lengths]
    assert batch_invariance(path, texts, model.config.pad_token_id, seed=0).bit_equal


def test_factorized_embeddings_are_numpys_truncated_decomposition() -> None:
    model = tiny_classifier()
    table = model.get_input_embeddings().weight.detach().double().numpy()
    left, values, right = np.linalg.svd(table, full_matrices=False)
    kept = factorize(model, 8)
    found = model.get_input_embeddings()
    assert isinstance(found, FactorizedEmbedding)
    with torch.inference_mode():
        rows = found(torch.arange(VOCABULARY)).double().numpy()
    assert np.allclose(rows, left[:, :8] * values[:8] @ right[:8], atol=1e-5)
    assert kept == pytest.approx((values[:8] ** 2).sum() / (values**2).sum())
    with pytest.raises(ModelError, match="factorized already"):
        factorize(model, 4)


def test_a_rank_that_saves_nothing() -> None:
    with pytest.raises(ModelError, match=r"vocabulary.embedding_rank: found 64; expected less than .* 64"):
        factorize(tiny_classifier(), 64)


def test_a_family_that_is_not_known() -> None:
    config = transformers.AlbertConfig(
        vocab_size=VOCABULARY, embedding_size=16, hidden_size=32, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.AlbertForSequenceClassification(config)
    with pytest.raises(ModelError, match=r"'albert' cannot be pruned; expected a classifier of BERT, RoBERTa, .*MPNet"):
        anatomy_of(model)
    assert heads_of(model) == 2


def test_layers_of_a_pruned_model_cannot_be_taken() -> None:
    model = tiny_classifier(layers=3)
    cut(model, KEPT)
    with pytest.raises(ModelError, match="layers of a model of type 'bert' cannot be taken"):
        take_layers(model, 1, ["a", "b"], seed=0)
