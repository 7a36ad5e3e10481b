"""Stock PyTorch, called as its documentation shows."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import timed


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    *,
    key_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    causal: bool = False,
) -> Tensor:
    """Return `F.scaled_dot_product_attention` of (B, T, H, D) tensors, as (B, T, H, D).

    Args:
        q, k, v: (B, T, H, D).
        bias: added to the scores, (H, T, T) or (B, H, T, T).
        key_mask: (B, T) bool, False at padding.
        dropout_p: probability of dropping a weight.
        causal: hide later keys.
    """
    mask = bias if key_mask is None else key_mask[:, None, None, :]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p, is_causal=causal)
    return out.transpose(1, 2)


def attention_per_sequence(q: Tensor, k: Tensor, v: Tensor, *, lengths: Sequence[int], dropout_p: float = 0.0):
    """Return attention of packed (N, H, D) tensors by one call per sequence, as (N, H, D)."""
    sequences = zip(*(x.split(list(lengths)) for x in (q, k, v)), strict=True)
    return torch.cat([attention(*(x[None] for x in one), dropout_p=dropout_p)[0] for one in sequences])


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """Return `F.layer_norm` over the last dimension."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def dropout_add_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, *, eps: float, dropout_p: float
) -> Tensor:
    """Return LN(residual + dropout(x)), three operators, as a transformer block is usually written."""
    return F.layer_norm(residual + F.dropout(x, dropout_p), x.shape[-1:], weight, bias, eps)


def bias_gelu(x: Tensor, bias: Tensor, *, approximate: str = "none") -> Tensor:
    """Return GELU of a sum, two operators."""
    return F.gelu(x + bias, approximate=approximate)


def linear_then_gelu(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return GELU of a linear map, two operators, as a feed-forward network is usually written."""
    return F.gelu(F.linear(hidden, weight, bias))


def linear_then_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over logits of all rows, as Hugging Face models compute it."""
    return F.cross_entropy(F.linear(hidden, weight, bias), targets)


def labelled_rows_first(hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, targets: Tensor) -> Tensor:
    """Return the same loss from logits of the rows that carry a label alone: the best that a careful user writes."""
    labelled = (targets != -100).nonzero().flatten()
    return F.cross_entropy(F.linear(hidden[labelled], weight, bias), targets[labelled])


def fused_linear_cross_entropies() -> dict[str, Callable[..., Tensor]]:
    """Return PyTorch's own fused operator under a sweep of its options, by name; empty where this torch has none."""
    if not hasattr(F, "linear_cross_entropy"):
        return {}
    options = {"reference path": None, "auto": torch.nn.LinearCrossEntropyOptions()}
    for rows in (64, 256, 1024):
        options[f"{rows} rows"] = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows, chunking_method=None)

    def with_options(chosen) -> Callable[..., Tensor]:
        def loss(hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, targets: Tensor) -> Tensor:
            return F.linear_cross_entropy(hidden, weight, targets, linear_bias=bias, options=chosen)

        return loss

    return {name: with_options(chosen) for name, chosen in options.items()}


def fastest(launches: dict[str, Callable[[], object]], repeats: int = 1) -> str:
    """Return the name of the launch with the shortest time, after one warm-up each."""

    def best(launch: Callable[[], object]) -> float:
        launch()
        return min(timed(launch)() for _ in range(repeats))

    return min(launches, key=lambda name: best(launches[name]))


def causal_block(
    addend: Tensor, residual: Tensor, *, num_heads: int, num_sequences: int, eps: float = 1e-5, **parameters: Tensor
) -> Tensor:
    """Return what a pre-norm block adds last, and the stream to add it to, side by side: (N, 2 E) of (N, E).

    Args:
        addend, residual: what enters, sequences of one length.
        num_heads, num_sequences: H and B.
        eps: of both norms.
        parameters: weights and biases, by the names of `fastssl.ops.pre_norm_block.cases`.
    """

    def of(name: str) -> tuple[Tensor, Tensor]:
        return parameters[f"{name}.weight"], parameters[f"{name}.bias"]

    stream = addend + residual
    heads = F.linear(F.layer_norm(stream, stream.shape[-1:], *of("attention_norm"), eps), *of("qkv"))
    q, k, v = heads.unflatten(0, (num_sequences, -1)).unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2).flatten(0, 1)
    stream = stream + F.linear(mixed, *of("out"))
    normed = F.layer_norm(stream, stream.shape[-1:], *of("mlp_norm"), eps)
    return torch.cat((F.linear(F.gelu(F.linear(normed, *of("up"))), *of("down")), stream), dim=1)
