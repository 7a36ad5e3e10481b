"""One section in a process of its own: `python -m benchmarks.gpu.section NAME FOLDER SECONDS DEVICE`."""

import importlib
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.comparison import Row
from benchmarks.environment import commit, now
from benchmarks.gpu.problem import Run, measure, reason_of
from benchmarks.gpu.state import SectionState
from benchmarks.table import summary_line
from benchmarks.timing import Effort

EFFORT = Effort(seconds=0.4, min_rounds=7, max_rounds=40, warmup_rounds=3)
REHEARSAL_EFFORT = Effort(seconds=0.01, min_rounds=2, max_rounds=2, warmup_rounds=1)


def run_section(name: str, folder: Path, seconds: float, run: Run) -> SectionState:
    """Measure what the section's file does not hold yet, and return its state.

    Args:
        name: of the section.
        folder: of the results.
        seconds: after which no further case begins.
        run: where and how long to measure.
    """
    ends = time.monotonic() + seconds
    state = SectionState.load(folder, name) or SectionState(name=name)
    state.commit, state.date, state.unreached = commit(), now(), []
    run.ends = ends
    run.excluded = {(case, contender): reason for case, contender, reason in state.excluded}

    def note(case: str, contender: str) -> None:
        state.running = (case, contender)
        state.save(folder)

    run.note = note
    if name == "ceilings":
        from benchmarks.gpu.ceilings import measure_ceilings

        state.facts = dict(measure_ceilings(run))
    else:
        _measure_cases(state, folder, ends, run)
    state.running = None
    state.save(folder)
    return state


def _measure_cases(state: SectionState, folder: Path, ends: float, run: Run) -> None:
    done = {row.case for row in state.rows} | set(state.failures)
    cases = {case: build for case, build in _cases(state.name, run).items() if case not in done}
    state.unreached = list(cases)  # a process that ends before them leaves their names
    least = getattr(importlib.import_module(f"benchmarks.gpu.{state.name}"), "LEAST_SECONDS", 0.0)
    for case, build in cases.items():
        if time.monotonic() + (0.0 if run.rehearse else least) > ends:
            break
        run.note(case, "")
        try:
            state.rows.append(build())
            print(summary_line(state.rows[-1]), flush=True)
        except Exception as error:
            # The next cases may be well; a lost CUDA context shows in the first of them, and ends the process.
            state.failures[case] = reason_of(error)
            print(f"{state.name} {case}: no result: {state.failures[case]}", flush=True)
            if run.device.type == "cuda":
                state.save(folder)
                torch.cuda.synchronize()
        state.unreached.remove(case)
        state.save(folder)
        if run.device.type == "cuda":
            torch.cuda.empty_cache()


def _cases(name: str, run: Run) -> dict[str, Callable[[], Row]]:
    cases = importlib.import_module(f"benchmarks.gpu.{name}").cases(run)
    if name == "training_step":
        return {case: partial(measure_step, case) for case, measure_step in cases.items()}

    def row(case: str, build) -> Row:
        return measure(name, case, build(), run)

    return {case: partial(row, case, build) for case, build in cases.items()}


def main(name: str, folder: str, seconds: str, device: str) -> None:
    """Run a section as the command line says."""
    rehearse = device == "cpu"
    run = Run(device=torch.device(device), effort=REHEARSAL_EFFORT if rehearse else EFFORT, rehearse=rehearse)
    run_section(name, Path(folder), float(seconds), run)


if __name__ == "__main__":
    main(*sys.argv[1:])
