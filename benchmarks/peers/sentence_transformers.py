"""sentence-transformers: its encoder, which sorts by length and pads, and its training with in-batch negatives."""

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

BATCH_SIZE = 32
"""Its default, and the fastest of 8, 16, 32 and 64 where this was tried."""


def encoder(directory: Path) -> Callable[[Sequence[str]], np.ndarray]:
    """Return its `encode`, tokenization included, for a directory that it or Hugging Face wrote."""
    import transformers
    from sentence_transformers import SentenceTransformer

    transformers.logging.disable_progress_bar()
    model = SentenceTransformer(str(directory), device="cpu")
    return lambda texts: model.encode(list(texts), batch_size=BATCH_SIZE, show_progress_bar=False)


def in_batch_loss(directory: Path, columns: Sequence[Sequence[str]]) -> float:
    """Return its loss of pairs (two columns of texts) with in-batch negatives, without dropout."""
    import torch

    model, loss = _with_loss(directory)
    model.eval()
    with torch.no_grad():
        return loss([model.preprocess(list(column)) for column in columns], None).item()


def training_steps(
    directory: Path, batches: Sequence[Sequence[Sequence[str]]], *, learning_rate: float
) -> Callable[[], float]:
    """Return a launch that trains on the next batch of pairs: tokens, forward, backward, clipping, fused AdamW.

    Args:
        directory: of the model.
        batches: each two columns of texts; begun again when they are used up.
        learning_rate: constant.
    """
    import torch

    model, loss = _with_loss(directory)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0, fused=True)
    stream = itertools.cycle(batches)

    def step() -> float:
        start = time.perf_counter()
        loss([model.preprocess(list(column)) for column in next(stream)], None).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    return step


def _with_loss(directory: Path):
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    transformers.logging.disable_progress_bar()
    model = SentenceTransformer(str(directory), device="cpu")
    return model, MultipleNegativesRankingLoss(model)
