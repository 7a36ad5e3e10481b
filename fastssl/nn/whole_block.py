"""A pre-norm block as one operator, where the model is small enough for that to be the fastest way."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastssl import extension
from fastssl.nn.causal_attention import CausalContext, CausalSelfAttention
from fastssl.nn.causal_block import CausalBlock, Entering
from fastssl.nn.dropout import BlockSeeds
from fastssl.nn.mlp import ACTIVATIONS, MLP
from fastssl.nn.norm import LayerNorm
from fastssl.nn.plain import is_plain
from fastssl.ops.decoder_block.weights import BlockWeights, LinearMap
from fastssl.ops.pre_norm_block import native
from fastssl.ops.pre_norm_block.api import pre_norm_block
from fastssl.ops.pre_norm_block.dropout import BlockDropout
from fastssl.ops.skinny_linear.norm import RowNorm

MAX_WIDTH = 192
"""E above which a block's weights, 12 E^2 numbers, leave a core's own cache and products of all rows are faster."""
SEQUENCES_PER_THREAD = 4
"""Below, threads may wait for the one that has the most rows."""
_ACTIVATIONS = {F.gelu: "gelu", ACTIVATIONS["gelu_new"]: "gelu_tanh"}


def runs_whole(block: CausalBlock, rows: Tensor, context: CausalContext) -> bool:
    """Return whether `run_whole` serves a block, and is the fastest way.

    Args:
        block: any.
        rows: (N, E), what enters the first block.
        context: where the rows stand.
    """
    if not rows.is_cpu or rows.dtype is not torch.float32 or rows.shape[1] > MAX_WIDTH:
        return False
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or not extension.cpu_ops_loaded():
        return False
    if len(context.cu_seqlens) <= SEQUENCES_PER_THREAD * torch.get_num_threads():
        return False
    attention, mlp = block.attention, block.mlp
    if not (is_plain(block, CausalBlock) and is_plain(attention, CausalSelfAttention) and is_plain(mlp, MLP)):
        return False
    norms, maps = (block.attention_norm, block.mlp_norm), (attention.qkv, attention.output, mlp.up, mlp.down)
    if not all(is_plain(norm, LayerNorm) for norm in norms) or not all(is_plain(linear, nn.Linear) for linear in maps):
        return False
    if mlp.activation not in _ACTIVATIONS:
        return False
    if any(part.backend not in ("auto", "native") for part in (*norms, attention, mlp)):
        return False
    parameters = [x for part in (*norms, *maps) for x in (part.weight, part.bias) if x is not None]
    # All gradients come together: where some are not wanted, the parts have less to do.
    if torch.is_grad_enabled() and not all(x.requires_grad for x in parameters):
        return False
    widths = (rows.shape[1], len(attention.qkv.weight), attention.output.in_features, len(mlp.up.weight))
    return all(x.dtype is torch.float32 for x in parameters) and all(width % native.MULTIPLE == 0 for width in widths)


def run_whole(
    block: CausalBlock, entering: Entering, context: CausalContext, seeds: BlockSeeds
) -> tuple[Tensor, Tensor]:
    """Return what a block's feed-forward network adds, and the stream in front of it, (N, E) both.

    Args:
        block: one that `runs_whole`.
        entering: what its first norm adds up.
        context: where the rows stand.
        seeds: of the block's dropout.
    """
    attention, mlp = block.attention, block.mlp
    weights = BlockWeights(
        attention_norm=_row_norm(block.attention_norm),
        qkv=LinearMap(attention.qkv.weight, attention.qkv.bias),
        out=LinearMap(attention.output.weight, attention.output.bias),
        mlp_norm=_row_norm(block.mlp_norm),
        up=LinearMap(mlp.up.weight, mlp.up.bias),
        down=LinearMap(mlp.down.weight, mlp.down.bias),
    )
    dropout = BlockDropout(
        addend_p=0.0 if entering.seed is None else entering.dropout_p,
        attention_p=0.0 if seeds.attention is None else attention.dropout_p,
        output_p=0.0 if seeds.attention_output is None else block.hidden_dropout_p,
        addend_seed=entering.seed,
        attention_seed=seeds.attention,
        output_seed=seeds.attention_output,
    )
    return pre_norm_block(
        entering.addend,
        entering.residual,
        weights,
        context.cu_seqlens,
        head_dim=attention.head_dim,
        activation=_ACTIVATIONS[mlp.activation],
        causal=True,
        rotary=context.rotation,
        window=None if attention.window is None else (attention.window - 1, 0),
        max_seqlen=context.max_seqlen,
        dropout=dropout,
        backend="native",
    )


def _row_norm(norm: LayerNorm) -> RowNorm:
    return RowNorm(norm.weight, norm.bias, norm.eps, "layer_norm")
