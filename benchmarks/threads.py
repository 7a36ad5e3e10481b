"""What more threads bring: our own operators and training step on all of PyTorch's threads, and on one.

The machine's product and copy are measured likewise, under the name of our side: no work scales better than these.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from benchmarks import suites
from benchmarks.comparison import OURS, Comparison
from benchmarks.limits import Limit, copy_of, square_sgemm
from benchmarks.timing import Launch

MEASURED = {
    "attention": ("8 x 128 x 12 x 64", "8 x 128 x 12 x 64, dropout"),
    "layer_norm": ("4096 x 768", "4096 x 768 + residual, dropout"),
    "linear_cross_entropy": ("masked LM, 15 % predicted",),
    "pretraining_step": ("bert-mini, kjv 16x128",),
}
"""Suite -> its cases that are measured."""
QUICK = ("attention",)
LIMITS = {
    "the machine's sgemm, 1024 x 1024 x 1024": ("FLOP", square_sgemm),
    "the machine's copy, 63 MB": ("B", partial(copy_of, 63_000_000)),
}
"""Plain work that is measured in the same way: as many bytes as a layer norm of 4096 x 768 moves, and a product."""


def cases(run: suites.Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return cases of other suites, each against itself."""
    found = {}
    for suite in QUICK if run.quick else MEASURED:
        whole = {case.name: case for case in suites.select([suite], suites.Run(output_dir=run.output_dir))}
        found |= {f"{suite}, {name}": partial(comparison, whole[name]) for name in MEASURED[suite]}
    return found if run.quick else found | {name: partial(machine, *limit) for name, limit in LIMITS.items()}


def machine(unit: str, make_limit: Callable[[], Limit]) -> Comparison:
    """Compare the machine itself: what its second thread brings to plain work bounds what it can bring to ours."""
    limit = make_limit()
    return Comparison(
        contenders={OURS: limit.launch, "own, one thread": _on_one_thread(limit.launch)},
        check=lambda: None,
        work=limit.work,
        unit=unit,
    )


def comparison(case: suites.Case) -> Comparison:
    """Compare our side of a case with itself on one thread."""
    of_case = case.build()
    launch = of_case.contenders[OURS]
    return Comparison(
        contenders={OURS: launch, "own, one thread": _on_one_thread(launch)},
        check=of_case.check,
        work=of_case.work,
        unit=of_case.unit,
        effort=of_case.effort,
    )


def _on_one_thread(launch: Launch) -> Launch:
    def launch_alone() -> float:
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return launch()
        finally:
            torch.set_num_threads(num_threads)

    return launch_alone
