"""Named lists of parameters of `adamw_`, for tests and benchmarks."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AdamWCase:
    """The parameters of one call."""

    shapes: tuple[tuple[int, ...], ...]
    """One a parameter."""
    row_gradients: bool = False
    """Whether the gradients of matrices are sparse: a third of the rows."""

    def inputs(self, dtype: torch.dtype) -> dict[str, list[Tensor]]:
        """Return the lists of a call, by the names of the arguments; the same for every call of this method."""
        generator = torch.Generator().manual_seed(5)

        def draw(scale: float) -> list[Tensor]:
            return [(torch.randn(shape, generator=generator) * scale).to(dtype) for shape in self.shapes]

        gradients = draw(0.1)
        if self.row_gradients:
            gradients = [self._rows(g, generator) if g.dim() == 2 else g for g in gradients]
        squares = [s.square() for s in draw(0.1)]
        return {"parameters": draw(1.0), "gradients": gradients, "exp_avgs": draw(0.1), "exp_avg_sqs": squares}

    def _rows(self, gradient: Tensor, generator: torch.Generator) -> Tensor:
        rows = torch.randperm(len(gradient), generator=generator)[: -(-len(gradient) // 3)]
        return torch.sparse_coo_tensor(rows[None], gradient[rows], gradient.shape, check_invariants=True).coalesce()


EDGE_CASES = {
    "one number": AdamWCase(shapes=((1,),)),
    "none": AdamWCase(shapes=((0, 3), (5,))),
    "primes": AdamWCase(shapes=((7, 131), (13,), (3, 5, 11))),
    "several ranges": AdamWCase(shapes=((300, 701), (1,))),
    "rows": AdamWCase(shapes=((31, 19), (19,)), row_gradients=True),
    "wide rows": AdamWCase(shapes=((5, 70_001),), row_gradients=True),
}

_BERT_LAYER = ((2304, 768), (2304,), (768, 768), (3072, 768), (3072,), (768, 3072), (768,), (768,), (768,), (768,))
BENCHMARK_CASES = {
    "four layers of bert-base": AdamWCase(shapes=_BERT_LAYER * 4),
    "words of MiniLM, a third with gradients": AdamWCase(shapes=((30522, 384),), row_gradients=True),
}
