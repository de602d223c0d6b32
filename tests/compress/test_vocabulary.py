"""Students with fewer tokens: the same answers where the pieces are kept, and a report of what changed."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as FastTokenizer

from compress.errors import ModelError
from compress.factorize import FactorizedEmbedding, factorize
from compress.vocabulary import changed_share, cut_embeddings, prune_tokenizer
from service.engine.tokenization import Tokenizer
from tests.compress.test_faults import assert_one_message, run
from tests.support.models import FAMILIES, tiny_classifier, write_tiny_recipe
from tests.support.pruned import finish_pruned, piece_tokenizer, summary, write_pruned_recipe
from tests.support.rows import read_lines

KEPT = "a good movie was not dull"


def written(folder: Path, tokenizer: FastTokenizer) -> Path:
    path = folder / "tokenizer.json"
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    tokenizer.save(str(path))
    return path


def logits(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_to_kept_pieces_are_the_same(family: str, tmp_path: Path) -> None:
    fast = piece_tokenizer()
    path = written(tmp_path, fast)
    model = tiny_classifier(family)
    torch.manual_seed(0)
    model.resize_token_embeddings(fast.get_vocab_size(), mean_resizing=False)
    before = logits(model, fast.encode(KEPT).ids)
    ids = prune_tokenizer(path, Counter(fast.encode(KEPT).ids), 1, tmp_path / "new.json")
    cut_embeddings(model, ids)
    new = Tokenizer(tmp_path / "new.json", 32)
    assert len(ids) < fast.get_vocab_size()
    assert model.config.vocab_size == len(new.vocabulary()) == len(ids)
    assert model.get_input_embeddings().weight.shape == (len(ids), 64)
    assert torch.equal(logits(model, new.encode([KEPT])[0].ids), before)
    assert new.pad_id == model.config.pad_token_id == 0


def test_seldom_seen_tokens_go(tmp_path: Path) -> None:
    fast = piece_tokenizer()
    path = written(tmp_path, fast)
    good, movie = fast.token_to_id("good"), fast.token_to_id("movie")
    ids = prune_tokenizer(path, Counter({good: 3, movie: 2}), 3, tmp_path / "new.json")
    assert good in ids
    assert movie not in ids
    old, new = Tokenizer(path, 32), Tokenizer(tmp_path / "new.json", 32)
    assert new.encode(["movie"])[0].tokens > old.encode(["movie"])[0].tokens
    assert new.encode(["good"])[0].tokens == old.encode(["good"])[0].tokens


def test_the_share_of_changed_texts_counts_texts(tmp_path: Path) -> None:
    from compress.examples import Example

    fast = piece_tokenizer()
    path = written(tmp_path, fast)
    prune_tokenizer(path, Counter(fast.encode("good movie").ids), 1, tmp_path / "new.json")
    examples = [Example(text, None, "here") for text in ("good", "movie good", "plot", "good plot")]
    assert changed_share(Tokenizer(path, 32), Tokenizer(tmp_path / "new.json", 32), examples) == 0.5


def test_a_padding_token_that_positions_are_counted_from_keeps_its_id() -> None:
    model = tiny_classifier("roberta")
    words = model.get_input_embeddings()
    assert words.padding_idx == 0
    words.padding_idx = 5
    with pytest.raises(ModelError, match="counts positions from its padding token 5, which would get the id 3"):
        cut_embeddings(model, [0, 1, 2, 5, 9])


def test_factorized_embeddings_are_not_cut() -> None:
    model = tiny_classifier()
    factorize(model, 8)
    with pytest.raises(ModelError, match="prune the vocabulary of a model that is not"):
        cut_embeddings(model, [0, 1, 2, 3])


def test_a_tokenizer_of_whole_words_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    recipe = write_tiny_recipe(tmp_path, vocabulary={})
    result = run(recipe, tmp_path / "out")
    assert_one_message(result, "the tokenizer is WordLevel", "expected WordPiece, BPE, Unigram")
    assert "fine-tuning" not in result.stdout


def test_a_rank_that_saves_nothing_is_refused(tmp_path: Path) -> None:
    """What the width says is known before anything is trained, the rest when the number of tokens is."""
    recipe = write_pruned_recipe(tmp_path, target=None, prune=None, vocabulary={"embedding_rank": 64})
    result = run(recipe, tmp_path / "out")
    assert_one_message(result, "vocabulary.embedding_rank: found 64; expected less than the width of the embeddings")
    assert "fine-tuning" not in result.stdout
    model = tiny_classifier()
    message = "found 40, which saves nothing for 18 tokens 64 wide; expected at most 14"
    with pytest.raises(ModelError, match=message):
        factorize(model, 40)
    factorize(model, 14)
    assert sum(p.numel() for p in model.get_input_embeddings().parameters()) < 18 * 64


def test_a_run_with_fewer_tokens_and_factorized_embeddings(tmp_path: Path) -> None:
    """Factors of 64 x 64 or less would not be INT8; the rest of the student is."""
    done = finish_pruned(tmp_path, target=None, prune=None, vocabulary={"embedding_rank": 32, "epochs": 2})
    found = summary(done.out, "vocabulary")
    old = Tokenizer(done.out / "work/distill/tokenizer.json", 32)
    new = Tokenizer(done.bundle.path("tokenizer.json"), 32)
    assert (found["tokens_before"], found["tokens"]) == (len(old.vocabulary()), len(new.vocabulary()))
    assert found["tokens"] < found["tokens_before"]
    texts = [row["text"] for row in done.rows("test")]
    changed = [
        [old.token(i) for i in a.ids] != [new.token(i) for i in b.ids]
        for a, b in zip(old.encode(texts), new.encode(texts), strict=True)
    ]
    assert found["changed_encodings"]["test"] == pytest.approx(sum(changed) / len(changed))
    assert 0 < found["variance_kept"] < 1
    assert set(found["test_score"]) == {"before", "after", "taught"}
    quality = done.bundle.manifest.metrics[1].quality
    assert quality is not None
    assert quality.scores["accuracy"].value == pytest.approx(found["test_score"]["taught"], abs=0.03)
    assert "tokens stay; test texts cut otherwise" in done.printed
    share = f"{sum(changed) / len(changed):.1%}"
    told = f"Vocabulary: {found['tokens']} of {found['tokens_before']} tokens stay; {share} of the test texts"
    assert told in done.bundle.path("README.md").read_text()
    assert told in done.bundle.path("report.html").read_text()
    lineage = done.bundle.manifest.lineage.vocabulary
    assert lineage is not None
    assert lineage["test_score"] == found["test_score"]
    widths = json.loads((done.out / "work/vocabulary/model/widths.json").read_text())
    assert widths["embedding_rank"] == 32
    assert done.bundle.manifest.metrics[2].batch_invariance is not None
    assert done.bundle.manifest.metrics[2].batch_invariance.bit_equal
    assert len(read_lines(done.bundle.path("golden.jsonl"))) == 32


def test_embeddings_are_torchs_own_product() -> None:
    product = FactorizedEmbedding(10, 4, 6, padding_idx=0)
    ids = torch.tensor([[1, 9, 0]])
    assert torch.allclose(product(ids), (product.table.weight @ product.project.weight.T)[ids])
