"""The definition of `adamw_` in plain PyTorch, for any floating dtype and device."""

from fastssl.ops.backend import Supports

SUPPORTS = Supports()


def update(
    parameters, gradients, exp_avgs, exp_avg_sqs, touched, *, step, lr, beta1, beta2, eps, weight_decay, gradient_factor
) -> None:
    """Take the step of `fastssl.ops.adamw`."""
    for p, gradient, m, v, rows in zip(parameters, gradients, exp_avgs, exp_avg_sqs, touched, strict=True):
        if gradient.is_sparse:
            if rows is not None:
                rows[gradient.indices()[0]] = True
            gradient = gradient.to_dense()
        g = gradient * gradient_factor
        m.mul_(beta1).add_(g * (1 - beta1))
        v.mul_(beta2).add_(g * g * (1 - beta2))
        root = (v / (1 - beta2**step)).sqrt() + eps
        p.mul_(1 - lr * weight_decay).sub_(lr / (1 - beta1**step) * (m / root))
