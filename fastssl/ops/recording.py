"""What operators with a backward of their own owe to autograd: when it records a call, and that it does so once."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

_TWICE = b"fastssl: this operator's gradient has no gradient of its own; use backend='reference', which has"


def is_recorded(*tensors: Tensor | None) -> bool:
    """Return whether autograd has to know of a call.

    Inside of forward-mode differentiation it always does: an `autograd.Function` without a `jvp` refuses that, and an
    operator by itself would lose the tangents without a word.
    """
    if forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def differentiable_once(backward: Callable) -> Callable:
    """Decorate the backward of an `autograd.Function` whose gradients are constants.

    Whoever asks for gradients of theirs (``create_graph=True``) gets an error when they come to be differentiated.
    `torch.autograd.function.once_differentiable` gives that error only where the incoming gradient depends on what is
    differentiated, and zeros otherwise.
    """

    @functools.wraps(backward)
    def wrapped(ctx, *grads):
        with torch.no_grad():
            found = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return found
        single = not isinstance(found, tuple)
        refused = _refusing_gradients((found,) if single else found)
        return refused[0] if single else refused

    return wrapped


def _refusing_gradients(found: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    places = [place for place, gradient in enumerate(found) if gradient is not None]
    refuse = torch._C._functions.DelayedError(_TWICE, len(places))
    refusing = refuse(*(found[place].detach().requires_grad_() for place in places))
    refusing = (refusing,) if isinstance(refusing, Tensor) else refusing
    result = list(found)
    for place, gradient in zip(places, refusing, strict=True):
        result[place] = gradient
    return tuple(result)
