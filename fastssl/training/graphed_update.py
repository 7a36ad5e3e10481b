"""The end of a step as a CUDA graph: the gradients' norm, clipping, AdamW, and zeros for the next step.

These are one graph for a whole run, since parameters and gradients stay where they are. With `GraphedPasses` the host
sends a step of a small model as two graphs and a few numbers.

What is tested without a GPU is all but the capture; `benchmarks.gpu` holds captured steps to others on one.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastssl.training.graphs import CudaGraph, Graph
from fastssl.training.optimizer import FusedAdamW, clip_factor_on_device, gradient_norm, set_learning_rate


class GraphedUpdate:
    """Clips the gradients, updates the parameters and sets the gradients to zero, without waiting for the device.

    The first update, which makes AdamW's averages, is computed operator by operator; the second one is captured, and
    replayed from then on. Where a gradient or an average is another tensor than before, it begins anew.

    Args:
        optimizer: of parameters on one device.
        max_grad_norm: of the gradients that are applied; 0: no limit.
        capture: makes a graph; another one than CUDA's in tests.
    """

    def __init__(
        self,
        optimizer: FusedAdamW,
        max_grad_norm: float,
        capture: Callable[[Callable[[], Tensor]], Graph[Tensor]] = CudaGraph,
    ) -> None:
        self._optimizer, self._max_grad_norm, self._capture = optimizer, max_grad_norm, capture
        device = optimizer.param_groups[0]["params"][0].device
        self._learning_rate, self._loss = torch.zeros(2, dtype=torch.float32, device=device).unbind()
        self._known: list[Tensor | None] | None = None
        self._graph: Graph[Tensor] | None = None

    def __call__(self, losses: Sequence[Tensor], learning_rate: float) -> Tensor:
        """Take the step that the gradients stand for, unless they or a loss are not finite.

        Args:
            losses: 0-d, of the step's batches.
            learning_rate: before the groups' own factors.

        Returns:
            The norm of the gradients before clipping, 0-d.

        Raises:
            ValueError: for sparse gradients.
        """
        self._loss.copy_(torch.stack(list(losses)).sum())
        self._learning_rate.fill_(learning_rate)
        tensors = self._tensors()
        if self._known is None or not _are_same(tensors, self._known):
            norm = self._update()
            self._known, self._graph = self._tensors(), None
        else:
            if self._graph is None:
                self._graph = self._capture(self._update_in_graph)
            norm = self._graph.replay().clone()
        set_learning_rate(self._optimizer, learning_rate)
        return norm

    def _tensors(self) -> list[Tensor | None]:
        """Return the parameters, their gradients, and AdamW's averages where there are some yet."""
        tensors = []
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    raise ValueError(
                        "cuda_graphs=True takes dense gradients, but that of a parameter of "
                        f"{tuple(parameter.shape)} is sparse; leave use_sparse_word_gradients out, or cuda_graphs"
                    )
                average = self._optimizer.state.get(parameter, {}).get("exp_avg")
                tensors += [parameter, parameter.grad, average]
        return tensors

    def _update(self) -> Tensor:
        optimizer = self._optimizer
        set_learning_rate(optimizer, self._learning_rate)
        norm = gradient_norm(optimizer)
        optimizer.step(gradient_factor=clip_factor_on_device(norm, self._max_grad_norm, [self._loss]))
        optimizer.zero_grad(set_to_none=False)
        return norm

    def _update_in_graph(self) -> Tensor:
        """Do the same while PyTorch asks optimizers whether they may be captured: a fused one counts on the device."""
        for group in self._optimizer.param_groups:
            group["capturable"] = True
        try:
            return self._update()
        finally:
            for group in self._optimizer.param_groups:
                group["capturable"] = False


def _are_same(tensors: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> bool:
    return len(tensors) == len(others) and all(one is other for one, other in zip(tensors, others, strict=True))
