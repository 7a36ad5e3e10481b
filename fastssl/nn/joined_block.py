"""A block as one node of autograd's graph, where its parts are what they were made as and autograd records them.

By its parts, a block is some twenty nodes: operators, products, casts, views, sums of gradients. What the host does
between them takes longer than a GPU takes for the block, or a CPU for few short rows, and what autograd does by itself
costs passes over memory: gradients that meet are added by kernels of their own, those of float32 weights are rounded to
16 bits and widened again. Here the operators' forwards and backwards (`fastssl.nn.stages`) are called one after the
other, and a product adds itself to the gradient that it meets. Results differ from those of the parts by rounding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastssl.nn.dropout import BlockSeeds
from fastssl.nn.mlp import APPROXIMATIONS, MLP
from fastssl.nn.norm import LayerNorm
from fastssl.nn.plain import are_plain
from fastssl.nn.stages import Attention, FeedForward, Norm
from fastssl.ops.attention.api import BACKENDS as ATTENTION
from fastssl.ops.attention.api import FUSED as FUSED_ATTENTION
from fastssl.ops.attention.api import backend_for as attention_backend
from fastssl.ops.bias_gelu.api import BACKENDS as BIAS_GELU
from fastssl.ops.bias_gelu.api import FUSED as FUSED_BIAS_GELU
from fastssl.ops.bias_gelu.api import backend_for as bias_gelu_backend
from fastssl.ops.layer_norm.api import BACKENDS as LAYER_NORM
from fastssl.ops.layer_norm.api import FUSED as FUSED_LAYER_NORM
from fastssl.ops.layer_norm.api import backend_for as layer_norm_backend
from fastssl.ops.philox import dropout_threshold, resolve_seed
from fastssl.ops.products import add_product, product
from fastssl.ops.recording import differentiable_once, tracers_are_active
from fastssl.ops.surroundings import autocast_dtype, without_autocast

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of rows and parameters."""


class Heads(NamedTuple):
    """How a block's attention is made."""

    queries: int
    """H."""
    keys: int
    """H_k, of keys and of values."""
    width: int
    """D."""
    window: tuple[int, int]
    """How many keys before and after its own position a query sees."""


class Plan(NamedTuple):
    """What a joined block is told beside its tensors."""

    dtype: torch.dtype
    """Of the products."""
    attention: Attention
    attention_norm: Norm
    feed_forward: FeedForward
    mlp_norm: Norm


def parameters_of(block: nn.Module) -> tuple[Tensor | None, ...]:
    """Return weight and bias of qkv and output, of the attention's norm, of up and down, and of the other norm."""
    return tuple(x for part in _parts_of(block) for x in (part._parameters.get("weight"), part._parameters.get("bias")))


def is_as_made(block: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether the parts of a block do what their classes say, and its feed-forward network is up, GELU, down.

    Their parameters may still be of any shape and kind.

    Args:
        block: any.
        kind: of its attention, which has a `qkv` and an `output`.
    """
    attention, mlp = block.attention, block.mlp
    if type(attention) is not kind or type(mlp) is not MLP or mlp.activation not in APPROXIMATIONS:
        return False
    kinds = (nn.Linear, nn.Linear, LayerNorm, nn.Linear, nn.Linear, LayerNorm)
    parts = _parts_of(block)
    return are_plain((attention, kind), (mlp, MLP), *zip(parts, kinds, strict=True))


def _parts_of(block: nn.Module) -> tuple[nn.Module, ...]:
    # By PyTorch's own dictionaries: its attributes take the host ten times as long, and there are two dozen here.
    modules = block._modules
    attention, mlp = modules["attention"]._modules, modules["mlp"]._modules
    own = (attention["qkv"], attention["output"], modules["attention_norm"])
    return *own, mlp["up"], mlp["down"], modules["mlp_norm"]


class NormCall(NamedTuple):
    """What the choice of a norm's backend depends on."""

    x_dtype: torch.dtype
    residual_dtype: torch.dtype
    dropout_p: float


def product_dtype(rows: Tensor) -> torch.dtype:
    """Return the dtype of a block's products: that of autocast, or of the rows that enter."""
    return autocast_dtype(rows.device) or rows.dtype


def plan_of(
    block: nn.Module,
    parameters: Sequence[Tensor | None],
    heads: Heads,
    rows: Tensor,
    attention_p: float,
    norm_calls: Sequence[NormCall],
    max_seqlen: int,
) -> Plan | None:
    """Return how to run a block as one node; None where it is to run by its parts.

    Args:
        block: one that `is_as_made`.
        parameters: `parameters_of` it.
        heads: of its attention.
        rows: (N, E), what enters it.
        attention_p: probability of dropping a weight of attention; 0 without a seed.
        norm_calls: of the attention's norm and of the other one.
        max_seqlen: length of the longest sequence.
    """
    if rows.dim() != 2 or rows.numel() == 0 or type(rows) not in _TENSORS or tracers_are_active():
        return None
    if not _are_usual(parameters, rows.shape[1]):
        return None
    device, dtype = rows.device, product_dtype(rows)
    kinds = {(x.dtype, x.device) for x in parameters if x is not None} | {(rows.dtype, device)}
    if dtype not in DTYPES or not all(one in DTYPES and place == device for one, place in kinds):
        return None
    if len(kinds) > 1 and autocast_dtype(device) is None:
        return None
    attention, mlp, norms = block.attention, block.mlp, (block.attention_norm, block.mlp_norm)
    if dropout_threshold(attention_p) == 0:
        attention_p = 0.0
    of_attention = attention_backend(
        attention.backend, device, dtype, width=heads.width, dropped=attention_p > 0, needs_grad=True
    )
    of_mlp = bias_gelu_backend(mlp.backend, device, dtype, parameters[7].dtype)
    if of_attention not in FUSED_ATTENTION or of_mlp not in FUSED_BIAS_GELU:
        return None
    stages = []
    for norm, call, (weight, bias) in zip(norms, norm_calls, (parameters[4:6], parameters[10:]), strict=True):
        name = layer_norm_backend(
            norm.backend,
            device,
            call.x_dtype,
            width=rows.shape[1],
            dropout_p=call.dropout_p,
            residual_dtype=call.residual_dtype,
            parameter_dtypes=(weight.dtype, None if bias is None else bias.dtype),
        )
        if name not in FUSED_LAYER_NORM or not norm.eps >= 0:
            return None
        stages.append(Norm(LAYER_NORM[name], norm.eps, call.dropout_p))
    counts = (heads.queries, heads.keys, heads.keys)
    return Plan(
        dtype,
        Attention(ATTENTION[of_attention], counts, heads.width, heads.window, attention_p, max_seqlen),
        stages[0],
        FeedForward(BIAS_GELU[of_mlp], APPROXIMATIONS[mlp.activation]),
        stages[1],
    )


def _are_usual(parameters: Sequence[Tensor | None], width: int) -> bool:
    """Return whether parameters are there, are tensors that PyTorch knows all about, and are all learnt.

    Where some are not, the parts have less to do, and less to keep. What products do not see for themselves, the sizes
    of what is added to rows, is looked at, too.
    """
    for x in parameters:
        if x is not None and not (type(x) in _TENSORS and x.requires_grad):
            return False
    attention_norm, attention_norm_bias, up, up_bias, mlp_norm, mlp_norm_bias = (parameters[i] for i in _ADDED)
    if up_bias is None or any(x is None for x in parameters[::2]) or up_bias.shape != up.shape[:1]:
        return False
    norms = (attention_norm, attention_norm_bias, mlp_norm, mlp_norm_bias)
    return all(x is None or x.shape == (width,) for x in norms)


_TENSORS = (nn.Parameter, Tensor)
_ADDED = (4, 5, 6, 7, 10, 11)
"""Places among a block's parameters."""


def run_post_norm(
    plan: Plan, rows: Tensor, cu_seqlens: Tensor, seeds: BlockSeeds, parameters: Sequence[Tensor | None]
) -> Tensor:
    """Return ``x = LN(x + attention(x)); x = LN(x + mlp(x))``, (N, E) of the plan's dtype.

    Args:
        plan: of the block.
        rows: (N, E).
        cu_seqlens: (B + 1) int32, where each sequence begins.
        seeds: of dropout.
        parameters: `parameters_of` the block.
    """
    sites = zip(seeds, (plan.attention.dropout_p, plan.attention_norm.dropout_p, plan.mlp_norm.dropout_p), strict=True)
    seeds = [_seed(seed, p, rows.device) for seed, p in sites]
    with without_autocast(rows.device):
        return _PostNorm.apply(plan, rows, cu_seqlens, *seeds, *parameters)[0]


class _PostNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plan, rows, cu_seqlens, attention_seed, attention_output_seed, mlp_output_seed, *parameters):
        attention_maps, attention_norm, mlp_maps, mlp_norm = _by_stage(parameters, plan.dtype)
        x = rows.to(plan.dtype)
        attended, *of_attention = plan.attention.forward(x, attention_maps, cu_seqlens, attention_seed)
        inner, *of_attention_norm = plan.attention_norm.forward(attended, rows, *attention_norm, attention_output_seed)
        added, *of_mlp = plan.feed_forward.forward(inner, mlp_maps)
        y, *of_mlp_norm = plan.mlp_norm.forward(added, inner, *mlp_norm, mlp_output_seed)
        given = (x, cu_seqlens, attention_seed, attention_output_seed, mlp_output_seed)
        weights = (*attention_maps[::2], attention_norm[0], *mlp_maps[:3], mlp_norm[0])
        ctx.save_for_backward(*given, *weights, inner, *of_attention, *of_attention_norm, *of_mlp, *of_mlp_norm)
        ctx.plan, ctx.dtypes = plan, tuple(None if x is None else x.dtype for x in parameters)
        ctx.set_materialize_grads(False)
        # The inverse deviations are returned, for nobody's use, so that an output is among what is saved.
        return y, of_mlp_norm[-1]

    @staticmethod
    @differentiable_once
    def backward(ctx, saved, grad, _):
        plan = ctx.plan
        x, cu_seqlens, attention_seed, attention_output_seed, mlp_output_seed, *tensors = saved()
        qkv, output, attention_norm, up, up_bias, down, mlp_norm, inner, *tensors = tensors
        of_attention, of_attention_norm, of_mlp, of_mlp_norm = _of_stages(tensors)
        rows_wanted, dtypes = ctx.needs_input_grad[1], ctx.dtypes
        with without_autocast(x.device):
            grad_added, grad_inner, *grads_mlp_norm = plan.mlp_norm.backward(
                grad, None, of_mlp_norm, mlp_norm, dtypes[11], mlp_output_seed, True
            )
            grad_up, grads_mlp = plan.feed_forward.backward(grad_added, inner, of_mlp, up_bias, down, dtypes[6:10])
            add_product(grad_inner, grad_up, up)
            grad_attended, grad_rows, *grads_attention_norm = plan.attention_norm.backward(
                grad_inner, None, of_attention_norm, attention_norm, dtypes[5], attention_output_seed, rows_wanted
            )
            grad_qkv, grads_attention = plan.attention.backward(
                grad_attended, x, of_attention, (qkv, output), cu_seqlens, attention_seed, dtypes[:4]
            )
            if rows_wanted:
                add_product(grad_rows, grad_qkv, qkv)
        grads = (*grads_attention, *grads_attention_norm, *grads_mlp, *grads_mlp_norm)
        return None, grad_rows, None, None, None, None, *grads


def run_pre_norm(
    plan: Plan,
    addend: Tensor,
    residual: Tensor | None,
    cu_seqlens: Tensor,
    seeds: Sequence[Tensor | None],
    parameters: Sequence[Tensor | None],
) -> tuple[Tensor, Tensor]:
    """Return what the feed-forward network of a pre-norm block adds, and the stream in front of it, (N, E) both.

    ``stream = residual + addend; stream = stream + attention(LN(stream))``, then ``mlp(LN(stream))``.

    Args:
        plan: of the block.
        addend, residual: (N, E), what the attention's norm adds up; no residual: zero.
        cu_seqlens: (B + 1) int32, where each sequence begins.
        seeds: of dropout: of the addend, the attention weights, and what attention adds.
        parameters: `parameters_of` the block.
    """
    sites = zip(seeds, (plan.attention_norm.dropout_p, plan.attention.dropout_p, plan.mlp_norm.dropout_p), strict=True)
    seeds = [_seed(seed, p, addend.device) for seed, p in sites]
    with without_autocast(addend.device):
        return _PreNorm.apply(plan, addend, residual, cu_seqlens, *seeds, *parameters)


class _PreNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plan, addend, residual, cu_seqlens, addend_seed, attention_seed, output_seed, *parameters):
        attention_maps, attention_norm, mlp_maps, mlp_norm = _by_stage(parameters, plan.dtype)
        normed, *of_attention_norm = plan.attention_norm.forward(addend, residual, *attention_norm, addend_seed)
        x = normed.to(plan.dtype)
        attended, *of_attention = plan.attention.forward(x, attention_maps, cu_seqlens, attention_seed)
        inner, *of_mlp_norm = plan.mlp_norm.forward(attended, of_attention_norm[0], *mlp_norm, output_seed)
        out, *of_mlp = plan.feed_forward.forward(inner, mlp_maps)
        given = (x, cu_seqlens, addend_seed, attention_seed, output_seed)
        weights = (*attention_maps[::2], attention_norm[0], *mlp_maps[:3], mlp_norm[0])
        ctx.save_for_backward(*given, *weights, inner, *of_attention, *of_attention_norm, *of_mlp, *of_mlp_norm)
        ctx.plan, ctx.dtypes = plan, tuple(None if x is None else x.dtype for x in parameters)
        ctx.normed_dtype, ctx.added = normed.dtype, residual is not None
        ctx.set_materialize_grads(False)
        return out, of_mlp_norm[0]

    @staticmethod
    @differentiable_once
    def backward(ctx, saved, grad_out, grad_stream):
        plan = ctx.plan
        x, cu_seqlens, addend_seed, attention_seed, output_seed, *tensors = saved()
        qkv, output, attention_norm, up, up_bias, down, mlp_norm, inner, *tensors = tensors
        of_attention, of_attention_norm, of_mlp, of_mlp_norm = _of_stages(tensors)
        dtypes = ctx.dtypes
        grad_out = torch.zeros_like(inner) if grad_out is None else grad_out
        with without_autocast(x.device):
            grad_up, grads_mlp = plan.feed_forward.backward(grad_out, inner, of_mlp, up_bias, down, dtypes[6:10])
            grad_attended, grad_stream, *grads_mlp_norm = plan.mlp_norm.backward(
                torch.mm(grad_up, up), grad_stream, of_mlp_norm, mlp_norm, dtypes[11], output_seed, True
            )
            grad_qkv, grads_attention = plan.attention.backward(
                grad_attended, x, of_attention, (qkv, output), cu_seqlens, attention_seed, dtypes[:4]
            )
            grad_normed = product(grad_qkv, qkv, ctx.normed_dtype)
            grad_addend, grad_residual, *grads_attention_norm = plan.attention_norm.backward(
                grad_normed, grad_stream, of_attention_norm, attention_norm, dtypes[5], addend_seed, ctx.added
            )
        grads = (*grads_attention, *grads_attention_norm, *grads_mlp, *grads_mlp_norm)
        return None, grad_addend, grad_residual, None, None, None, None, *grads


def _of_stages(saved: Sequence[Tensor | None]) -> tuple[Sequence[Tensor | None], ...]:
    """Return what attention, its norm, the feed-forward network and its norm have saved, each its own."""
    return saved[:4], saved[4:7], saved[7:9], saved[9:]


def _seed(seed: int | Tensor | None, p: float, device: torch.device) -> Tensor | None:
    """Return the seed of a site where something is dropped; attention takes any seed for a wish to drop."""
    return None if seed is None or p == 0 else resolve_seed(seed, device)


def _by_stage(parameters: Sequence[Tensor | None], dtype: torch.dtype) -> tuple[Sequence[Tensor | None], ...]:
    """Return the parameters of attention, its norm, the feed-forward network and its norm.

    What products take is of `dtype`; the bias of up, which GELU's operator adds, and the norms' are as they are.
    """
    qkv, qkv_bias, output, output_bias, *attention_norm, up, up_bias, down, down_bias, _, _ = parameters
    mlp_norm = parameters[-2:]
    maps = _as((qkv, qkv_bias, output, output_bias, up, down, down_bias), dtype)
    return maps[:4], attention_norm, (maps[4], up_bias, *maps[5:]), mlp_norm


def _as(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    """Return tensors as `dtype`, all casts in one call."""
    found = list(tensors)
    others = [place for place, x in enumerate(found) if x is not None and x.dtype is not dtype]
    if others:
        sources = [found[place] for place in others]
        copies = [torch.empty_like(x, dtype=dtype) for x in sources]
        torch._foreach_copy_(copies, sources)
        for place, copy in zip(others, copies, strict=True):
            found[place] = copy
    return found
