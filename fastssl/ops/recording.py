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
    return torch.is_grad_enabled() and any(tensor is not None and asks_for_gradient(tensor) for tensor in tensors)


def tracers_are_active() -> bool:
    """Return whether a call is compiled, transformed or differentiated forward: then operators are called apart."""
    return (
        torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )


def asks_for_gradient(tensor: Tensor) -> bool:
    """Return whether a tensor requires a gradient, or stands for one that does.

    Inside of `torch.func.vmap` a tensor by itself says nothing of what is asked of the one outside.
    """
    if tensor.requires_grad or not torch._C._are_functorch_transforms_active():
        return tensor.requires_grad
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
        if tensor.requires_grad:
            return True
    return False


def differentiable_once(backward: Callable) -> Callable:
    """Decorate the backward of an `autograd.Function` whose gradients are constants.

    It is called as ``backward(ctx, saved, *grads)``, where ``saved()`` returns ``ctx.saved_tensors``: a checkpoint lets
    them be asked for once. Among them must be all inputs that have gradients, or an output, which leads to all of them.

    Whoever asks for gradients of the gradients (``create_graph=True``) gets an error when they come to be
    differentiated. `torch.autograd.function.once_differentiable` gives that error only where the incoming gradient
    depends on what is differentiated, and zeros otherwise.
    """

    @functools.wraps(backward)
    def wrapped(ctx, *grads):
        if not torch.is_grad_enabled():
            return backward(ctx, lambda: ctx.saved_tensors, *grads)
        unpacked = []

        def saved() -> list[Tensor | None]:
            if not unpacked:
                unpacked.extend(ctx.saved_tensors)
            return unpacked

        with torch.no_grad():
            found = backward(ctx, saved, *grads)
        return _refusing_gradients(found, (*saved(), *grads))

    return wrapped


def _refusing_gradients(
    found: tuple[Tensor | None, ...], sources: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """Return the gradients as results of a node that refuses, on the way from them to all that they depend on.

    Without the way autograd would not pass the node where it looks for the gradients of some tensors alone.
    """
    places = [place for place, gradient in enumerate(found) if gradient is not None]
    gradients = [found[place].detach().requires_grad_() for place in places]
    sources = [source for source in sources if source is not None and source.requires_grad]
    refusing = torch._C._functions.DelayedError(_TWICE, len(gradients) + len(sources))(*gradients, *sources)
    refusing = (refusing,) if isinstance(refusing, Tensor) else refusing[: len(places)]
    result = list(found)
    for place, gradient in zip(places, refusing, strict=True):
        result[place] = gradient
    return tuple(result)
