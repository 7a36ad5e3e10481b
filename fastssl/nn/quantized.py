"""Linear maps in 8 bits, and models made of them: for inference alone."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from fastssl.nn.block import Block
from fastssl.nn.causal_block import CausalBlock
from fastssl.nn.mlp import ACTIVATIONS, MLP
from fastssl.nn.plain import is_plain
from fastssl.ops.quantized_linear.api import quantized_linear
from fastssl.ops.quantized_linear.weight import QuantizedWeight, quantize_weight

Model = TypeVar("Model", bound=nn.Module)
_FUSED = "gelu"


class QuantizedLinear(nn.Module):
    """A linear map whose weight has 8 bits and whose inputs are rounded to 8 bits, row by row, as they come.

    Args:
        linear: the map to be quantised; it is left as it is.
        activation: applied to the outputs: "none" or "gelu".
    """

    def __init__(self, linear: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        self.backend = "auto"
        self.activation = activation
        weight = quantize_weight(linear.weight)
        self.in_features, self.out_features = weight.in_features, weight.out_features
        self.register_buffer("packed", weight.packed)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("sum", weight.sum)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Map the last dimension, (..., E) to (..., F); see `quantized_linear`."""
        weight = QuantizedWeight(packed=self.packed, scale=self.scale, sum=self.sum, in_features=self.in_features)
        return quantized_linear(x, weight, self.bias, activation=self.activation, backend=self.backend)

    def _apply(self, fn, recurse: bool = True) -> "QuantizedLinear":
        """Move to another device; whatever dtype the model gets, what belongs to the 8 bits keeps its own."""
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            if self._buffers[name].dtype != buffer.dtype:
                self._buffers[name] = buffer.to(self._buffers[name].device)
        return self

    def train(self, mode: bool = True) -> "QuantizedLinear":
        """Refuse to train.

        Raises:
            ValueError: where `mode` is True.
        """
        if mode:
            raise ValueError("a quantised model cannot be trained; train the model that it was made of")
        return super().train(False)


def quantize(model: Model) -> Model:
    """Return a copy of a model for inference, whose blocks compute their linear maps in 8 bits.

    Weights are rounded once, with a scale for each output; inputs as they come, with a scale for each token.
    Embeddings, attention and norms stay as they are, and so do heads, but for that of a causal model, which scores
    every token that it writes. No calibration, no data. Where the machine has AVX-512 VNNI this is two to three times
    as fast; elsewhere it gives the same numbers and may be slower than the original.

    Args:
        model: with transformer blocks, in fp32 or bf16; left as it is.

    Raises:
        ValueError: for a model without blocks, one that is quantised already, weights that are not finite, or a linear
            map that is another class's, such as an adapter, or has hooks: what these do would be lost.
    """
    blocks = [part for part in model.modules() if isinstance(part, Block | CausalBlock)]
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no transformer blocks; there is nothing to quantise")
    if any(isinstance(part, QuantizedLinear) for part in model.modules()):
        raise ValueError("the model is quantised already; quantise the one that it was made of")
    quantized = copy.deepcopy(model).eval().requires_grad_(False)
    for name, part in quantized.named_modules():
        if isinstance(part, Block | CausalBlock):
            _expect_plain(name, part)
            _quantize_block(part)
    if hasattr(quantized, "set_dropout"):  # whoever calls train() is refused by the first map, behind the model's own
        quantized.set_dropout(0.0)
    if hasattr(quantized, "quantize_head"):
        quantized.quantize_head()
    return quantized


def _expect_plain(block_name: str, block: Block | CausalBlock) -> None:
    for name, part in block.named_modules():
        if isinstance(part, nn.Linear) and not is_plain(part, nn.Linear):
            raise ValueError(
                f"{block_name}.{name} is a {type(part).__name__} with more to it than weight and bias; quantise a "
                "model without adapters, or with theirs merged into its weights, and without hooks"
            )


@torch.no_grad()
def _quantize_block(block: Block | CausalBlock) -> None:
    mlp = block.mlp
    fused = isinstance(mlp, MLP) and mlp.activation is ACTIVATIONS[_FUSED] and isinstance(mlp.up, nn.Linear)
    up = mlp.up if fused else None
    for part in list(block.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.Linear):
                setattr(part, name, QuantizedLinear(child, _FUSED if child is up else "none"))
    if fused:
        mlp.activation = nn.Identity()
