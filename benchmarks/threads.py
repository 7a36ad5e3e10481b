"""What more threads bring: our own operators and training step on all of PyTorch's threads, and on one."""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from benchmarks import suites
from benchmarks.comparison import OURS, Comparison
from benchmarks.timing import Launch

MEASURED = {
    "attention": ("8 x 128 x 12 x 64", "8 x 128 x 12 x 64, dropout"),
    "layer_norm": ("4096 x 768", "4096 x 768 + residual, dropout"),
    "linear_cross_entropy": ("masked LM, 15 % predicted",),
    "pretraining_step": ("bert-mini, kjv 16x128",),
}
"""Suite -> its cases that are measured."""
QUICK = ("attention",)


def cases(run: suites.Run) -> Mapping[str, Callable[[], Comparison]]:
    """Return cases of other suites, each against itself."""
    found = {}
    for suite in QUICK if run.quick else MEASURED:
        whole = {case.name: case for case in suites.select([suite], suites.Run(output_dir=run.output_dir))}
        found |= {f"{suite}, {name}": partial(comparison, whole[name]) for name in MEASURED[suite]}
    return found


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
