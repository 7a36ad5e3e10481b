"""What a run is asked to do when it trains sentence embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastssl.models.bert_embedder import DEFAULT_TEMPERATURE

PoolingName = Literal["cls", "max", "mean", "mean_sqrt_len_tokens"]


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """What is particular to the task "embedding"."""

    pooling: tuple[PoolingName, ...] = ()
    """Embedding: how token vectors become one; several stand side by side; none: as the model's directory says, else
    their mean."""
    normalize_embeddings: bool = False
    """Embedding: divide each vector by its length, where the directory does not say so already."""
    temperature: float = DEFAULT_TEMPERATURE
    """Embedding: the softmax over similarities is of cosine / temperature; lower looks harder at the nearest wrong text
    (sentence-transformers' scale is its inverse)."""
    negative_column: str | None = None
    """Embedding: column of a text that does not belong to the first, though it seems to (negative, hard_negative)."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
