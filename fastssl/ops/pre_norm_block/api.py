"""The public function `pre_norm_block`: its meaning, its checks, its choice of backend, its place in autograd."""

import torch
from torch import Tensor

from fastssl.ops.attention.checks import check_devices, check_lengths, check_tensors, resolve_window
from fastssl.ops.backend import choose
from fastssl.ops.decoder_block.weights import BlockWeights
from fastssl.ops.philox import resolve_seed
from fastssl.ops.pre_norm_block import native, reference, stock
from fastssl.ops.pre_norm_block.dropout import BlockDropout
from fastssl.ops.recording import differentiable_once, is_recorded
from fastssl.ops.surroundings import without_autocast

BACKENDS = {"native": native, "stock": stock, "reference": reference}
ACTIVATIONS = ("gelu", "gelu_tanh")
NO_DROPOUT = BlockDropout()


def pre_norm_block(
    addend: Tensor,
    residual: Tensor | None,
    weights: BlockWeights,
    cu_seqlens: Tensor,
    *,
    head_dim: int,
    activation: str = "gelu",
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
    max_seqlen: int | None = None,
    dropout: BlockDropout = NO_DROPOUT,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """A transformer block with its norms in front, for training and for whole sequences; of small models the fastest.

    ``stream = residual + dropout(addend)``, ``stream = stream + dropout(out(attention(norm(stream))))``, then
    ``down(gelu(up(norm(stream))))``, which is returned beside the stream and not yet added to it: the next block's
    first norm does so, or the norm behind the last one.

    Args:
        addend: (N, E) fp32 or fp64 (native: fp32), rows of packed sequences.
        residual: (N, E), the residual stream in front of the block, without the addend; None: zero.
        weights: the parameters; floating weights, layer norms, and a plain feed-forward network.
        cu_seqlens: (B + 1) int32: sequence b owns rows cu_seqlens[b] to cu_seqlens[b + 1].
        head_dim: D. H follows from what `weights.out` takes, H_k from what `weights.qkv` gives.
        activation: "gelu" or "gelu_tanh".
        causal, window, scale, max_seqlen: as `fastssl.attention` has them.
        rotary: cos and sin (N, D / 2) fp32, by which queries and keys are turned, pair (i, i + D / 2) of a head by the
            row's angle i; no gradient flows to them. None: no turns.
        dropout: what is dropped where; a seed that is None is drawn where it is needed.
        backend: "auto", "native", "stock" or "reference".

    Returns:
        What the feed-forward network adds, and the stream that it is to be added to, (N, E) both.

    Raises:
        ValueError: for shapes, dtypes, lengths or options that do not fit, or a backend that cannot run the call.

    Memory: saves 2 E + F + 2 (H + H_k) D numbers a row for the backward, which normalises, and takes GELU, once more.
    The parameters' gradients are sums over as many parts as there are threads, in order. Differentiable once (native).

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" §2.3.
    """
    heads = _heads(addend, residual, weights, head_dim, activation)
    sides = resolve_window(causal, window)
    _check_rows(addend, heads, cu_seqlens, max_seqlen, rotary)
    dropout = _with_seeds(dropout, addend.device)
    parameters = native.parameters_of(weights)
    tensors = [addend, residual, *parameters]
    facts = {
        "parameter_dtypes": {x.dtype for x in tensors if x is not None},
        "widths": (addend.shape[1], len(weights.qkv.weight), heads[0] * heads[2], len(weights.up.weight)),
        "dropped": dropout[:3] != (0.0, 0.0, 0.0),
        "compiling": torch.compiler.is_compiling(),
    }
    name = choose("pre_norm_block", backend, BACKENDS, addend.device, addend.dtype, facts)
    scale = head_dim**-0.5 if scale is None else float(scale)
    if name == "native" and is_recorded(*tensors):
        options = native.options_of(weights, cu_seqlens, heads, activation, sides, scale, rotary, dropout)
        return _FusedBlock.apply(addend, residual, options, *parameters)
    with without_autocast(addend.device):
        return BACKENDS[name].forward(
            addend,
            residual,
            weights,
            cu_seqlens,
            heads=heads,
            max_seqlen=max_seqlen,
            activation=activation,
            window=sides,
            scale=scale,
            rotary=rotary,
            dropout=dropout,
        )


class _FusedBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx, addend, residual, options, *parameters):
        out, stream, *saved = native.forward_saving(addend, residual, parameters, options)
        # Offsets, seeds and rotary tables are saved, too, so that autograd sees where one has changed meanwhile.
        given = [option if isinstance(option, Tensor) else None for option in options]
        ctx.save_for_backward(stream, *saved, *parameters, *given)
        ctx.options = tuple(None if isinstance(option, Tensor) else option for option in options)
        ctx.sizes = len(saved), len(parameters)
        ctx.set_materialize_grads(False)
        return out, stream

    @staticmethod
    @differentiable_once
    def backward(ctx, saved, grad_out, grad_stream):
        stream, *tensors = saved()
        num_saved, num_parameters = ctx.sizes
        saved, tensors = tensors[:num_saved], tensors[num_saved:]
        parameters, given = tensors[:num_parameters], tensors[num_parameters:]
        options = tuple(option if tensor is None else tensor for option, tensor in zip(ctx.options, given, strict=True))
        grad_out = torch.zeros_like(stream) if grad_out is None else grad_out
        grad_addend, grad_residual, grads = native.backward(grad_out, grad_stream, stream, saved, parameters, options)
        return grad_addend, grad_residual if ctx.needs_input_grad[1] else None, None, *grads


def _heads(
    addend: Tensor, residual: Tensor | None, weights: BlockWeights, head_dim: int, activation: str
) -> tuple[int, int, int]:
    """Return H, H_k and D, once parameters and rows fit together."""
    if addend.dim() != 2 or addend.shape[1] == 0:
        raise ValueError(f"pre_norm_block: addend must have shape (N, E), E > 0, got {tuple(addend.shape)}")
    if residual is not None and residual.shape != addend.shape:
        raise ValueError(
            f"pre_norm_block: residual must have addend's shape {tuple(addend.shape)}, got {tuple(residual.shape)}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"pre_norm_block: activation must be one of {ACTIVATIONS}, got {activation!r}")
    for name in ("qkv", "out", "up", "down"):
        weight = getattr(weights, name).weight
        if not isinstance(weight, Tensor):
            raise ValueError(
                f"pre_norm_block: {name} must have a floating weight, got a {type(weight).__name__}; weights of 8 bits "
                "are for inference, by `decoder_block`"
            )
    width = addend.shape[1]
    attended, mlp_width = weights.out.weight.shape[-1], len(weights.up.weight)
    num_heads = attended // head_dim if head_dim > 0 else 0
    key_heads = (len(weights.qkv.weight) // head_dim - num_heads) // 2 if num_heads else 0
    if key_heads < 1 or num_heads % key_heads or num_heads * head_dim != attended:
        raise ValueError(
            f"pre_norm_block: out must take H D and qkv give (H + 2 H_k) D numbers for head_dim D = {head_dim}, with "
            f"H_k a divisor of H; got {attended} and {len(weights.qkv.weight)}"
        )
    shapes = {
        "attention_norm": (width,),
        "qkv": ((num_heads + 2 * key_heads) * head_dim, width),
        "out": (width, attended),
        "mlp_norm": (width,),
        "up": (mlp_width, width),
        "down": (width, mlp_width),
    }
    for name, shape in shapes.items():
        part = getattr(weights, name)
        if part.weight.shape != shape or (part.bias is not None and part.bias.shape != shape[:1]):
            bias = None if part.bias is None else tuple(part.bias.shape)
            raise ValueError(
                f"pre_norm_block: {name} must have a weight of shape {shape} and a bias of shape {shape[:1]} or none, "
                f"got {tuple(part.weight.shape)} and {bias}"
            )
        if name.endswith("norm") and part.kind != "layer_norm":
            raise ValueError(f"pre_norm_block: {name} must be a layer norm, got kind {part.kind!r}")
    return num_heads, key_heads, head_dim


def _check_rows(
    addend: Tensor,
    heads: tuple[int, int, int],
    cu_seqlens: Tensor,
    max_seqlen: int | None,
    rotary: tuple[Tensor, Tensor] | None,
) -> None:
    if rotary is not None:
        shape = (len(addend), heads[2] // 2)
        given = [(tuple(x.shape), x.dtype) if isinstance(x, Tensor) else x for x in rotary]
        if heads[2] % 2 or given != 2 * [(shape, torch.float32)]:
            raise ValueError(
                f"pre_norm_block: rotary must be two float32 tensors (N, D / 2) = {shape} for an even head_dim "
                f"D = {heads[2]}, got {given}"
            )
    rows = addend[:, :1, None]
    check_tensors(rows, rows, rows, None, None)
    check_devices(rows, cu_seqlens=cu_seqlens)
    check_lengths(rows, rows, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, None)


def _with_seeds(dropout: BlockDropout, device: torch.device) -> BlockDropout:
    """Return a dropout with a seed wherever something is dropped, and none elsewhere."""
    seeds = zip(dropout[:3], dropout[3:], strict=True)
    return BlockDropout(*dropout[:3], *(resolve_seed(seed, device) if p > 0 else None for p, seed in seeds))
