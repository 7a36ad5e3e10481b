"""How good the tags of a model are, and what is made of tags that it does not know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastssl.data.batch import IGNORED_LABEL
from fastssl.tasks.example_batches import TOKENS_PER_BATCH
from fastssl.tasks.labels import LabelSet, listed
from fastssl.tasks.tagging.encoded_words import EncodedWords
from fastssl.tasks.tagging.spans import are_span_tags, span_scores
from fastssl.tasks.tagging.tagged_sentences import TaggedSentences
from fastssl.training.distributed import World
from fastssl.training.evaluation import evaluation_mode


@dataclass(frozen=True, kw_only=True)
class NumberedTags:
    """The true tags of W words as numbers."""

    numbers: Tensor
    """(W) int64: -100 where a word has none; tags that the model does not know are numbered from C."""
    names: tuple[str, ...]
    """The C labels of the model, and behind them the tags that it does not know."""
    unknown: tuple[str, ...]
    """The latter."""
    num_unknown: int
    """How many words have one of them."""

    @property
    def remark(self) -> str:
        """What is to be said of the unknown tags, behind their number."""
        return f"words have tags that the model does not know ({listed(self.unknown)}): they count as wrong"


def number_tags(sentences: TaggedSentences, label_set: LabelSet) -> NumberedTags:
    """Return the tags of all words as numbers.

    Raises:
        ValueError: where the model does not know the tags of most words: this is another task, or the wrong column.
    """
    numbers, names = {None: IGNORED_LABEL} | label_set.numbers(), list(label_set.names)
    found = []
    first_unknown = None
    for tags, lines in zip(sentences.tags, sentences.lines, strict=True):
        for tag, line in zip(tags, lines, strict=True):
            if tag not in numbers:
                first_unknown = first_unknown or (tag, line)
                numbers[tag] = len(names)
                names.append(tag)
            found.append(numbers[tag])
    found = torch.tensor(found)
    num_unknown = int((found >= len(label_set.names)).sum())
    if 2 * num_unknown > int((found != IGNORED_LABEL).sum()):
        tag, line = first_unknown
        raise ValueError(
            f"{sentences.path}, line {line}: the tag {tag!r} in column {sentences.tag_column!r} is not one that the "
            f"model knows, and neither are those of most other words; it knows {listed(label_set.names)}; name another "
            "column with --label-column, or another model"
        )
    unknown = tuple(names[len(label_set.names) :])
    return NumberedTags(numbers=found, names=tuple(names), unknown=unknown, num_unknown=num_unknown)


def tag_scores(
    logits: Tensor, labels: Tensor, names: Sequence[str], sentence_lengths: Sequence[int]
) -> dict[str, float]:
    """Return the loss, the share of words with the right tag, macro F1, and where tags spell spans, those of spans.

    Macro F1 is the mean of the F1 of each tag that occurs or is predicted. Words with a tag that the model does not
    know count as wrong in all but the loss; words without a tag count nowhere.

    Args:
        logits: (W, C) float.
        labels: (W) int64, -100 where a word has no tag.
        names: of the C labels, and of those that the model does not know from C on.
        sentence_lengths: words of each sentence, W together.

    Returns:
        "loss", "accuracy", "macro_f1", and where the model's tags spell spans "span_precision", "span_recall",
        "span_f1" (see `span_scores`).
    """
    from sklearn.metrics import f1_score

    tagged, known = labels != IGNORED_LABEL, (labels != IGNORED_LABEL) & (labels < logits.shape[1])
    predicted = logits.argmax(-1)
    found = {
        "loss": F.cross_entropy(logits[known], labels[known]).item(),
        "accuracy": (predicted == labels)[tagged].double().mean().item(),
        "macro_f1": float(f1_score(labels[tagged], predicted[tagged], average="macro", zero_division=0.0)),
    }
    if are_span_tags(names[: logits.shape[1]]):
        counts = [int(part.sum()) for part in tagged.split(list(sentence_lengths))]
        found |= span_scores(*(_in_sentences(row[tagged], names, counts) for row in (labels, predicted)))
    return found


def tag_metric_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the figures of `tag_scores` for labels of these names."""
    size = len(names)
    return tuple(tag_scores(torch.eye(size), torch.arange(size), names, [size]))


@torch.inference_mode()
def tag_logits(
    model: nn.Module,
    sentences: EncodedWords,
    *,
    dtype: torch.dtype = torch.float32,
    cancelled: Callable[[], bool] = lambda: False,
) -> Tensor | None:
    """Return the logits of all words in their order, (W, C) fp32 on the CPU; None once it is cancelled.

    Windows go through the model longest first, packed without padding. The model is in evaluation mode meanwhile and in
    its former mode after.
    """
    logits = torch.empty(sentences.num_words, model.config.num_labels)
    if not sentences.num_words:
        return logits
    with evaluation_mode(model, dtype) as device:
        for numbers in sentences.windows.by_length(TOKENS_PER_BATCH):
            if cancelled():
                return None
            words, positions = sentences.words_of(numbers)
            rows = model(sentences.batch(numbers).to(device)).logits
            logits[words] = rows[positions.to(device)].float().cpu()
    return logits


@dataclass(frozen=True, kw_only=True)
class TaggingEvaluation:
    """Measures a tagger on held-out sentences: the figures of `tag_scores`."""

    sentences: EncodedWords
    """The encoded words."""
    tags: NumberedTags
    """Their true tags."""
    sentence_lengths: Sequence[int]
    """Words of each sentence."""

    def __call__(
        self,
        model: nn.Module,
        *,
        dtype: torch.dtype = torch.float32,
        world: World | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> dict[str, float] | None:
        """Return the figures of `tag_scores` as "eval_..."; None once it is cancelled.

        Every process of `world` measures everything, so that all have the same figures.
        """
        logits = tag_logits(model, self.sentences, dtype=dtype, cancelled=cancelled)
        if (world or World()).maximum([float(logits is None)])[0]:
            return None
        figures = tag_scores(logits, self.tags.numbers, self.tags.names, self.sentence_lengths)
        return {f"eval_{name}": value for name, value in figures.items()}


def _in_sentences(numbers: Tensor, names: Sequence[str], counts: Sequence[int]) -> list[list[str]]:
    tags = [names[number] for number in numbers.tolist()]
    ends = np.cumsum(counts).tolist()
    return [tags[end - count : end] for end, count in zip(ends, counts, strict=True)]
