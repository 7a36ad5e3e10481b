"""How fresh weights are drawn."""

import torch
from torch import Tensor, nn

from fastssl.nn.norm import LayerNorm, RMSNorm


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
            elif isinstance(layer, LayerNorm | RMSNorm):
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, std)
        if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
            layer.weight[layer.padding_idx].zero_()


@torch.no_grad()
def grow_rows(weight: Tensor, num_rows: int, std: float) -> Tensor:
    """Return a matrix (V', E) that begins with the rows of `weight`; the new ones are their mean plus normal(0, `std`).

    Starting at the mean bounds how much the old predictions change (Hewitt 2021, "Initializing New Word Embeddings for
    Pretrained Language Models").

    Args:
        weight: (V, E), vectors of tokens.
        num_rows: V', the new vocabulary, not below the old one.
        std: standard deviation of the noise that tells the new vectors apart.
    """
    old, width = weight.shape
    if num_rows < old:
        raise ValueError(f"vocab_size must be at least the {old} tokens there are, got {num_rows}")
    return torch.cat((weight, weight.mean(0) + std * torch.randn_like(weight.new_empty(num_rows - old, width))))
