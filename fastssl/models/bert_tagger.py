"""BERT with a head over every token: one class for each, such as the part of speech of the word that it begins.

Source: Devlin, Chang, Lee and Toutanova 2018 (1810.04805) §5.3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from fastssl.data.batch import PackedBatch
from fastssl.models import bert_files
from fastssl.models.bert_config import BertConfig
from fastssl.models.bert_with_classifier import BertWithClassifier, expect_classes
from fastssl.models.door import View
from fastssl.models.losses import LossSum
from fastssl.ops.philox import resolve_step_seed


@dataclass(kw_only=True)
class BertTaggerOutput:
    """What `BertForTokenClassification` returns. C is the number of labels."""

    loss: Tensor | None = None
    """0-d: the mean over the labelled tokens (of the whole step, see `loss_denominators`); None without labels."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Detached sums "token_loss_sum", "token_correct", "token_count"."""
    logits: Tensor
    """(N, C) for packed input, but (M, C), those of its labelled tokens alone, where it has labels; (B, T, C) for
    padded input, 0 at padding."""
    hidden_states: tuple[Tensor, ...] | None = None
    """As in `BertOutput`."""
    attentions: tuple[tuple[Tensor, ...], ...] | tuple[Tensor, ...] | None = None
    """As in `BertOutput`."""


class BertForTokenClassification(BertWithClassifier):
    """``classifier(dropout(h))``: C numbers for each token. The loss is the cross-entropy of the labelled ones.

    Args:
        config: its sizes, the names of its labels.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config, add_pooling_layer=False)

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
    ) -> BertTaggerOutput:
        """Classify tokens; of a packed batch with labels, only the labelled ones go through the head.

        Args:
            batch: packed tokens, with `token_positions` and `token_labels` for a loss.
            input_ids, attention_mask, token_type_ids, position_ids: (B, T), instead of `batch`.
            labels: (B, T) int64, -100 where a token has no class.
            seed: of this step's dropout, in training mode; None draws one from torch's generator.
            loss_denominators: "token" -> number of labelled tokens of the whole optimizer step; None: of this batch.
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
            token_labels=labels,
        )
        seed = resolve_step_seed(seed, batch.input_ids.device) if self.training else None
        rows = self.bert.encode(batch, seed, view.trace)
        positions, targets = batch.token_positions, batch.token_labels
        if targets is not None and not view.padded:
            rows, positions = rows.index_select(0, positions), None
        logits = self._classify(rows, seed)
        losses = LossSum(batch.target_counts() if loss_denominators is None else loss_denominators)
        if targets is not None:
            expect_classes(targets, "(B, T)", logits.shape[1])
            scored = (logits if positions is None else logits.index_select(0, positions)).float()
            loss_sum = F.cross_entropy(scored, targets, self.class_weights, reduction="sum")
            losses.add("token", loss_sum, (scored.argmax(-1) == targets).sum(), targets.numel())
        return BertTaggerOutput(
            loss=losses.loss, metrics=losses.metrics, logits=view.tokens(batch, logits), **view.traced(batch)
        )

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, *, labels: Sequence[str] | None = None, dtype: torch.dtype = torch.float32
    ) -> "BertForTokenClassification":
        """Read a Hugging Face directory of any BERT; see `fastssl.models.bert_files.load`.

        Args:
            directory: of a body, of a tagger, or of a model with other heads, which are skipped.
            labels: names of the classes of a new task. Where they are not the directory's, the head is drawn anew, of
                their number; None keeps the directory's names and head.
            dtype: of the parameters, whatever the file's.
        """
        config, anew = cls._start(directory, labels)
        return bert_files.load(cls, directory, dtype, config=config, anew=anew)
