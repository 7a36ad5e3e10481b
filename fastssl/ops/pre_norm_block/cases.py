"""Named shapes and edge inputs of `pre_norm_block`, for tests and benchmarks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastssl.ops.decoder_block.weights import BlockWeights, LinearMap
from fastssl.ops.pre_norm_block.dropout import BlockDropout
from fastssl.ops.skinny_linear.norm import RowNorm


@dataclass(frozen=True, kw_only=True)
class PreNormBlockCase:
    """One call: shapes and options."""

    lengths: tuple[int, ...]
    """Of the sequences."""
    width: int
    """E."""
    heads: int
    """H."""
    head_dim: int
    """D."""
    key_heads: int | None = None
    """H_k; None: H."""
    mlp_width: int
    """F."""
    bias: bool = True
    """Whether maps and norms have shifts."""
    residual: bool = True
    """Whether there is a stream in front of the block."""
    activation: str = "gelu"
    """ "gelu" or "gelu_tanh"."""
    causal: bool = True
    """Whether later tokens are hidden."""
    window: tuple[int | None, int | None] | None = None
    """Keys that a query sees to its left and right."""
    rotary: bool = False
    """Whether queries and keys are turned."""
    dropout: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Probabilities, of the addend, of attention's weights and of its output."""

    def tensors(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Return the floating tensors of a call, by name; the same for every call of this method."""
        generator = torch.Generator().manual_seed(31)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        rows, attended = sum(self.lengths), self.heads * self.head_dim
        qkv = attended + 2 * (self.key_heads or self.heads) * self.head_dim
        tensors = {"addend": draw(rows, self.width)}
        if self.residual:
            tensors["residual"] = draw(rows, self.width)
        maps = {
            "attention_norm": (self.width,),
            "qkv": (qkv, self.width),
            "out": (self.width, attended),
            "mlp_norm": (self.width,),
            "up": (self.mlp_width, self.width),
            "down": (self.width, self.mlp_width),
        }
        for name, shape in maps.items():
            tensors[f"{name}.weight"] = (
                1 + draw(*shape) / 4 if name.endswith("norm") else draw(*shape) * shape[1] ** -0.5
            )
            if self.bias:
                tensors[f"{name}.bias"] = draw(shape[0]) / 4
        return {name: tensor.to(dtype) for name, tensor in tensors.items()}

    def arguments(self, tensors: dict[str, Tensor]) -> dict[str, object]:
        """Return the arguments of a call, by name, made of what `tensors` returns or of others like it."""

        def linear(name: str) -> LinearMap:
            return LinearMap(tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

        def norm(name: str) -> RowNorm:
            return RowNorm(*linear(name), 1e-5, "layer_norm")

        return {
            "addend": tensors["addend"],
            "residual": tensors.get("residual"),
            "weights": BlockWeights(
                attention_norm=norm("attention_norm"),
                qkv=linear("qkv"),
                out=linear("out"),
                mlp_norm=norm("mlp_norm"),
                up=linear("up"),
                down=linear("down"),
            ),
            "cu_seqlens": torch.tensor([0, *self.lengths]).cumsum(0, dtype=torch.int32),
            "head_dim": self.head_dim,
            "activation": self.activation,
            "causal": self.causal,
            "window": self.window,
            "rotary": self._turns() if self.rotary else None,
            "dropout": BlockDropout(*self.dropout, *(torch.tensor(seed) for seed in (2**40 + 5, 17, -3))),
        }

    def _turns(self) -> tuple[Tensor, Tensor]:
        places = torch.cat([torch.arange(0), *(torch.arange(length) for length in self.lengths)])
        angles = places[:, None] * 100.0 ** -torch.linspace(0, 1, self.head_dim // 2)
        return angles.cos(), angles.sin()


_SMALL = {"width": 48, "heads": 3, "head_dim": 16, "mlp_width": 80}
EDGE_CASES = {
    "rotary": PreNormBlockCase(
        lengths=(21, 70, 4), width=48, heads=4, key_heads=2, head_dim=24, mlp_width=64, rotary=True, bias=False
    ),
    "one token": PreNormBlockCase(lengths=(1,), **_SMALL),
    "gpt": PreNormBlockCase(lengths=(64, 64, 64), width=96, heads=3, head_dim=32, mlp_width=384, bias=False),
    "first block": PreNormBlockCase(lengths=(9, 30), residual=False, **_SMALL),
    "first block, dropped out": PreNormBlockCase(lengths=(9, 30), residual=False, dropout=(0.2, 0.0, 0.0), **_SMALL),
    "dropout": PreNormBlockCase(lengths=(40, 3, 70, 1, 25), dropout=(0.1, 0.2, 0.3), **_SMALL),
    "one long sequence": PreNormBlockCase(lengths=(301,), activation="gelu_tanh", **_SMALL),
    "many short ones": PreNormBlockCase(lengths=(7, 1, 12, 3, 5, 2, 15, 4, 30, 2, 1), causal=False, **_SMALL),
    "empty sequences": PreNormBlockCase(lengths=(0, 5, 0, 0, 66, 0), **_SMALL),
    "nothing but empty sequences": PreNormBlockCase(lengths=(0, 0, 0), **_SMALL),
    "no sequences": PreNormBlockCase(lengths=(), **_SMALL),
    "shared keys, window": PreNormBlockCase(
        lengths=(50, 90), width=80, heads=6, head_dim=8, key_heads=2, mlp_width=16, window=(7, None)
    ),
    "heads wider than the model": PreNormBlockCase(lengths=(33, 64), width=16, heads=2, head_dim=40, mlp_width=144),
}


def small_gpt(width: int, sequences: int, length: int) -> PreNormBlockCase:
    """Return a block of a GPT with heads of 32 columns, without dropout."""
    return PreNormBlockCase(
        lengths=(length,) * sequences, width=width, heads=width // 32, head_dim=32, mlp_width=4 * width
    )
