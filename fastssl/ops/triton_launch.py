"""Launches of Triton kernels, the second and later of a kind without Triton's own way to the compiled kernel.

That way goes by every argument and option, and for forty of them takes the host longer than everything else that an
operator does, and as long as many a kernel runs. Equal arguments need no second look.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

MOST_KEPT = 1 << 14
"""Launches that are remembered. They are told apart by their sizes, of which packed batches have ever new ones."""
ALIGNMENT = 16
"""Bytes: Triton compiles a kernel anew for a pointer that is no multiple of it."""
_compiled: dict[tuple, tuple[object, object]] = {}
"""What a launch depends on -> the kernel, whose number is part of that, and what was compiled of it."""


def launch(
    kernel,
    grid: tuple[int, ...],
    tensors: Sequence[Tensor | tuple | None],
    numbers: Sequence[int | float | None],
    *,
    options: Mapping[str, object],
    **constants: object,
) -> None:
    """Do what ``kernel[grid](*tensors, *numbers, **constants, **options)`` does, on the current device.

    Args:
        kernel: the `@triton.jit` function, compiled or interpreted.
        grid: programs along one to three axes.
        tensors: its first arguments: tensors, tuples of a tensor and strides, None.
        numbers: those that follow.
        options: of the compiler, such as `num_warps`.
        constants: its last arguments, by name and in their order: the `tl.constexpr`.
    """
    kinds: list[object] = []
    for tensor in tensors:
        if isinstance(tensor, tuple):
            tensor, *strides = tensor
            kinds += strides
        if tensor is None:
            kinds.append(None)
        else:
            kinds.append(tensor.dtype)
            if tensor.data_ptr() % ALIGNMENT:
                kinds.append("not aligned")
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    key = (id(kernel), device, *kinds, *numbers, *map(type, numbers), *constants.values(), *options.values())
    known = _compiled.get(key)
    if known is not None:
        known[1][(*grid, 1, 1)[:3]](*tensors, *numbers, *constants.values())
        return
    compiled = kernel[grid](*tensors, *numbers, **constants, **options)
    # None is what the interpreter returns. A kernel of AMD's depends on the sizes of tensors, too.
    if compiled is not None and torch.version.hip is None:
        if len(_compiled) >= MOST_KEPT:
            _compiled.clear()
        _compiled[key] = (kernel, compiled)
