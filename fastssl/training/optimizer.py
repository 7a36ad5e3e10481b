"""AdamW, with weight decay on matrices only, and clipping that costs no pass of its own."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from fastssl.ops.adamw.api import adamw_, squared_norm
from fastssl.training.config import TrainingConfig
from fastssl.training.row_gradients import RowGradients, values_of_gradients


class FusedAdamW(AdamW):
    """torch's AdamW, state and all, whose step on a CPU is one pass over memory, `fastssl.ops.adamw`.

    Elsewhere, and for other dtypes than float32, its step is that of torch's fused AdamW. Sparse gradients of
    embeddings are taken as dense ones of the same numbers.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs, fused=True)
        self._row_gradients = RowGradients()
        self._touched: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, closure=None, *, gradient_factor: float | Tensor = 1.0) -> None:
        """Update the parameters that have a gradient.

        Args:
            closure: not taken; torch's signature has it.
            gradient_factor: of all gradients, as `clip_factor` gives it; or as `clip_factor_on_device` does, which the
                host never reads: NaN leaves parameters and state as they are.
        """
        if closure is not None:
            raise ValueError("FusedAdamW.step takes no closure; compute the gradients before it")
        parameters = _parameters_with_gradients(self)
        if isinstance(gradient_factor, Tensor):
            self._step_unread(parameters, gradient_factor)
            return
        if all(p.device.type == "cpu" and p.dtype == torch.float32 and p.is_contiguous() for p in parameters):
            for group in self.param_groups:
                self._update(group, gradient_factor)
            return
        _scale(values_of_gradients(parameters), gradient_factor)
        with self._row_gradients.dense(parameters):
            super().step()

    def _step_unread(self, parameters: Sequence[nn.Parameter], gradient_factor: Tensor) -> None:
        """Take torch's fused step, which divides gradients by a tensor and does nothing where another one is 1."""
        skipped = gradient_factor.isnan()
        self.grad_scale = torch.where(skipped, 1.0, gradient_factor).reciprocal()
        self.found_inf = skipped.float()
        try:
            with self._row_gradients.dense(parameters):
                super().step()
        finally:
            self.grad_scale = self.found_inf = None

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over a state, torch's or ours."""
        super().load_state_dict(state_dict)
        self._touched.clear()

    def _update(self, group: dict, gradient_factor: float) -> None:
        """Take a step of one group's parameters; those of one age in one call."""
        by_step: dict[int, list[nn.Parameter]] = defaultdict(list)
        with_gradients = [p for p in group["params"] if p.grad is not None]
        for p, step in zip(with_gradients, self._count(with_gradients), strict=True):
            by_step[step].append(p)
        beta1, beta2 = group["betas"]
        for step, parameters in by_step.items():
            adamw_(
                parameters,
                [p.grad.coalesce() if p.grad.is_sparse else p.grad for p in parameters],
                [self.state[p]["exp_avg"] for p in parameters],
                [self.state[p]["exp_avg_sq"] for p in parameters],
                step=step,
                lr=float(group["lr"]),
                beta1=beta1,
                beta2=beta2,
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                gradient_factor=gradient_factor,
                touched=[self._rows_touched(p) if p.grad.is_sparse else None for p in parameters],
            )

    def _count(self, parameters: Sequence[nn.Parameter]) -> list[int]:
        """Add one to the steps of parameters, whose states begin with the first, and return them."""
        if not parameters:
            return []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        steps = [self.state[parameter]["step"] for parameter in parameters]
        torch._foreach_add_(steps, 1)
        return torch.stack(steps).int().tolist()

    def _rows_touched(self, parameter: nn.Parameter) -> Tensor:
        """Return which rows of a matrix have averages that are not zero: those that ever had a gradient."""
        if parameter not in self._touched:
            averages = (self.state[parameter][name] for name in ("exp_avg", "exp_avg_sq"))
            first, second = (average.flatten(1).any(dim=1) for average in averages)
            self._touched[parameter] = first | second
        return self._touched[parameter]


def parameter_groups(
    model: nn.Module, weight_decay: float, lr_scales: Mapping[str, float] | None = None
) -> list[dict[str, object]]:
    """Return groups of trainable parameters: with decay (two dimensions or more), and without (biases, norms).

    Args:
        model: whose parameters.
        weight_decay: of matrices.
        lr_scales: parameter's name -> factor of its learning rate, the "lr_scale" of its group; 1 where not named.
    """
    groups: dict[float, tuple[list, list]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed, plain = groups.setdefault((lr_scales or {}).get(name, 1.0), ([], []))
            (decayed if parameter.ndim >= 2 else plain).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for scale, pair in groups.items()
        for parameters, decay in zip(pair, (weight_decay, 0.0), strict=True)
    ]


def make_optimizer(
    model: nn.Module, config: TrainingConfig, lr_scales: Mapping[str, float] | None = None
) -> FusedAdamW:
    """Return AdamW (Loshchilov and Hutter, arXiv 1711.05101) over the model's trainable parameters.

    Raises:
        ValueError: if the model has no trainable parameter.
    """
    groups = [group for group in parameter_groups(model, config.weight_decay, lr_scales) if group["params"]]
    if not groups:
        raise ValueError("the model has no trainable parameter; expected at least one with requires_grad=True")
    return FusedAdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of every group, times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """Return the global 2-norm of all gradients, 0-d."""
    return _total_norm(values_of_gradients(_parameters_with_gradients(optimizer)))


def clip_factor(norm: Tensor, max_norm: float) -> float:
    """Return the factor that brings gradients of this norm to one of at most `max_norm` (0: no limit)."""
    if max_norm > 0 and not norm <= max_norm:
        return float(max_norm / (norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_
    return 1.0


def clip_factor_on_device(norm: Tensor, max_norm: float, losses: Sequence[Tensor]) -> Tensor:
    """Return what `clip_factor` returns as a tensor beside the gradients, NaN where a step must not be taken.

    Args:
        norm: of the gradients, 0-d.
        max_norm: 0: no limit.
        losses: 0-d; a step is taken where these and the norm are finite.
    """
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0) if max_norm > 0 else torch.ones_like(norm)
    finite = torch.stack([norm, *(loss.to(norm.dtype) for loss in losses)]).isfinite().all()
    return torch.where(finite, factor, torch.nan)


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
    """Scale all gradients to a global 2-norm of at most `max_norm` (0: leave them) and return the norm before, 0-d."""
    gradients = values_of_gradients(_parameters_with_gradients(optimizer))
    norm = _total_norm(gradients)
    _scale(gradients, clip_factor(norm, max_norm))
    return norm


def _parameters_with_gradients(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def _scale(gradients: list[Tensor], factor: float) -> None:
    if factor != 1.0:
        for gradient in gradients:
            gradient.mul_(factor)


def _total_norm(gradients: list[Tensor]) -> Tensor:
    """Return the 2-norm of all gradients together, 0-d."""
    if any(gradient.device.type != "cpu" or gradient.dtype != torch.float32 for gradient in gradients):
        return nn.utils.get_total_norm(gradients)
    return squared_norm(gradients).sqrt().float()
