"""Reading: tokens go into a causal model, and the scores of what follows come out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from fastssl.data.batch import PackedBatch
from fastssl.models.generation.generated import GenerationConfig
from fastssl.nn.kv_cache import KVCache


class CausalConfig(Protocol):
    """What generation reads of a model's config."""

    vocab_size: int
    """V, number of tokens in the vocabulary."""
    max_position_embeddings: int
    """Longest text, in tokens."""
    bos_token_id: int | None
    """Token that an empty prompt begins with; None: there is none."""
    end_tokens: tuple[int, ...]
    """Tokens at which a text ends."""


class CausalModel(Protocol):
    """What generation needs of a model; `GPTForCausalLM` is one."""

    config: CausalConfig
    training: bool

    def train(self, mode: bool) -> object:
        """Switch dropout on or off."""

    def new_cache(self, num_sequences: int, capacity: int) -> KVCache:
        """Return an empty cache for so many sequences of so many tokens."""

    def next_token_logits(self, batch: PackedBatch, cache: KVCache | None) -> Tensor:
        """Return the scores (B, V) of what follows each sequence of a pack, which goes on from the cache."""

    def parameters(self) -> Iterator[Tensor]:
        """Yield the weights."""


class Reader:
    """Reads tokens into a model and gives the scores of what follows.

    Args:
        model: of the scores.
        prompts: that will be read first; their lengths bound the cache.
        config: of the generation.
    """

    def __init__(self, model: CausalModel, prompts: Sequence[Sequence[int]], config: GenerationConfig) -> None:
        self.model = model
        self._device = next(model.parameters()).device
        longest = max(map(len, prompts)) + config.max_new_tokens
        capacity = min(longest, model.config.max_position_embeddings)
        self.cache: KVCache | None = model.new_cache(len(prompts), capacity) if config.use_cache else None
        self._texts: list[list[int]] = [[] for _ in prompts]

    def read(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Return the scores (B, V) of what follows after B further runs of tokens, one for each text."""
        if self.cache is None:
            self._texts = [[*text, *new] for text, new in zip(self._texts, tokens, strict=True)]
            tokens = self._texts
        with torch.inference_mode(), evaluating(self.model):
            batch = PackedBatch.from_sequences(tokens).to(self._device)
            return self.model.next_token_logits(batch, self.cache)

    def select(self, rows: Sequence[int]) -> None:
        """Go on with the texts `rows`, some of them left out or repeated."""
        self._texts = [self._texts[row] for row in rows]
        if self.cache is not None:
            self.cache.select(rows)


@contextmanager
def evaluating(model: CausalModel) -> Iterator[None]:
    """Drop nothing out inside of the block."""
    if not model.training:  # walking over all modules twice costs as much as a tenth of a small model's token
        yield
        return
    training = [module for module in model.modules() if module.training]  # others may be frozen on purpose
    model.train(False)
    try:
        yield
    finally:
        for module in training:
            module.training = True
