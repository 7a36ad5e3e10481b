"""BERT with a head over the whole sequence: a class, several of them, or a number for a text or a pair of texts.

Source: Devlin, Chang, Lee and Toutanova 2018 (1810.04805) §4.1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fastssl.data.batch import PackedBatch
from fastssl.models import bert_files
from fastssl.models.bert_config import BertConfig, ProblemType
from fastssl.models.bert_with_classifier import BertWithClassifier, expect_classes
from fastssl.models.door import View
from fastssl.models.losses import LossSum
from fastssl.ops.philox import resolve_step_seed


@dataclass(kw_only=True)
class BertClassifierOutput:
    """What `BertForSequenceClassification` returns. C is the number of labels."""

    loss: Tensor | None = None
    """0-d: the mean over the sequences (of the whole step, see `loss_denominators`); None without labels."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Detached sums "sequence_loss_sum", "sequence_count", and "sequence_correct" but for regression."""
    logits: Tensor
    """(B, C)."""
    hidden_states: tuple[Tensor, ...] | None = None
    """As in `BertOutput`."""
    attentions: tuple[tuple[Tensor, ...], ...] | tuple[Tensor, ...] | None = None
    """As in `BertOutput`."""


class BertForSequenceClassification(BertWithClassifier):
    """``classifier(dropout(tanh(dense(h of the first token))))``: one row of C numbers for each sequence.

    The loss is Hugging Face's: cross-entropy for one class a sequence (int64 labels), the mean over C binary
    cross-entropies for several classes at once (floating (B, C) labels), the squared error for regression (C = 1, or
    where the config says so). `config.problem_type` decides; None leaves it to the number and dtype of the labels.

    Args:
        config: its sizes, the names of its labels, the kind of problem.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config, add_pooling_layer=True)

    def forward(
        self,
        batch: PackedBatch | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        seed: int | Tensor | None = None,
        loss_denominators: Mapping[str, int] | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BertClassifierOutput:
        """Classify each sequence.

        Args:
            batch: packed tokens, with `sequence_labels` for a loss.
            input_ids, attention_mask, token_type_ids, position_ids: (B, T), instead of `batch`.
            labels: (B) int64; (B) or (B, C) floating for regression and for several classes at once.
            seed: of this step's dropout, in training mode; None draws one from torch's generator.
            loss_denominators: "sequence" -> number of sequences of the whole optimizer step; None: of this batch.
            output_hidden_states: return every layer's hidden states.
            output_attentions: return every layer's attention probabilities (quadratic memory, slow).

        Raises:
            ValueError: for labels that do not fit the head (CPU), and as `BertModel.forward`.
        """
        view = View(batch is None, output_hidden_states, output_attentions)
        batch = self.bert.pack(
            batch,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            sequence_labels=labels,
        )
        seed = resolve_step_seed(seed, batch.input_ids.device) if self.training else None
        if output_hidden_states or output_attentions:
            pooled = self.bert.pooler(batch.first_rows(self.bert.encode(batch, seed, view.trace)))
        else:
            pooled = self.bert.pooler(self.bert.encode_first_tokens(batch, seed))
        logits = self._classify(pooled, seed)
        losses = LossSum(batch.target_counts() if loss_denominators is None else loss_denominators)
        if batch.sequence_labels is not None:
            loss_sum, num_correct = self._loss(logits.float(), batch.sequence_labels)
            losses.add("sequence", loss_sum, num_correct, batch.num_sequences)
        return BertClassifierOutput(loss=losses.loss, metrics=losses.metrics, logits=logits, **view.traced(batch))

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        *,
        labels: Sequence[str] | None = None,
        problem_type: ProblemType | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "BertForSequenceClassification":
        """Read a Hugging Face directory of any BERT; see `fastssl.models.bert_files.load`.

        Args:
            directory: of a body, of a classifier, or of a model with other heads, which are skipped.
            labels: names of the classes of a new task. Where they are not the directory's, the head is drawn anew, of
                their number; None keeps the directory's names and head.
            problem_type: instead of the directory's.
            dtype: of the parameters, whatever the file's.
        """
        changes = {} if problem_type is None else {"problem_type": problem_type}
        config, anew = cls._start(directory, labels, **changes)
        return bert_files.load(cls, directory, dtype, config=config, anew=anew)

    def _problem_type(self, labels: Tensor) -> ProblemType:
        if self.config.problem_type is not None:
            return self.config.problem_type
        if self.config.num_labels == 1:
            return "regression"
        return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"

    def _loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the sum of the sequences' losses, and how many were right, None for regression."""
        match self._problem_type(labels):
            case "regression":
                targets = _expect_shape(labels, logits).float()
                return F.mse_loss(logits, targets, reduction="sum") / logits.shape[1], None
            case "multi_label_classification":
                targets = _expect_shape(labels, logits).float()
                losses = F.binary_cross_entropy_with_logits(logits, targets, self.class_weights, reduction="sum")
                return losses / logits.shape[1], ((logits > 0) == (targets > 0.5)).all(1).sum()
        remedy = '; for several classes at once set problem_type="multi_label_classification"'
        expect_classes(labels, "(B)", logits.shape[1], remedy)
        losses = F.cross_entropy(logits, labels, self.class_weights, reduction="sum")
        return losses, (logits.argmax(-1) == labels).sum()


def _expect_shape(labels: Tensor, logits: Tensor) -> Tensor:
    if labels.numel() != logits.numel():
        raise ValueError(f"labels must have the shape of the logits, {tuple(logits.shape)}, got {tuple(labels.shape)}")
    return labels.reshape(logits.shape)
