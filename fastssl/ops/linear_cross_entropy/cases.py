"""Named shapes and edge inputs of `linear_cross_entropy`, for tests and benchmarks."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LinearCrossEntropyCase:
    """One call: sizes, options and the range of the logits."""

    num_rows: int
    """Rows of hidden, N."""
    width: int
    """Columns of hidden, E."""
    vocab_size: int
    """Rows of weight, V."""
    labelled: float = 0.6
    """Share of the rows that carry a label; at least one row does, unless this is 0."""
    bias: bool = True
    """Whether there is a decoder bias."""
    logit_magnitude: float = 3.0
    """Standard deviation of the logits."""
    options: dict[str, float] = field(default_factory=dict)
    """label_smoothing, z_loss, softcap."""

    def inputs(self, dtype: torch.dtype, weight_dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Return the tensors of a call, by the names of the arguments; the same for every call of this method."""
        generator = torch.Generator().manual_seed(13)
        scale = self.logit_magnitude / self.width**0.5
        tensors = {
            "hidden": torch.randn(self.num_rows, self.width, generator=generator).to(dtype),
            "weight": (torch.randn(self.vocab_size, self.width, generator=generator) * scale).to(weight_dtype or dtype),
        }
        if self.bias:
            tensors["bias"] = torch.randn(self.vocab_size, generator=generator).to(weight_dtype or dtype)
        targets = torch.randint(self.vocab_size, (self.num_rows,), generator=generator)
        order = torch.randperm(self.num_rows, generator=generator)
        num_labelled = max(round(self.labelled * self.num_rows), min(1, self.num_rows) if self.labelled else 0)
        targets[order[num_labelled:]] = -100
        return tensors | {"targets": targets}


EDGE_CASES = {
    "one of everything": LinearCrossEntropyCase(num_rows=1, width=1, vocab_size=1),
    "no rows": LinearCrossEntropyCase(num_rows=0, width=8, vocab_size=19),
    "all ignored": LinearCrossEntropyCase(num_rows=7, width=8, vocab_size=19, labelled=0.0),
    "none ignored": LinearCrossEntropyCase(num_rows=31, width=16, vocab_size=64, labelled=1.0),
    "prime": LinearCrossEntropyCase(num_rows=37, width=13, vocab_size=101),
    "no bias": LinearCrossEntropyCase(num_rows=20, width=24, vocab_size=33, bias=False),
    "several chunks": LinearCrossEntropyCase(num_rows=1100, width=8, vocab_size=45),
    "smoothing": LinearCrossEntropyCase(num_rows=23, width=12, vocab_size=53, options={"label_smoothing": 0.1}),
    "z-loss": LinearCrossEntropyCase(num_rows=23, width=12, vocab_size=53, options={"z_loss": 1e-3}),
    "softcap": LinearCrossEntropyCase(num_rows=23, width=12, vocab_size=53, options={"softcap": 5.0}),
    "all options": LinearCrossEntropyCase(
        num_rows=23, width=12, vocab_size=53, options={"label_smoothing": 0.2, "z_loss": 1e-2, "softcap": 10.0}
    ),
    "logits of 1e4": LinearCrossEntropyCase(num_rows=9, width=16, vocab_size=40, logit_magnitude=1e4),
}

BENCHMARK_CASES = {
    "masked LM, 15 % predicted": LinearCrossEntropyCase(num_rows=1024, width=768, vocab_size=30522, labelled=0.15),
    "all predicted": LinearCrossEntropyCase(num_rows=1024, width=768, vocab_size=30522, labelled=1.0),
    "bert-mini": LinearCrossEntropyCase(num_rows=4096, width=256, vocab_size=30522, labelled=0.15),
    "GPT-2 vocabulary": LinearCrossEntropyCase(num_rows=1024, width=768, vocab_size=50257, labelled=1.0, bias=False),
}
