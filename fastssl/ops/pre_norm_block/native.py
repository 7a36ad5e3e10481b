"""`pre_norm_block` by the compiled CPU kernels: each worker takes its sequences through all of the block."""

import torch
from torch import Tensor

from fastssl import extension
from fastssl.ops.backend import Supports
from fastssl.ops.decoder_block.weights import BlockWeights
from fastssl.ops.philox import dropout_threshold
from fastssl.ops.pre_norm_block.dropout import BlockDropout

MULTIPLE = 16
"""Of every width, in numbers: the widest vector."""
SUPPORTS = Supports(
    devices=("cpu",),
    dtypes=(torch.float32,),
    needs_cpu_ops=True,
    refuses={
        "a parameter is not float32": lambda parameter_dtypes, **_: parameter_dtypes != {torch.float32},
        f"a width is no multiple of {MULTIPLE}": lambda widths, **_: any(width % MULTIPLE for width in widths),
    },
)


def forward(
    addend: Tensor,
    residual: Tensor | None,
    weights: BlockWeights,
    cu_seqlens: Tensor,
    *,
    heads: tuple[int, int, int],
    max_seqlen: int | None,
    activation: str,
    window: tuple[int, int],
    scale: float,
    rotary: tuple[Tensor, Tensor] | None,
    dropout: BlockDropout,
) -> tuple[Tensor, Tensor]:
    """Return (out, stream) of `fastssl.ops.pre_norm_block`, without a graph for autograd."""
    parameters = parameters_of(weights)
    options = options_of(weights, cu_seqlens, heads, activation, window, scale, rotary, dropout)
    return forward_saving(addend, residual, parameters, options)[:2]


def parameters_of(weights: BlockWeights) -> list[Tensor | None]:
    """Return weight and bias of each part, in the order in which the block uses them."""
    return [tensor for part in weights for tensor in part[:2]]


def options_of(
    weights: BlockWeights,
    cu_seqlens: Tensor,
    heads: tuple[int, int, int],
    activation: str,
    window: tuple[int, int],
    scale: float,
    rotary: tuple[Tensor, Tensor] | None,
    dropout: BlockDropout,
) -> tuple:
    """Return what both directions are told beside their tensors of rows and the parameters."""
    cos, sin = (None, None) if rotary is None else (table.contiguous() for table in rotary)
    return (
        cu_seqlens.contiguous(), heads[0], heads[2], *window, scale, weights.attention_norm.eps, weights.mlp_norm.eps,
        activation == "gelu_tanh", dropout_threshold(dropout.addend_p), dropout.addend_seed,
        dropout_threshold(dropout.attention_p), dropout.attention_seed, dropout_threshold(dropout.output_p),
        dropout.output_seed, cos, sin,
    )  # fmt: skip


def forward_saving(
    addend: Tensor, residual: Tensor | None, parameters: list[Tensor | None], options: tuple
) -> tuple[Tensor, ...]:
    """Return out, stream, and six tensors for the backward, of which the first is what the first norm was of."""
    out, inner_stream, stream, *saved = torch.ops.fastssl.pre_norm_block_forward(
        addend, residual, packed(parameters, addend), *options
    )
    return out, inner_stream, stream if stream.numel() else addend, *saved


def backward(
    grad_out: Tensor,
    grad_stream: Tensor | None,
    stream: Tensor,
    saved: tuple[Tensor, ...],
    parameters: list[Tensor | None],
    options: tuple,
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Return the gradients of addend, residual and the parameters.

    Args:
        grad_out, grad_stream: of what the forward returned.
        stream: what the forward returned.
        saved: the six tensors that came with it.
        parameters, options: those of the forward.
    """
    grad_addend, grad_residual, grads = torch.ops.fastssl.pre_norm_block_backward(
        grad_out, grad_stream, stream, *saved, packed(parameters, stream), *options
    )
    weights = parameters[::2]
    # A bias that is not there has a place all the same.
    shapes = [shape for weight in weights for shape in (weight.shape, weight.shape[:1])]
    pieces = grads.split([shape.numel() for shape in shapes])
    found = zip(parameters, pieces, shapes, strict=True)
    grad_parameters = [None if parameter is None else piece.view(shape) for parameter, piece, shape in found]
    return grad_addend, grad_residual if grad_residual.numel() else grad_addend, grad_parameters


def packed(parameters: list[Tensor | None], like: Tensor) -> list[Tensor]:
    """Return parameters as the operators take them, an empty tensor for what is not there."""
    nothing = like.new_empty(0)
    return [nothing if parameter is None else parameter.contiguous() for parameter in parameters]


@extension.fake_kernel("fastssl::pre_norm_block_forward")
def _forward_fake(addend, residual, parameters, cu_seqlens, heads, head_width, *rest):
    addend_threshold = rest[6]
    rows, qkv, mlp_width = len(addend), len(parameters[2]), len(parameters[8])
    stream = addend.new_empty(addend.shape if residual is not None or addend_threshold > 0 else 0)
    return (
        addend.new_empty(addend.shape), addend.new_empty(addend.shape), stream, addend.new_empty(4, rows),
        addend.new_empty(rows, qkv), addend.new_empty(rows, heads * head_width), addend.new_empty(heads, rows),
        addend.new_empty(rows, mlp_width),
    )  # fmt: skip


@extension.fake_kernel("fastssl::pre_norm_block_backward")
def _backward_fake(grad_out, grad_inner_stream, inner_stream, *rest):
    parameters, addend_threshold = rest[6], rest[16]
    grad_residual = inner_stream.new_empty(inner_stream.shape if addend_threshold > 0 else 0)
    count = sum(weight.numel() + len(weight) for weight in parameters[::2])
    return inner_stream.new_empty(inner_stream.shape), grad_residual, inner_stream.new_empty(count)
