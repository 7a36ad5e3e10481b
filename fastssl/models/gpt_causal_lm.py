"""GPT with its language-model head: the loss of each next token, scores, and texts."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastssl.data.batch import IGNORED_LABEL, PackedBatch
from fastssl.models import gpt_files
from fastssl.models.door import View
from fastssl.models.generation.generate import generate
from fastssl.models.generation.generated import GeneratedTokens, GenerationConfig
from fastssl.models.gpt import GPTModel, GPTOutput
from fastssl.models.gpt_config import GPTConfig
from fastssl.models.losses import LossSum
from fastssl.nn.decoding import scores
from fastssl.nn.heads import loss_of_logits
from fastssl.nn.init import grow_rows, initialize
from fastssl.nn.kv_cache import KVCache
from fastssl.nn.plain import is_plain
from fastssl.nn.quantized import QuantizedLinear
from fastssl.nn.tied_embedding import TiedEmbedding
from fastssl.ops.linear_cross_entropy.api import LinearCrossEntropyStats, linear_cross_entropy


class GPTForCausalLM(nn.Module):
    """GPT with the head that scores the next token.

    Args:
        config: its sizes.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.gpt = GPTModel(config)
        self.backend = "auto"
        tied = config.tie_word_embeddings
        self.head = None if tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if not tied:
            initialize(self.head, config.initializer_range)

    @property
    def config(self) -> GPTConfig:
        """Sizes of the model."""
        return self.gpt.config

    def forward(
        self,
        batch: PackedBatch | None = None,
        *,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        seed: int | Tensor | None = None,
        loss_denominators: Mapping[str, int] | None = None,
        output_logits: bool | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> GPTOutput:
        """Predict each next token; the logits never exist whole unless they are asked for.

        Args:
            batch: packed tokens, with `next_tokens` for a loss.
            input_ids, attention_mask, position_ids: (B, T), instead of `batch`; see `PackedBatch.from_padded`.
            labels: (B, T) int64, usually `input_ids` themselves: the model shifts them, so that a token predicts the
                label of the one behind it; -100 where there is nothing to predict.
            seed: of this step's dropout, in training mode; None draws one from torch's generator.
            loss_denominators: "causal_lm" -> number of targets of the whole optimizer step; None: of this batch.
            output_logits: compute every token's scores; None: only where there are no labels.
            output_hidden_states: return every layer's hidden states.
            output_attentions: return every layer's attention probabilities (quadratic memory, slow).
        """
        view = View(batch is None, output_hidden_states, output_attentions)
        batch = self.gpt.pack(
            batch,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            causal_labels=labels,
        )
        tied = TiedEmbedding.of(self.gpt.word) if self.head is None else None
        hidden_states = self.gpt.encode(batch, seed, view.trace, tied)
        losses = LossSum(batch.target_counts() if loss_denominators is None else loss_denominators)
        if batch.next_tokens is not None:
            self._add_loss(losses, hidden_states, batch, self.head if tied is None else tied)
        wants_logits = losses.loss is None if output_logits is None else output_logits
        return GPTOutput(
            loss=losses.loss,
            metrics=losses.metrics,
            logits=view.tokens(batch, self.logits(hidden_states)) if wants_logits else None,
            last_hidden_state=view.tokens(batch, hidden_states),
            **view.traced(batch),
        )

    def next_token_logits(self, batch: PackedBatch, cache: KVCache | None = None) -> Tensor:
        """Return the scores (B, V) of what follows each sequence of a packed batch.

        Args:
            batch: packed tokens; with a cache, those that follow what it holds.
            cache: made by `self.new_cache`; it takes the batch, and then there are no gradients.
        """
        if cache is not None and torch.is_grad_enabled():
            with torch.no_grad():
                return self.next_token_logits(batch, cache)
        if self.gpt.decodes(batch, cache) and (self.head is None or is_plain(self.head, nn.Linear, QuantizedLinear)):
            stream = self.gpt.decode(batch.input_ids, cache)
            head = self.gpt.word if self.head is None else self.head
            return scores(head, stream, self.gpt.final_norm)
        return self.logits(self.gpt.encode(batch, cache=cache, rows=batch.cu_seqlens[1:].long() - 1))

    def new_cache(self, num_sequences: int, capacity: int) -> KVCache:
        """Return an empty cache; see `GPTModel.new_cache`."""
        return self.gpt.new_cache(num_sequences, capacity)

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Return the scores (M, V) of chosen rows (M, E) of the last hidden states."""
        return F.linear(hidden_states, self.gpt.word.weight) if self.head is None else self.head(hidden_states)

    def quantize_head(self) -> None:
        """Score in 8 bits from now on; the word embedding that is read stays as it is. See `fastssl.quantize`."""
        if self.head is not None and not is_plain(self.head, nn.Linear):
            raise ValueError(
                f"the head is a {type(self.head).__name__} with more to it than its weight; quantise a model without "
                "adapters and hooks"
            )
        scores = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False, device="meta")
        scores.weight = (self.gpt.word if self.head is None else self.head).weight
        self.head = QuantizedLinear(scores)

    def generate(
        self, prompts: Sequence[Sequence[int]], *, stop: Callable[[GeneratedTokens], bool] | None = None, **options
    ) -> list[GeneratedTokens]:
        """Write on from prompts of token ids.

        Args:
            prompts: B sequences, of any lengths.
            stop: asked after each new token whether a text ends with it.
            options: fields of `GenerationConfig`: max_new_tokens, temperature, top_k, num_beams and so on.

        Returns:
            B x num_samples texts; see `fastssl.models.generation.generate.generate`.
        """
        return generate(self, prompts, GenerationConfig(**options), stop=stop)

    def gradient_checkpointing_enable(self) -> None:
        """Keep only each block's input for the backward, and compute the rest again there."""
        self.gpt.gradient_checkpointing_enable()

    def gradient_checkpointing_disable(self) -> None:
        """Keep everything that the backward needs."""
        self.gpt.gradient_checkpointing_disable()

    def set_dropout(self, p: float) -> None:
        """Use the dropout probability `p` at every site from now on."""
        self.gpt.set_dropout(p)

    def resize_token_embeddings(self, new_size: int) -> None:
        """Grow the vocabulary to `new_size`, in place; see `fastssl.nn.init.grow_rows`."""
        if isinstance(self.head, QuantizedLinear):
            raise ValueError("a quantised model keeps its vocabulary; grow that of the model that it was made of")
        if self.head is not None:
            self.head.weight = nn.Parameter(grow_rows(self.head.weight, new_size, self.config.initializer_range))
            self.head.out_features = new_size
        self.gpt.resize_token_embeddings(new_size)

    @classmethod
    def from_pretrained(cls, directory: str | Path, *, dtype: torch.dtype = torch.float32) -> "GPTForCausalLM":
        """Read a Hugging Face directory; see `fastssl.models.gpt_files.load`."""
        return gpt_files.load(cls, directory, dtype)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a directory that `transformers` loads; see `fastssl.models.gpt_files.save`."""
        gpt_files.save(self, directory)

    def _add_loss(
        self, losses: LossSum, hidden_states: Tensor, batch: PackedBatch, head: nn.Linear | TiedEmbedding
    ) -> None:
        if isinstance(head, QuantizedLinear):
            raise ValueError("a quantised model has no loss; measure the model that it was made of")
        targets, rows, ignored = batch.next_tokens, batch.predicting_tokens(), IGNORED_LABEL
        if rows is None:
            count = (targets != IGNORED_LABEL).sum()
        else:  # picked here, or the host would wait for a GPU to learn how many there are
            hidden_states, targets = hidden_states.index_select(0, rows), targets.index_select(0, rows)
            count, ignored = rows.numel(), None
        loss_sum, stats = self._loss_of(head, hidden_states, targets, ignored)
        losses.add("causal_lm", loss_sum, stats.num_correct, count)

    def _loss_of(
        self, head: nn.Linear | TiedEmbedding, rows: Tensor, targets: Tensor, ignored: int | None
    ) -> tuple[Tensor, LinearCrossEntropyStats]:
        if head is self.head and not is_plain(head, nn.Linear):  # an adapter, or a hook: it is to be called
            return loss_of_logits(head(rows), targets, ignored)
        return linear_cross_entropy(
            rows,
            head.weight,
            targets,
            ignore_index=ignored,
            reduction="sum",
            return_stats=True,
            backend=self.backend,
        )
