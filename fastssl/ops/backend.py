"""Which implementation of an operator runs: the only backend chooser of the package.

A backend is a module with a ``forward`` function, a ``backward`` function where its forward is not differentiable by
itself, and a frozen fact sheet ``SUPPORTS``. Each operator's ``api.py`` lists its backends in the order in which
``"auto"`` tries them. An explicit name that cannot run raises an error that lists every reason.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType

import torch

from fastssl import extension


@dataclass(frozen=True, kw_only=True)
class Supports:
    """What a backend can do. Everything that is not allowed here is refused, never ignored."""

    devices: tuple[str, ...] = ()
    """Device types, such as "cpu"; empty means any."""
    dtypes: tuple[torch.dtype, ...] = ()
    """Floating types of the main input; empty means any."""
    needs_cpu_ops: bool = False
    """Whether the compiled CPU operators must be present, for tensors on the CPU."""
    needs_cuda_ops: bool = False
    """Whether the compiled CUDA operators must be present, for tensors on a CUDA device."""
    needs_triton: bool = False
    """Whether it is written in Triton, which runs on a CUDA device or, in Triton's interpreter, on the CPU."""
    unverified_on: tuple[str, ...] = ()
    """Device types on which no recorded run has verified it: there it runs when asked for by name, never by "auto"."""
    unverified: Mapping[str, Callable[..., bool]] = field(default_factory=dict)
    """What -> predicate over the call's keyword facts: the same for a part of what it does, such as "the backward"."""
    first_on: tuple[str, ...] = ()
    """Device types on which "auto" tries it before the others: the fastest of our own there."""
    refuses: Mapping[str, Callable[..., bool]] = field(default_factory=dict)
    """Reason -> predicate over the call's keyword facts; a true predicate refuses the call for that reason."""


def refusals(supports: Supports, device: torch.device, dtype: torch.dtype, facts: Mapping[str, object]) -> list[str]:
    """Return every reason why a backend cannot serve a call; an empty list means that it can.

    Args:
        supports: the backend's fact sheet.
        device, dtype: of the main input.
        facts: options of the call that the fact sheet's predicates read, by name.
    """
    reasons = []
    if supports.devices and device.type not in supports.devices:
        reasons.append(f"it runs on {', '.join(supports.devices)}, the tensors are on {device.type}")
    if supports.dtypes and dtype not in supports.dtypes:
        reasons.append(f"it takes {', '.join(map(str, supports.dtypes))}, the tensors are {dtype}")
    if supports.needs_cpu_ops and device.type == "cpu" and not extension.cpu_ops_loaded():
        reasons.append("the compiled CPU operators are not installed")
    if supports.needs_cuda_ops and device.type == "cuda" and not extension.cuda_ops_loaded():
        oldest = ".".join(map(str, extension.OLDEST_COMPUTE_CAPABILITY))
        reasons.append(f"the compiled CUDA operators are not installed, or the GPU is older than {oldest}")
    if supports.needs_triton and not extension.triton_installed():
        reasons.append("Triton is not installed")
    elif supports.needs_triton and device.type == "cpu" and not extension.triton_interprets():
        reasons.append("Triton runs on the CPU in its interpreter alone (TRITON_INTERPRET=1 before Python starts)")
    elif supports.needs_triton and device.type == "cuda" and extension.is_too_old():
        oldest = ".".join(map(str, extension.OLDEST_COMPUTE_CAPABILITY))
        reasons.append(f"its Triton kernels need compute capability {oldest}")
    reasons.extend(reason for reason, refuses in supports.refuses.items() if refuses(**facts))
    return reasons


def choose(
    op: str,
    requested: str,
    backends: Mapping[str, ModuleType],
    device: torch.device,
    dtype: torch.dtype,
    facts: Mapping[str, object],
) -> str:
    """Return the name of the backend that runs this call.

    Args:
        op: the operator's name, for errors.
        requested: "auto", or a key of `backends`.
        backends: name -> module, in the order in which "auto" tries them, but for those that are first on the device.
        device, dtype: of the main input.
        facts: options of the call that the fact sheets' predicates read, by name.

    Raises:
        ValueError: for an unknown name, or one that cannot serve the call; the message lists every reason.
    """
    if requested != "auto":
        if requested not in backends:
            raise ValueError(f"{op}: backend={requested!r} does not exist; expected 'auto' or one of {list(backends)}")
        reasons = refusals(backends[requested].SUPPORTS, device, dtype, facts)
        if reasons:
            raise ValueError(
                f"{op}: backend={requested!r} cannot run this call: {'; '.join(reasons)}; use backend='auto'"
            )
        return requested
    tried = []
    for name, module in _in_order(backends, device.type):
        reasons = refusals(module.SUPPORTS, device, dtype, facts)
        parts = [part for part, concerns in module.SUPPORTS.unverified.items() if concerns(**facts)]
        for part in ["it"] if device.type in module.SUPPORTS.unverified_on else parts:
            reasons.append(f"no recorded run has verified {part} on {device.type}; ask for it by name")
        if not reasons:
            return name
        tried.append(f"{name}: {'; '.join(reasons)}")
    raise ValueError(f"{op}: no backend can run this call. {' | '.join(tried)}")


def remembered_choice(
    op: str,
    requested: str,
    backends: Mapping[str, ModuleType],
    device: torch.device,
    dtype: torch.dtype,
    facts: Mapping[str, object],
) -> str:
    """Return what `choose` does, which it looks up where it was asked the same before: with each layer, in each step.

    Args:
        op, requested, backends, device, dtype: as in `choose`.
        facts: the same, none of them a tensor.
    """
    if torch.compiler.is_compiling():
        return choose(op, requested, backends, device, dtype, facts)
    question = (op, requested, device, dtype, *facts.values())
    sheets = [*backends, *(module.SUPPORTS for module in backends.values()), *extension.questions()]
    try:
        known = _answers.get(question)
    except TypeError:  # a symbolic size has no hash
        return choose(op, requested, backends, device, dtype, facts)
    if known is not None and known[0] == sheets:
        return known[1]
    name = choose(op, requested, backends, device, dtype, facts)
    if len(_answers) >= _MOST_ANSWERS:
        _answers.clear()
    _answers[question] = (sheets, name)
    return name


_answers: dict[tuple, tuple[list, str]] = {}
"""Question -> what the answer depends on beside it, and the answer."""
_MOST_ANSWERS = 1 << 12


def _in_order(backends: Mapping[str, ModuleType], device_type: str) -> Iterator[tuple[str, ModuleType]]:
    """Yield backends in the order in which "auto" tries them on a device."""
    for first in (True, False):
        for name, module in backends.items():
            if (device_type in module.SUPPORTS.first_on) is first:
                yield name, module
