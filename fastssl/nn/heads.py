"""What turns hidden states into predictions: the masked-LM head and the pooled first token."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastssl.nn.init import grow_rows
from fastssl.nn.mlp import ACTIVATIONS, activated
from fastssl.nn.norm import LayerNorm
from fastssl.nn.plain import has_hooks, is_plain
from fastssl.ops.linear_cross_entropy.api import LinearCrossEntropyStats, linear_cross_entropy


class Pooler(nn.Module):
    """``tanh(dense(h))`` of each sequence's first token.

    Args:
        hidden_size: E.

    Source: Devlin et al. 2018 (arXiv 1810.04805) §3.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, first_tokens: Tensor) -> Tensor:
        """Return (B, E) from the (B, E) hidden states of each sequence's first token."""
        return self.dense(first_tokens).tanh()


def loss_of_logits(logits: Tensor, labels: Tensor, ignore_index: int | None) -> tuple[Tensor, LinearCrossEntropyStats]:
    """Return what `linear_cross_entropy` does with ``reduction="sum"``, from scores (M, V) that exist."""
    ignored = -100 if ignore_index is None else ignore_index
    losses = F.cross_entropy(logits.float(), labels, reduction="none", ignore_index=ignored)
    kept = labels != ignored
    num_correct = ((logits.argmax(-1) == labels) & kept).sum()
    lse = logits.detach().float().logsumexp(-1).masked_fill(~kept, 0.0)
    return losses.sum(), LinearCrossEntropyStats(losses.detach(), lse, num_correct)


class MaskedLMHead(nn.Module):
    """``LN(activation(dense(h))) W^T + bias``: a score for each token of the vocabulary.

    W is the word embedding of the model, passed to each call, or the head's own `decoder` where it is not tied.

    Args:
        hidden_size: E.
        vocab_size: V.
        activation: a key of `ACTIVATIONS`.
        norm_eps: of the norm.
        tied: whether W is the word embedding.

    Source: Devlin et al. 2018 (arXiv 1810.04805) §3.1; tying: Press and Wolf 2016 (arXiv 1608.05859).
    """

    def __init__(self, hidden_size: int, vocab_size: int, *, activation: str, norm_eps: float, tied: bool) -> None:
        super().__init__()
        self.backend = "auto"
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.activation = ACTIVATIONS[activation]
        self.norm = LayerNorm(hidden_size, norm_eps)
        self.decoder = None if tied else nn.Linear(hidden_size, vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden_states: Tensor, word_embedding: Tensor) -> Tensor:
        """Return the scores (M, V) from (M, E) rows and the (V, E) word embedding."""
        transformed = self._transform(hidden_states)
        if self.decoder is not None and not is_plain(self.decoder, nn.Linear):
            return self.decoder(transformed) + self.bias
        return F.linear(transformed, self._decoder_weight(word_embedding), self.bias)

    def loss(
        self, hidden_states: Tensor, labels: Tensor, word_embedding: Tensor, *, ignore_index: int | None = None
    ) -> tuple[Tensor, LinearCrossEntropyStats]:
        """Return the sum of the rows' cross-entropies, 0-d fp32, and statistics; the logits never exist whole.

        But where somebody has hung a hook on the head or replaced its decoder: then those are called.

        Args:
            hidden_states: (M, E), the rows to predict and no others.
            labels: (M) int64 in [0, V): every row has one, or that of none.
            word_embedding: (V, E).
            ignore_index: the label of rows that have none; None: all have one.
        """
        if has_hooks(self) or not (self.decoder is None or is_plain(self.decoder, nn.Linear)):
            return loss_of_logits(self(hidden_states, word_embedding), labels, ignore_index)
        return linear_cross_entropy(
            self._transform(hidden_states),
            self._decoder_weight(word_embedding),
            labels,
            bias=self.bias,
            ignore_index=ignore_index,
            reduction="sum",
            return_stats=True,
            backend=self.backend,
        )

    @torch.no_grad()
    def grow(self, vocab_size: int, std: float) -> None:
        """Add scores for new tokens, in place: bias and, where untied, weights as in `grow_rows`."""
        num_new = vocab_size - self.bias.numel()
        if num_new < 0:
            raise ValueError(f"vocab_size must be at least the {self.bias.numel()} tokens there are, got {vocab_size}")
        self.bias = nn.Parameter(torch.cat((self.bias, self.bias.mean().expand(num_new))))
        if self.decoder is not None:
            self.decoder.weight = nn.Parameter(grow_rows(self.decoder.weight, vocab_size, std))
            self.decoder.out_features = vocab_size

    def _transform(self, hidden_states: Tensor) -> Tensor:
        return self.norm(activated(self.dense, self.activation, hidden_states, self.backend))

    def _decoder_weight(self, word_embedding: Tensor) -> Tensor:
        return word_embedding if self.decoder is None else self.decoder.weight
