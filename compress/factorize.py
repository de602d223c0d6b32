"""Word embeddings as a product of two matrices: V × r numbers and r × H instead of V × H."""

from typing import Any

import torch
from torch import Tensor, nn

from compress.anatomy import anatomy_of
from compress.errors import ModelError


class FactorizedEmbedding(nn.Module):
    """A table (V, r) whose rows a matrix maps to H numbers, as in ALBERT (Lan et al. 2020, section 3.1)."""

    def __init__(self, rows: int, rank: int, width: int, padding_idx: int | None) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, rank, padding_idx=padding_idx)
        self.project = nn.Linear(rank, width, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (B, T) to (B, T, H)."""
        embedded: Tensor = self.project(self.table(ids))
        return embedded


def factorize(model: nn.Module, rank: int) -> float:
    """Replace the word embeddings by their best product of rank `rank`; return the share of their variance that stays.

    In place. The product is that of the truncated singular value decomposition, which no other of this rank beats in
    squared error (Eckart & Young 1936). Raises ModelError when `rank` saves nothing.
    """
    check_rank(model, rank)
    old = _word_embeddings(model)
    rows, width = old.num_embeddings, old.embedding_dim
    if rank * (rows + width) >= rows * width:
        raise ModelError(
            f"vocabulary.embedding_rank: found {rank}, which saves nothing for {rows} tokens {width} wide; expected "
            f"at most {(rows * width - 1) // (rows + width)}"
        )
    table = old.weight.detach().double()
    # the right singular vectors and squared singular values of a tall table, from its small Gram matrix
    squares, vectors = torch.linalg.eigh(table.T @ table)  # ascending
    squares, vectors = squares.flip(0).clamp(min=0), vectors.flip(1)[:, :rank]
    largest = float(squares[0])
    # both factors equally large; a direction that no row has stays empty
    root = torch.where(squares[:rank] > 1e-12 * largest, squares[:rank], 1.0).pow(0.25)
    new = set_rank(model, rank)
    with torch.no_grad():
        new.table.weight.copy_(table @ vectors / root)
        new.project.weight.copy_(vectors * root)
    return float(squares[:rank].sum() / squares.sum())


def check_rank(model: nn.Module, rank: int) -> None:
    """Raise ModelError unless the embeddings of such a model can be factorized, whatever tokens it has in the end."""
    try:
        width = _word_embeddings(model).embedding_dim
    except ModelError as error:
        raise ModelError(f"vocabulary.embedding_rank: {error}") from error
    if rank >= width:
        raise ModelError(
            f"vocabulary.embedding_rank: found {rank}; expected less than the width of the embeddings, {width}"
        )


def set_rank(model: nn.Module, rank: int) -> FactorizedEmbedding:
    """Put a product of rank `rank`, not yet filled in, where the word embeddings are; in place."""
    old = _word_embeddings(model)
    new = FactorizedEmbedding(old.num_embeddings, rank, old.embedding_dim, old.padding_idx).to(old.weight.device)
    embeddings: Any = anatomy_of(model).embeddings
    embeddings.word_embeddings = new
    return new


def rank_of(model: nn.Module) -> int | None:
    """Return the rank of factorized word embeddings, or None."""
    embeddings: Any = anatomy_of(model).embeddings
    words = embeddings.word_embeddings
    return words.table.embedding_dim if isinstance(words, FactorizedEmbedding) else None


def _word_embeddings(model: nn.Module) -> nn.Embedding:
    embeddings: Any = anatomy_of(model).embeddings
    words = embeddings.word_embeddings
    if not isinstance(words, nn.Embedding):
        raise ModelError("the word embeddings are factorized already; leave it out")
    return words
