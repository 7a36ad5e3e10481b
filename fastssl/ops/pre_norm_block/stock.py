"""`pre_norm_block` from PyTorch's own operators, without dropout: PyTorch draws other masks than ours."""

from torch import Tensor

from fastssl.ops.attention import stock as attention_stock
from fastssl.ops.backend import Supports
from fastssl.ops.layer_norm import stock as layer_norm_stock
from fastssl.ops.pre_norm_block.reference import compose

SUPPORTS = Supports(
    refuses={
        "PyTorch's dropout draws other masks than the seeds ask for": lambda dropped, **_: dropped,
        "it reads sequence lengths on the host, which torch.compile cannot": lambda compiling, **_: compiling,
    }
)


def forward(*arguments, **options) -> tuple[Tensor, Tensor]:
    """Return (out, stream) of `fastssl.ops.pre_norm_block`; differentiable by autograd."""
    return compose(layer_norm_stock, attention_stock, *arguments, **options)
