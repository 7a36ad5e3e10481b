"""What 8 bits cost in accuracy: a sentiment head on frozen embeddings of SST-2, in fp32 and in int8."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastssl.tasks.embedding.embedder import SentenceEmbedder

TRAIN_TEXTS, HEADS, TEXTS_PER_HEAD = 3000, 5, 2500
ALLOWED_LOSS = 0.005
WEIGHT_DECAY = 1e-4


def examples(file: Path, step: int = 1, count: int | None = None) -> tuple[list[str], Tensor]:
    rows = [line.rsplit("\t", 1) for line in file.read_text(encoding="utf-8").splitlines()[1:]][::step][:count]
    return [text for text, _ in rows], torch.tensor([float(label) for _, label in rows])


def fitted_head(x: Tensor, y: Tensor) -> Tensor:
    """Return the weights of a logistic regression, its bias last."""
    weights = torch.zeros(x.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(x @ weights[:-1] + weights[-1], y)
        loss = loss + WEIGHT_DECAY * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()


@pytest.mark.slow
def test_a_head_fitted_in_fp32_loses_little_in_int8(minilm_directory, test_data):
    """The mean over several heads: one alone moves by as much as a quarter of a point either way by chance."""
    train_texts, train_labels = examples(test_data / "sst2" / "train.tsv", step=22, count=TRAIN_TEXTS)
    dev_texts, dev_labels = examples(test_data / "sst2" / "dev.tsv")
    exact = SentenceEmbedder.load(minilm_directory)
    x = torch.from_numpy(exact(train_texts))
    dev = {"fp32": exact(dev_texts), "int8": SentenceEmbedder.load(minilm_directory, dtype="int8")(dev_texts)}
    correct = {dtype: [] for dtype in dev}
    for seed in range(HEADS):
        chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:TEXTS_PER_HEAD]
        head = fitted_head(x[chosen], train_labels[chosen])
        for dtype, rows in dev.items():
            predicted = (torch.from_numpy(rows) @ head[:-1] + head[-1] > 0).float()
            correct[dtype].append((predicted == dev_labels).float().mean().item())
    accuracy = {dtype: float(np.mean(values)) for dtype, values in correct.items()}
    assert accuracy["fp32"] > 0.77
    assert accuracy["int8"] >= accuracy["fp32"] - ALLOWED_LOSS, accuracy
