"""LoRA against peft's own model and against the formula of the paper."""

import builtins
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from compress.errors import ModelError
from compress.lora import merge, with_lora
from tests.support.models import FAMILIES, tiny_classifier

peft = pytest.importorskip("peft")

INPUTS = {
    "input_ids": torch.tensor([[2, 5, 6, 7, 3], [2, 8, 9, 3, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
}


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(**INPUTS).logits


def trained(model: torch.nn.Module, steps: int = 3) -> torch.nn.Module:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(**INPUTS).logits, torch.tensor([0, 1])).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_starts_as_the_model_it_wraps(family: str) -> None:
    model = tiny_classifier(family)
    expected = logits(model)
    wrapped = with_lora(model, 4, 8, 0.1)
    assert wrapped is model
    assert torch.equal(logits(wrapped), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_updates_and_the_head_are_trained_and_nothing_else(family: str) -> None:
    model = with_lora(tiny_classifier(family, layers=3), 4, 8, 0.0)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    trained(model, steps=2)
    changed = {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}
    updates = {name for name in changed if ".lora_" in name}
    assert len(updates) == 3 * 2 * 2  # layers, queries and values, A and B
    assert {name.split(".")[-4] for name in updates} in ({"query", "value"}, {"q_lin", "v_lin"}, {"q", "v"})
    assert all("classifier" in name or "pooler" in name for name in changed - updates)
    assert any("classifier" in name for name in changed)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_are_those_of_the_paper(family: str) -> None:
    """Hu et al. 2022: W + alpha / r · B · A."""
    plain = tiny_classifier(family)
    keys, kind = list(plain.state_dict()), type(plain)
    before = copy.deepcopy(plain.state_dict())
    model = trained(with_lora(plain, 4, 8, 0.1))
    state, expected = copy.deepcopy(model.state_dict()), logits(model)
    merged = merge(model)
    assert type(merged) is kind
    assert list(merged.state_dict()) == keys
    assert torch.allclose(logits(merged), expected, atol=1e-5)
    assert all(p.requires_grad for p in merged.parameters())
    adapted = [key.removesuffix(".lora_A.default.weight") for key in state if "lora_A" in key]
    assert len(adapted) == 4
    for name in adapted:
        a, b = (state[f"{name}.lora_{x}.default.weight"].double() for x in "AB")
        update = 8 / 4 * (b @ a)
        assert float(update.abs().max()) > 1e-4
        assert torch.allclose(
            merged.state_dict()[f"{name}.weight"].double(), before[f"{name}.weight"] + update, atol=1e-6
        )


def test_merging_gives_what_peft_gives() -> None:
    ours = trained(with_lora(tiny_classifier(), 4, 8, 0.0))
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"])
    theirs = peft.get_peft_model(tiny_classifier(), config)
    result = theirs.base_model.model.load_state_dict(ours.state_dict())
    assert not result.missing_keys
    expected = theirs.merge_and_unload().state_dict()
    found = merge(ours).state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_checkpoint_loads_into_a_model_wrapped_alike(tmp_path: Path) -> None:
    model = trained(with_lora(tiny_classifier(), 4, 8, 0.0, seed=1))
    torch.save(model.state_dict(), tmp_path / "checkpoint.pt")
    again = with_lora(tiny_classifier(seed=5), 4, 8, 0.0, seed=2)
    again.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    assert torch.equal(logits(again), logits(model))


def test_the_merged_model_is_saved_as_a_plain_one(tmp_path: Path) -> None:
    model = merge(trained(with_lora(tiny_classifier(), 4, 8, 0.0)))
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model))


def test_the_seed_draws_the_updates() -> None:
    states = [with_lora(tiny_classifier(), 4, 8, 0.0, seed=seed).state_dict() for seed in (1, 1, 2)]
    name = next(key for key in states[0] if "lora_A" in key)
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


def test_without_peft_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_peft(name: str, *rest: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(ModelError, match=r"pip install 'limbeck\[train\]'"):
        with_lora(tiny_classifier(), 4, 8, 0.0)


def test_nothing_but_encoders_is_wrapped() -> None:
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    with pytest.raises(ModelError, match="'gpt2' cannot be found"):
        with_lora(model, 4, 8, 0.0)
