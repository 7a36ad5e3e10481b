"""Classification of texts and pairs: batches, scores, predictions. Regression is the class without classes."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastssl.data.batch import PackedBatch
from fastssl.data.tokenizer import Tokenizer
from fastssl.models.bert_classifier import BertForSequenceClassification
from fastssl.models.bert_config import ProblemType
from fastssl.tasks.encoded_texts import EncodedTexts, encode_texts
from fastssl.tasks.encoded_words import EncodedWords
from fastssl.tasks.fine_tuned import check_vocabulary, checked_length, load_fine_tuned, trained_length
from fastssl.tasks.labelled_texts import LabelledTexts
from fastssl.tasks.labels import LabelSet
from fastssl.tasks.question_windows import QuestionWindows
from fastssl.training.distributed import World
from fastssl.training.evaluation import evaluation_mode

TOKENS_PER_BATCH = 4096
"""About how many tokens go through the model at once where nothing is trained."""
MAIN_METRIC: dict[ProblemType, str] = {
    "single_label_classification": "accuracy",
    "multi_label_classification": "micro_f1",
    "regression": "spearman",
}
"""The figure by which the best checkpoint is chosen where none is named."""


class ClassificationData:
    """Labelled examples in batches of a fixed number, shuffled anew in each epoch; safe to use from several threads.

    Args:
        examples: the X encoded examples.
        labels: (X) or (X, C); (W) of the words of all examples, where these are words; (X, 2) of windows, the first and
            the last token of their answers.
        seed: of the order.
        batch_size: sequences per batch; the last batch of an epoch has what is left.
        rows: numbers of the examples that are used; None uses all.
    """

    def __init__(
        self,
        examples: EncodedTexts | EncodedWords | QuestionWindows,
        labels: Tensor,
        *,
        seed: int,
        batch_size: int,
        rows: np.ndarray | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.examples, self.labels, self.seed, self.batch_size = examples, labels, seed % 2**64, batch_size
        self.rows = np.arange(len(examples)) if rows is None else rows
        self._lock = threading.Lock()
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def num_batches(self, epoch: int) -> int:
        """Return the number of batches, the same in every epoch."""
        return -(-len(self.rows) // self.batch_size)

    def batch(self, epoch: int, index: int) -> PackedBatch:
        """Return batch `index` of `epoch`, a function of the seed and the two."""
        if not 0 <= index < self.num_batches(epoch):
            raise ValueError(f"epoch {epoch} has batches 0 to {self.num_batches(epoch) - 1}, got index {index}")
        order = self.order(epoch)
        return self.examples.batch(order[index * self.batch_size : (index + 1) * self.batch_size], self.labels)

    def order(self, epoch: int) -> np.ndarray:
        """Return the numbers of the examples in the order of an epoch, int64; the last two orders are kept."""
        with self._lock:
            return self._order(epoch)

    def _draw_order(self, epoch: int) -> np.ndarray:
        return self.rows[np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))]


@torch.inference_mode()
def classify(
    model: nn.Module,
    examples: EncodedTexts,
    *,
    dtype: torch.dtype = torch.float32,
    cancelled: Callable[[], bool] = lambda: False,
) -> Tensor | None:
    """Return the logits of all examples in their order, (X, C) fp32 on the CPU; None once it is cancelled.

    Examples go through the model longest first, packed without padding. The model is in evaluation mode meanwhile and
    in its former mode after.
    """
    logits = torch.empty(len(examples), model.config.num_labels)
    with evaluation_mode(model, dtype) as device:
        for numbers in examples.by_length(TOKENS_PER_BATCH):
            if cancelled():
                return None
            rows = model(examples.batch(numbers).to(device)).logits
            logits[torch.from_numpy(numbers)] = rows.float().cpu()
    return logits


@dataclass(frozen=True, kw_only=True)
class ClassificationEvaluation:
    """Measures a classifier on held-out examples: the loss, and the scores of its kind of problem."""

    examples: EncodedTexts
    """The encoded texts."""
    labels: Tensor
    """(X) or (X, C)."""
    problem_type: ProblemType
    """What the labels are."""

    def __call__(
        self,
        model: nn.Module,
        *,
        dtype: torch.dtype = torch.float32,
        world: World | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> dict[str, float] | None:
        """Return "eval_loss" and the figures of `scores` as "eval_..."; None once it is cancelled.

        Every process of `world` measures everything, so that all have the same figures.
        """
        logits = classify(model, self.examples, dtype=dtype, cancelled=cancelled)
        if (world or World()).maximum([float(logits is None)])[0]:
            return None
        return {f"eval_{name}": value for name, value in scores(logits, self.labels, self.problem_type).items()}


def scores(logits: Tensor, labels: Tensor, problem_type: ProblemType) -> dict[str, float]:
    """Return the loss and the usual figures of predictions.

    One class of two: accuracy, F1 of the second class, Matthews' correlation; of more: macro F1. Several classes at
    once: accuracy (all right), micro and macro F1. Regression: Pearson's and Spearman's correlation, which are 0 where
    one side is constant.

    Args:
        logits: (X, C) float.
        labels: (X) int64, (X, C) of zeros and ones, or (X) float.
        problem_type: which of these they are.
    """
    from scipy import stats
    from sklearn import metrics

    if problem_type == "regression":
        values = logits.squeeze(-1)
        found = {"loss": F.mse_loss(values, labels).item(), "pearson": 0.0, "spearman": 0.0}
        if values.unique().numel() > 1 and labels.unique().numel() > 1:
            found["pearson"] = float(stats.pearsonr(values.numpy(), labels.numpy()).statistic)
            found["spearman"] = float(stats.spearmanr(values.numpy(), labels.numpy()).statistic)
        return found
    if problem_type == "multi_label_classification":
        predicted = (logits > 0).numpy()
        f1 = {
            f"{kind}_f1": metrics.f1_score(labels, predicted, average=kind, zero_division=0.0)
            for kind in ("micro", "macro")
        }
        loss = F.binary_cross_entropy_with_logits(logits, labels).item()
        return {"loss": loss, "accuracy": float(metrics.accuracy_score(labels, predicted))} | _floats(f1)
    predicted = logits.argmax(-1)
    found = {
        "loss": F.cross_entropy(logits, labels).item(),
        "accuracy": metrics.accuracy_score(labels, predicted),
        "matthews": metrics.matthews_corrcoef(labels, predicted),
    }
    if logits.shape[1] == 2:
        found["f1"] = metrics.f1_score(labels, predicted, pos_label=1, zero_division=0.0)
    else:
        found["macro_f1"] = metrics.f1_score(labels, predicted, average="macro", zero_division=0.0)
    return _floats(found)


def metric_names(label_set: LabelSet) -> tuple[str, ...]:
    """Return the names of the figures of `scores` for these labels."""
    size = len(label_set.names)
    labels = {
        "single_label_classification": torch.arange(size),
        "multi_label_classification": torch.eye(size),
        "regression": torch.zeros(size),
    }
    return tuple(scores(torch.eye(size), labels[label_set.problem_type], label_set.problem_type))


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a classifier makes of one text or pair."""

    text: str
    """The text as given."""
    pair: str | None
    """The second text, if any."""
    label: str | tuple[str, ...] | float
    """The likeliest class; all classes above one half where there may be several; the value for regression."""
    probabilities: Mapping[str, float] | None
    """Class -> probability, likeliest first; None for regression."""


class Classifier:
    """Classifies texts with a fine-tuned model: packed, longest first, in the order given.

    Args:
        model: put into evaluation mode.
        tokenizer: of the model's vocabulary.
        max_seq_length: longer texts are cut; None: the model's positions.

    Raises:
        ValueError: where the tokenizer has ids that the model does not, or `max_seq_length` is beyond its positions.
    """

    def __init__(
        self, model: BertForSequenceClassification, tokenizer: Tokenizer, *, max_seq_length: int | None = None
    ) -> None:
        check_vocabulary(model, tokenizer)
        self.model, self.tokenizer = model.eval(), tokenizer
        self.max_seq_length = checked_length(max_seq_length, model.config.max_position_embeddings)
        config = model.config
        kind = "regression" if config.num_labels == 1 else "single_label_classification"
        self.label_set = LabelSet(names=config.label_names, problem_type=config.problem_type or kind)

    @classmethod
    def load(cls, directory: str | Path, *, max_seq_length: int | None = None, dtype: str = "fp32") -> Classifier:
        """Read model and tokenizer from one directory; texts are cut where they were in training.

        Args:
            directory: of a fine-tuned model.
            max_seq_length: where texts are cut instead, in tokens.
            dtype: "fp32", "bf16" or "int8" (see `fastssl.quantize`), of the computation.

        Raises:
            FileNotFoundError: where a part is missing.
            ValueError: where the model is none for classification, a part is damaged, or the model's positions do not
                reach to `max_seq_length`.
        """
        model, tokenizer = load_fine_tuned(BertForSequenceClassification, directory, "classification", dtype)
        if max_seq_length is None:
            max_seq_length = trained_length(directory, model.config.max_position_embeddings)
        return cls(model, tokenizer, max_seq_length=max_seq_length)

    def __call__(self, texts: Iterable[str], pairs: Iterable[str] | None = None) -> list[Prediction]:
        """Return what the model makes of each text, or of each pair of a text and its second one.

        Warns where the model was fine-tuned on pairs and is given single texts, or the other way round.

        Raises:
            ValueError: for one string instead of several, something that is no text, or second texts of another number.
        """
        texts, pairs = _strings("texts", texts), None if pairs is None else _strings("pairs", pairs)
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"pairs must hold one text for each of the {len(texts)} texts, got {len(pairs)}")
        if not texts:
            return []
        logits = self.logits(texts, pairs)
        found = [self._judge(row) for row in logits]
        seconds = pairs or [None] * len(texts)
        return [
            Prediction(text=text, pair=pair, label=label, probabilities=probabilities)
            for text, pair, (label, probabilities) in zip(texts, seconds, found, strict=True)
        ]

    def logits(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tensor:
        """Return the head's numbers, (number of texts, C) fp32; warns as a call does."""
        trained_on_pairs = self.model.config.trained_on_pairs
        if trained_on_pairs is not None and trained_on_pairs != (pairs is not None):
            kinds = ("single texts", "pairs of texts")
            warnings.warn(
                f"the model was fine-tuned on {kinds[trained_on_pairs]} and is given {kinds[not trained_on_pairs]}: "
                "what it makes of them may mean nothing",
                stacklevel=3,
            )
        return classify(self.model, encode_texts(self.tokenizer, texts, pairs, max_seq_length=self.max_seq_length))

    def evaluate(self, examples: LabelledTexts) -> dict[str, float]:
        """Return the loss and the figures of `scores` on labelled texts.

        Raises:
            ValueError: for a label that the model does not know.
        """
        labels = self.label_set.encode(examples.labels, examples.table.place)
        return scores(self.logits(examples.texts, examples.pairs), labels, self.label_set.problem_type)

    def _judge(self, logits: Tensor) -> tuple[str | tuple[str, ...] | float, dict[str, float] | None]:
        names, kind = self.label_set.names, self.label_set.problem_type
        if kind == "regression":
            return logits[0].item(), None
        values = logits.sigmoid() if kind == "multi_label_classification" else logits.softmax(-1)
        best = values.sort(descending=True, stable=True)
        ranked = {names[i]: p for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)}
        if kind == "multi_label_classification":
            return tuple(name for name, p in ranked.items() if p > 0.5), ranked
        return next(iter(ranked)), ranked


def _strings(name: str, values: Iterable[str]) -> list[str]:
    if isinstance(values, str):
        raise ValueError(f"{name} must be several strings, got one; put it into a list")
    values = list(values)
    for number, value in enumerate(values):
        if not isinstance(value, str):
            raise ValueError(f"{name} must be strings, got {type(value).__name__} as number {number}")
    return values


def _floats(figures: Mapping[str, object]) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items()}
