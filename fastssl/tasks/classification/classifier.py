"""Classification of texts and pairs: batches, scores, predictions. Regression is the class without classes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastssl.data.tokenizer import Tokenizer
from fastssl.models.bert_classifier import BertForSequenceClassification
from fastssl.models.bert_config import ProblemType
from fastssl.tasks.encoded_texts import EncodedTexts, encode_texts
from fastssl.tasks.example_batches import TOKENS_PER_BATCH
from fastssl.tasks.fine_tuned import check_vocabulary, checked_length, load_fine_tuned, trained_length
from fastssl.tasks.labelled_texts import LabelledTexts
from fastssl.tasks.labels import LabelSet
from fastssl.tasks.streaming import TEXTS_AT_ONCE, one_by_one, stream_windows, strings
from fastssl.training.distributed import World
from fastssl.training.evaluation import evaluation_mode

MAIN_METRIC: dict[ProblemType, str] = {
    "single_label_classification": "accuracy",
    "multi_label_classification": "micro_f1",
    "regression": "spearman",
}
"""The figure by which the best checkpoint is chosen where none is named."""


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

    May be called from several threads at once.

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
    def load(
        cls, directory: str | Path, *, max_seq_length: int | None = None, dtype: str = "fp32", device: str = "auto"
    ) -> Classifier:
        """Read model and tokenizer from one directory; texts are cut where they were in training.

        Args:
            directory: of a fine-tuned model.
            max_seq_length: where texts are cut instead, in tokens.
            dtype: "fp32", "bf16" or "int8" (see `fastssl.quantize`), of the computation.
            device: "auto" (a GPU where there is one; "int8" always the CPU), "cpu", "cuda" or "cuda:1".

        Raises:
            FileNotFoundError: where a part is missing.
            ValueError: where the model is none for classification, a part is damaged, or the model's positions do not
                reach to `max_seq_length`.
        """
        model, tokenizer = load_fine_tuned(BertForSequenceClassification, directory, "classification", dtype, device)
        if max_seq_length is None:
            max_seq_length = trained_length(directory, model.config.max_position_embeddings)
        return cls(model, tokenizer, max_seq_length=max_seq_length)

    def __call__(self, texts: Iterable[str], pairs: Iterable[str] | None = None) -> list[Prediction]:
        """Return what the model makes of each text, or of each pair of a text and its second one.

        Warns where the model was fine-tuned on pairs and is given single texts, or the other way round.

        Raises:
            ValueError: for one string instead of several, something that is no text, or second texts of another number.
        """
        texts, pairs = _texts_and_pairs(texts, pairs)
        return list(self.stream(texts if pairs is None else zip(texts, pairs, strict=True)))

    def stream(
        self, texts: Iterable[str] | Iterable[tuple[str, str]], *, texts_at_once: int = TEXTS_AT_ONCE
    ) -> Iterator[Prediction]:
        """Yield what the model makes of texts, or of pairs of texts, in their order, as a call does.

        Memory does not grow with their number, which may be endless.

        Args:
            texts: strings, or tuples of two strings.
            texts_at_once: texts that go together; twice as many are read ahead.
        """
        parts = stream_windows(
            texts, self._encode, self._predict, texts_at_once=texts_at_once, characters_of=_TextsOrPairs()
        )
        return one_by_one(parts)

    def logits(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tensor:
        """Return the head's numbers, (number of texts, C) fp32; warns and refuses as a call does."""
        texts, pairs = _texts_and_pairs(texts, pairs)
        if not texts:
            return torch.empty(0, self.model.config.num_labels)
        self._warn_of_another_kind(pairs is not None, stacklevel=3)
        return classify(self.model, encode_texts(self.tokenizer, texts, pairs, max_seq_length=self.max_seq_length))

    def evaluate(self, examples: LabelledTexts) -> dict[str, float]:
        """Return the loss and the figures of `scores` on labelled texts.

        Empty texts count like others, with a warning.

        Raises:
            ValueError: for a label that the model does not know.
        """
        labels = self.label_set.encode(examples.labels, examples.table.place)
        if examples.num_empty:
            warnings.warn(f"{examples.remark_on_empty}; they count all the same", stacklevel=2)
        return scores(self.logits(examples.texts, examples.pairs), labels, self.label_set.problem_type)

    def _encode(self, items: Sequence[str] | Sequence[tuple[str, str]]) -> tuple[Sequence, EncodedTexts]:
        paired = not isinstance(items[0], str)
        texts, pairs = zip(*items, strict=True) if paired else (items, None)
        return items, encode_texts(self.tokenizer, texts, pairs, max_seq_length=self.max_seq_length)

    def _predict(self, window: tuple[Sequence, EncodedTexts]) -> list[Prediction]:
        items, examples = window
        paired = not isinstance(items[0], str)
        self._warn_of_another_kind(paired, stacklevel=5)
        predictions = []
        for item, row in zip(items, classify(self.model, examples), strict=True):
            text, pair = item if paired else (item, None)
            label, probabilities = self._judge(row)
            predictions.append(Prediction(text=text, pair=pair, label=label, probabilities=probabilities))
        return predictions

    def _warn_of_another_kind(self, paired: bool, *, stacklevel: int) -> None:
        trained_on_pairs = self.model.config.trained_on_pairs
        if trained_on_pairs is not None and trained_on_pairs != paired:
            kinds = ("single texts", "pairs of texts")
            warnings.warn(
                f"the model was fine-tuned on {kinds[trained_on_pairs]} and is given {kinds[paired]}: "
                "what it makes of them may mean nothing",
                stacklevel=stacklevel,
            )

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


def _texts_and_pairs(texts: Iterable[str], pairs: Iterable[str] | None) -> tuple[list[str], list[str] | None]:
    texts = strings("texts", texts)
    if pairs is None:
        return texts, None
    pairs = strings("pairs", pairs)
    if len(pairs) != len(texts):
        raise ValueError(f"pairs must hold one text for each of the {len(texts)} texts, got {len(pairs)}")
    return texts, pairs


class _TextsOrPairs:
    """Counts the characters of the items of one stream, which are all texts or all pairs of them."""

    def __init__(self) -> None:
        self._paired: bool | None = None

    def __call__(self, number: int, item: object) -> int:
        texts = (item,) if isinstance(item, str) else item
        paired = not isinstance(item, str)
        if not (isinstance(texts, tuple) and len(texts) == 1 + paired and all(isinstance(text, str) for text in texts)):
            raise ValueError(
                f"texts must be strings, or tuples of two strings, got {type(item).__name__} as number {number}"
            )
        self._paired = paired if self._paired is None else self._paired
        if paired != self._paired:
            kind = "a pair" if self._paired else "a single text"
            raise ValueError(f"texts must be all single or all pairs, but number {number} is not {kind}")
        return sum(map(len, texts))


def _floats(figures: Mapping[str, object]) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items()}
