"""One case on a device: our backends and the peers on the same inputs, admitted one by one, then timed in turn."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from benchmarks.comparison import LIMIT, OURS, Row
from benchmarks.gpu.clock import Clock, Prepared, clock_of, number_of_sets, rotating
from benchmarks.gpu.limits import DeviceLimit
from benchmarks.ops.agreement import assert_agreement, forward_backward, widened
from benchmarks.timing import Effort, interleave, spread

Direction = Literal["forward", "backward", "forward + backward"]
Function = Callable[..., Tensor]
"""Takes the inputs by name and returns one tensor."""

GPU_BACKENDS = ("native", "triton")
"""Backends of ours that most operators have; "auto" is one of them."""
FALLBACK = "auto"
"""What is measured where none of them can run: what users get today."""
_END_LENGTH = 200


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is computed, and by whom."""

    draw: Callable[[int], dict[str, Tensor]]
    """Number -> a set of floating inputs by name, on the device; another number, other values."""
    ours: Function
    """Our operator, which takes `backend` beside the inputs."""
    peers: Mapping[str, Function]
    """Name -> the same function by a peer."""
    direction: Direction
    """What is timed."""
    backends: tuple[str, ...] = GPU_BACKENDS
    """Ours that are measured by name."""
    work: float
    """Useful work of one launch."""
    unit: str
    """ "FLOP" or "B"."""
    limit: DeviceLimit
    """What the device gives for such work."""
    comparable: bool = True
    """Whether peers compute the same numbers (with dropout they do not: their masks differ)."""
    checked: "Problem | None" = None
    """The same at a size at which the definition in float64 is affordable; None: this one itself."""
    memory: bool = False
    """Whether peak memory is to be reported."""
    remark: str = ""
    """What the report should say of this case."""


@dataclass(kw_only=True)
class Run:
    """Where and how long to measure, and what is known to fail."""

    device: torch.device
    """The device."""
    effort: Effort
    """How long to time a case."""
    rehearse: bool = False
    """Whether sizes are tiny, for a walk through without a GPU."""
    excluded: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(case, contender) -> why it is left out, such as that it brought the process down."""
    note: Callable[[str, str], None] = lambda case, contender: None
    """Told of each (case, contender) before it runs for the first time, and of (case, "") before they are timed."""
    ends: float = math.inf
    """By `time.monotonic`: when the section's time is up."""

    @cached_property
    def clock(self) -> Clock:
        """The device's clock."""
        return clock_of(self.device)


def measure(suite: str, case: str, problem: Problem, run: Run) -> Row:
    """Admit the contenders, time them in turn, and return the row of the report.

    Our best backend is the row's "fastssl"; the others of ours stand beside it as "own <backend>". Who is not admitted
    is named in the remark with the reason.

    Raises:
        RuntimeError: when none of ours is right.
    """
    admitted, refused = _admit(case, problem, run)
    own = [name for name in admitted if name.startswith("own ")]
    if not own:
        raise RuntimeError("; ".join(f"{name}: {reason}" for name, reason in refused.items()))
    run.note(case, "")
    sets = _sets(problem, run)
    launches = {name: _launch(function, problem, sets, run) for name, function in admitted.items()}
    seconds = interleave({**launches, LIMIT: problem.limit.launch(run.clock)}, run.effort)
    best = min(own, key=lambda name: spread(seconds[name]).median)
    memory = {name: _peak_bytes(admitted[name], sets[0], run) for name in admitted} if problem.memory else {}
    facts = [f"fastssl is {best.removeprefix('own ')}", problem.remark]
    facts += [f"{name} left out: {reason}" for name, reason in refused.items()]
    return Row(
        suite=suite,
        case=case,
        seconds={OURS: seconds.pop(best), **seconds},
        work=problem.work,
        unit=problem.unit,
        limit_work=problem.limit.work,
        limit_name=problem.limit.name,
        memory_bytes={OURS if name == best else name: value for name, value in memory.items() if value is not None},
        remark="; ".join(fact for fact in facts if fact),
    )


def _admit(case: str, problem: Problem, run: Run) -> tuple[dict[str, Function], dict[str, str]]:
    """Return the contenders whose outputs and gradients hold, and the reasons against the others."""
    small = problem.checked or problem
    inputs = small.draw(0)
    cotangent = _cotangent(small, inputs)
    definition = _by_backend(small.ours, "reference")
    exact = forward_backward(definition, widened(inputs), None if cotangent is None else cotangent.double())()
    same = forward_backward(definition, inputs, cotangent)()

    def check(name: str, function: Function) -> None:
        own = name.startswith("own ")
        if own or small.comparable:
            launch = forward_backward(function, inputs, cotangent)
            # The dtype of the inputs: a loss of bf16 products is as exact as they are, though it is float32.
            assert_agreement({OURS if own else name: launch}, same, exact, _dtype(inputs))

    admitted, refused = {}, {}
    checked, whole = _contenders(small), _contenders(problem)
    for name, function in whole.items():
        reason = run.excluded.get((case, name)) or _attempt(case, name, checked[name], function, problem, check, run)
        if reason:
            refused[name] = reason
        else:
            admitted[name] = function
    if not any(name.startswith("own ") for name in admitted):
        name, function = f"own {FALLBACK}", _by_backend(problem.ours, FALLBACK)
        reason = _attempt(case, name, _by_backend(small.ours, FALLBACK), function, problem, check, run)
        if reason:
            refused[name] = reason
        else:
            admitted[name] = function
    return admitted, refused


def _attempt(
    case: str,
    name: str,
    small: Function,
    function: Function,
    problem: Problem,
    check: Callable[[str, Function], None],
    run: Run,
) -> str:
    """Check a contender, run it once at full size, and return why it cannot take part; "" where it can.

    Whatever one contender raises must not cost the others their turn, so every exception becomes a reason.
    """
    run.note(case, name)
    try:
        check(name, small)
        _prepared(function, problem, problem.draw(0))()()
        if run.device.type == "cuda":
            torch.cuda.synchronize()
    except Exception as error:
        if run.device.type == "cuda":
            torch.cuda.synchronize()  # raises again where the context is lost; the process then starts anew without it
        return reason_of(error)
    return ""


def reason_of(error: Exception) -> str:
    """Return an error in a line of a report: of a long one, such as another process's traceback, the two ends."""
    message = " ".join(f"{type(error).__name__}: {error}".split())
    if len(message) <= 2 * _END_LENGTH:
        return message
    return f"{message[:_END_LENGTH]} ... {message[-_END_LENGTH:]}"


def _contenders(problem: Problem) -> dict[str, Function]:
    return {f"own {name}": _by_backend(problem.ours, name) for name in problem.backends} | dict(problem.peers)


def _by_backend(ours: Function, backend: str) -> Function:
    return lambda **inputs: ours(**inputs, backend=backend)


def _dtype(inputs: Mapping[str, Tensor]) -> torch.dtype:
    return next(iter(inputs.values())).dtype


def _cotangent(problem: Problem, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """Return a gradient of the output, or None where the output is a loss."""
    with torch.no_grad():
        out = _by_backend(problem.ours, "reference")(**inputs)
    if out.dim() == 0:
        return None
    generator = torch.Generator(out.device).manual_seed(3)
    return torch.randn(out.shape, device=out.device, generator=generator).to(out.dtype)


def _sets(problem: Problem, run: Run) -> list[dict[str, Tensor]]:
    first = problem.draw(0)
    count = number_of_sets(run.device, sum(tensor.nbytes for tensor in first.values()))
    return [first, *(problem.draw(number) for number in range(1, count))]


def _launch(function: Function, problem: Problem, sets: Sequence[Mapping[str, Tensor]], run: Run):
    return rotating([_prepared(function, problem, inputs) for inputs in sets], run.clock)


def _prepared(function: Function, problem: Problem, inputs: Mapping[str, Tensor]) -> Prepared:
    """Return what is timed on one set of inputs, behind what is not."""
    if problem.direction == "forward":

        def forward() -> Tensor:
            with torch.no_grad():
                return function(**inputs)

        return lambda: forward
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    cotangents: list[Tensor | None] = []

    def cotangent_of(out: Tensor) -> Tensor | None:
        if not cotangents:
            cotangents.append(None if out.dim() == 0 else torch.randn_like(out))
        return cotangents[0]

    if problem.direction == "backward":

        def after_forward() -> Callable[[], object]:
            out = function(**leaves)
            cotangent = cotangent_of(out)
            return lambda: torch.autograd.grad(out, list(leaves.values()), cotangent)

        return after_forward

    def both() -> object:
        out = function(**leaves)
        return torch.autograd.grad(out, list(leaves.values()), cotangent_of(out))

    return lambda: both


def _peak_bytes(function: Function, inputs: Mapping[str, Tensor], run: Run) -> int | None:
    """Return the peak memory of forward and backward beyond the inputs and the gradients; None off a GPU."""
    if run.device.type != "cuda":
        return None
    launch = forward_backward(function, inputs)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    returned = sum(tensor.nbytes for tensor in launch().values())
    torch.cuda.synchronize()
    return max(torch.cuda.max_memory_allocated() - before - returned, 0)
