"""How fresh weights are drawn."""

import torch
from torch import nn

from fastssl.nn.norm import LayerNorm


@torch.no_grad()
def initialize(module: nn.Module, std: float) -> None:
    """Draw fresh weights for every layer inside `module`, from torch's default generator.

    Matrices are normal(0, `std`), biases 0, the scales of norms 1, a padding token's word vector 0.

    Args:
        module: changed in place.
        std: standard deviation of the matrices.

    Source: Devlin et al. 2018 (arXiv 1810.04805), with a normal where the original truncates it, as Hugging Face does.
    """
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if name == "bias":
                parameter.zero_()
            elif isinstance(layer, LayerNorm):
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, std)
        if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
            layer.weight[layer.padding_idx].zero_()
