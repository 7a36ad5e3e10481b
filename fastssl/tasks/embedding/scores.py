"""How good embeddings are: near where people say so, and nearest to what belongs to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fastssl.models.bert_embedder import BertForSentenceEmbedding
from fastssl.tasks.embedding.nearest import nearest_rows
from fastssl.tasks.encoded_texts import EncodedTexts
from fastssl.tasks.labelled_texts import LabelledTexts
from fastssl.training.distributed import World
from fastssl.training.evaluation import evaluation_mode

TOKENS_PER_BATCH = 4096
"""About how many tokens go through the model at once where nothing is trained."""
SIMILARITY_METRICS, RETRIEVAL_METRICS = ("spearman", "pearson"), ("recall_at_1", "recall_at_10")
"""Of pairs with scores, and of pairs that belong together; the first says which checkpoint is best."""


def pair_scores(first: np.ndarray, second: np.ndarray, scores: np.ndarray | None) -> dict[str, float]:
    """Return the figures of X pairs of embeddings.

    Args:
        first, second: (X, W) float32.
        scores: (X), how alike people found the two. With them: Spearman's and Pearson's correlation with the cosines,
            0 where one side is constant. None: the two belong together; the share of the first whose own partner is
            the nearest of all X seconds, or among the ten nearest (an equally near one that stands before it comes
            first).
    """
    if scores is None:
        nearest = nearest_rows(first, [second], 10)[1]
        hits = nearest == np.arange(len(first))[:, None]
        return {"recall_at_1": float(hits[:, 0].mean()), "recall_at_10": float(hits.any(1).mean())}
    from scipy import stats

    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines = (first * second).sum(1) / np.maximum(lengths, 1e-30)
    if len(np.unique(cosines)) < 2 or len(np.unique(scores)) < 2:
        return dict.fromkeys(SIMILARITY_METRICS, 0.0)
    return {
        "spearman": float(stats.spearmanr(cosines, scores).statistic),
        "pearson": float(stats.pearsonr(cosines, scores).statistic),
    }


def similarities(examples: LabelledTexts) -> np.ndarray | None:
    """Return the scores of pairs, (X) float64; None where the file has none.

    Raises:
        ValueError: for single texts, or a score that is no number.
    """
    if examples.pairs is None:
        raise ValueError(
            f"{examples.table.path} has single texts; expected pairs (sentence1, sentence2, score): name the columns "
            "with --text-column and --text-pair-column"
        )
    if examples.labels is None:
        return None
    values = np.empty(len(examples))
    for row, label in enumerate(examples.labels):
        try:
            values[row] = np.nan if isinstance(label, bool) else float(label)
        except (TypeError, ValueError):
            values[row] = np.nan
        if not np.isfinite(values[row]):
            raise ValueError(
                f"{examples.table.place(row)}: expected a number that says how alike the two texts are, got {label!r}; "
                "name its column with --label-column"
            )
    return values


@dataclass(frozen=True, kw_only=True)
class PairEvaluation:
    """Measures an embedder on held-out pairs; see `pair_scores`."""

    examples: EncodedTexts
    """X first texts, and then the X second ones."""
    scores: np.ndarray | None
    """(X), or None for pairs that belong together."""

    def __call__(
        self,
        model: BertForSentenceEmbedding,
        *,
        dtype: torch.dtype = torch.float32,
        world: World | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> dict[str, float] | None:
        """Return the figures of `pair_scores` as "eval_..."; None once it is cancelled.

        Every process of `world` measures everything, so that all have the same figures.
        """
        embeddings = embed_examples(model, self.examples, dtype=dtype, cancelled=cancelled)
        if (world or World()).maximum([float(embeddings is None)])[0]:
            return None
        first, second = np.split(embeddings, 2)
        return {f"eval_{name}": value for name, value in pair_scores(first, second, self.scores).items()}


@torch.inference_mode()
def embed_examples(
    model: BertForSentenceEmbedding,
    examples: EncodedTexts,
    *,
    dtype: torch.dtype = torch.float32,
    cancelled: Callable[[], bool] = lambda: False,
) -> np.ndarray | None:
    """Return the embeddings of all examples in their order, (X, W) float32; None once it is cancelled.

    Examples go through the model longest first, packed without padding. The model is in evaluation mode meanwhile and
    in its former mode after.
    """
    embeddings = np.empty((len(examples), model.width), dtype=np.float32)
    with evaluation_mode(model, dtype) as device:
        for numbers in examples.by_length(TOKENS_PER_BATCH):
            if cancelled():
                return None
            embeddings[numbers] = model(examples.batch(numbers).to(device)).embeddings.cpu().numpy()
    return embeddings
