"""What the machine gives at best: copies, products in each dtype and size, and the time to launch nothing."""

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.gpu.limits import copy_of, product_of
from benchmarks.gpu.problem import Run
from benchmarks.timing import Effort, interleave, spread

COPY_BYTES = 2**32
"""Read and written together: far beyond any cache."""
SIZES = (2048, 4096, 8192, 16384)
LAUNCHES = 200
EFFORT = Effort(seconds=1.0, min_rounds=5, max_rounds=50, warmup_rounds=2)


def measure_ceilings(run: Run) -> Mapping[str, dict[str, Any]]:
    """Return name -> value and unit: the best that this device gave for a copy, products, and launches."""
    effort = run.effort if run.rehearse else EFFORT
    sizes, copied = ((64,), 2**16) if run.rehearse else (SIZES, COPY_BYTES)
    found = {"copy": {"value": _rate(copy_of(run.device, copied), run, effort), "unit": "B/s"}}
    for dtype in (torch.bfloat16, torch.float16):
        for size in sizes:
            name = f"product {str(dtype).removeprefix('torch.')} {size}"
            found[name] = {"value": _rate(product_of(run.device, dtype, size), run, effort), "unit": "FLOP/s"}
    for name, head_start in (("launch from Python", 0.0), ("launch, handed over before", 4e-3)):
        found[name] = {"value": _seconds_of_a_launch(run, head_start), "unit": "s"}
    return found


def _rate(limit, run: Run, effort: Effort) -> float:
    seconds = interleave({"": limit.launch(run.clock)}, effort)[""]
    return limit.work / spread(seconds).median


def _seconds_of_a_launch(run: Run, head_start_seconds: float) -> float:
    """Return the time of one of many tiny kernels: bound by the host without a head start, by the device with one."""
    number, clock = torch.zeros(1, device=run.device), run.clock

    def many() -> None:
        for _ in range(LAUNCHES):
            number.add_(1.0)

    many()
    return spread([clock.seconds(many, head_start_seconds)[0] for _ in range(5)]).median / LAUNCHES
