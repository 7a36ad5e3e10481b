"""BERT with a head that finds the answer to a question in a document: where it begins, and where it ends.

Source: Devlin, Chang, Lee and Toutanova 2018 (1810.04805) §4.2, §4.3.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fastssl.data.batch import PackedBatch
from fastssl.models import bert_files
from fastssl.models.bert_config import BertConfig
from fastssl.models.bert_with_head import BertWithHead
from fastssl.models.door import View
from fastssl.models.losses import LossSum
from fastssl.nn.init import initialize


@dataclass(kw_only=True)
class BertQuestionAnsweringOutput:
    """What `BertForQuestionAnswering` returns. Shapes are given for packed input / for padded input."""

    loss: Tensor | None = None
    """0-d: the mean over the sequences that have an answer (of the whole step, see `loss_denominators`) of half the
    cross-entropy of its start and half that of its end; None where no answers are given."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Detached sums "answer_loss_sum", "answer_correct" (both start and end likeliest) and "answer_count"."""
    start_logits: Tensor
    """(N) / (B, T): the score of each token as the first of the answer; 0 at padding."""
    end_logits: Tensor
    """(N) / (B, T): the score of each token as the last."""
    hidden_states: tuple[Tensor, ...] | None = None
    """As in `BertOutput`."""
    attentions: tuple[tuple[Tensor, ...], ...] | tuple[Tensor, ...] | None = None
    """As in `BertOutput`."""


class BertForQuestionAnswering(BertWithHead):
    """Two vectors, the only new parameters: their dot products with the hidden states score starts and ends.

    Softmax turns the scores into probabilities over the tokens of `answer_mask`: those of the document, and [CLS] where
    "there is no answer" may be said. Question and separators take no part, unlike in Hugging Face, whose softmax runs
    over the whole row; without a mask so does ours, and the loss is the same.

    Hugging Face's head has a bias too, one number for all starts and one for all ends. Softmax does not see it, nor
    does any comparison of answers: it is left out of the model (`load_report` lists it), and saved as zeros. Logits are
    those of `transformers` less that bias.

    Args:
        config: its sizes; labels of another head in it are dropped.
    """

    def __init__(self, config: BertConfig) -> None:
        config = replace(config, labels=None, problem_type=None, trained_on_pairs=None)
        super().__init__(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2, bias=False)
        initialize(self.qa_outputs, config.initializer_range)

    def forward(
        self,
        batch: PackedBatch | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        answer_mask: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        seed: int | Tensor | None = None,
        loss_denominators: Mapping[str, int] | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> BertQuestionAnsweringOutput:
        """Score every token as the first and as the last of the answer.

        Args:
            batch: packed tokens, with `answer_starts` and `answer_ends` for a loss.
            input_ids, attention_mask, token_type_ids, position_ids: (B, T), instead of `batch`.
            answer_mask, start_positions, end_positions: see `PackedBatch.from_padded`.
            seed: of this step's dropout, in training mode; None draws one from torch's generator.
            loss_denominators: "answer" -> number of sequences with an answer of the whole optimizer step; None: of this
                batch.
            output_hidden_states: return every layer's hidden states.
            output_attentions: return every layer's attention probabilities (quadratic memory, slow).

        Raises:
            ValueError: for an answer that begins or ends outside of `answer_mask` (CPU), and as `BertModel.forward`.
        """
        view = View(batch is None, output_hidden_states, output_attentions)
        batch = self.bert.pack(
            batch,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            answer_mask=answer_mask,
            start_positions=start_positions,
            end_positions=end_positions,
        )
        logits = self.qa_outputs(self.bert.encode(batch, seed, view.trace))
        losses = LossSum(batch.target_counts() if loss_denominators is None else loss_denominators)
        if batch.answer_starts is not None:
            _add_answer_loss(losses, logits.float(), batch)
        start_logits, end_logits = view.tokens(batch, logits).unbind(-1)
        return BertQuestionAnsweringOutput(
            loss=losses.loss,
            metrics=losses.metrics,
            start_logits=start_logits,
            end_logits=end_logits,
            **view.traced(batch),
        )

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, *, fresh_head: bool = False, dtype: torch.dtype = torch.float32
    ) -> "BertForQuestionAnswering":
        """Read a Hugging Face directory of any BERT; see `fastssl.models.bert_files.load`.

        Args:
            directory: of a body, of a model that answers questions, or of one with other heads, which are skipped.
            fresh_head: draw the two vectors anew even where the directory has them.
            dtype: of the parameters, whatever the file's.
        """
        return bert_files.load(cls, directory, dtype, anew=("qa_outputs.",) if fresh_head else ())


def _add_answer_loss(losses: LossSum, logits: Tensor, batch: PackedBatch) -> None:
    answered = batch.answer_starts >= 0
    index = torch.stack((batch.answer_starts, batch.answer_ends), dim=1).clamp(min=0)
    if batch.answer_mask is not None:
        _expect_answerable(batch, index, answered)
        logits = logits.masked_fill(~batch.answer_mask[:, None], -torch.inf)
    rows = batch.unpack(logits, padding_value=-torch.inf)
    chosen = logits.gather(0, index)
    each = (rows.logsumexp(1) - chosen).mean(1)
    right = (rows.amax(1) == chosen).all(1)
    losses.add("answer", torch.where(answered, each, 0.0).sum(), (right & answered).sum(), answered.sum())


def _expect_answerable(batch: PackedBatch, index: Tensor, answered: Tensor) -> None:
    if index.device.type != "cpu" or torch.compiler.is_compiling():
        return
    outside = answered & ~batch.answer_mask[index].all(1)
    if bool(outside.any()):
        wrong = index[outside][0].tolist()
        raise ValueError(
            f"an answer is token {wrong[0]} to {wrong[1]} of the batch, but answer_mask lets none begin or end there; "
            "correct one of them, or leave the sequence without an answer (-100)"
        )
