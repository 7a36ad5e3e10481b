"""The runs of the comparison: which, in what order, each in a process of its own."""

import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks.comparison import OURS
from benchmarks.environment import commit, now
from benchmarks.quality import fastssl_side, hugging_face_side
from benchmarks.quality.problems import Problem
from benchmarks.quality.rows import PEER, Row

SIDES = {OURS: fastssl_side.measure, PEER: hugging_face_side.measure}


def plan(chosen: Sequence[Problem], seeds: Sequence[int]) -> Iterator[tuple[Problem, str, int]]:
    """Yield all runs, the two sides of each in turn; what has no peer is run with the first seed alone."""
    for number, seed in enumerate(seeds):
        for problem in chosen:
            if problem.has_peer:
                yield from ((problem, side, seed) for side in SIDES)
            elif number == 0:
                yield problem, OURS, seed


def run_apart(problem: Problem, side: str, seed: int, *, data: Path, model: Path) -> Row:
    """Run one in a process of its own."""
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(run_here, problem, side, seed, data=data, model=model).result()


def run_here(problem: Problem, side: str, seed: int, *, data: Path, model: Path) -> Row:
    """Run one in this process."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="fastssl-quality-") as name:
        folder = Path(name)
        files = problem.make_files(data, folder)
        figures, watch = SIDES[side](problem, files, model, seed, folder / "model")
    return Row(
        problem=problem.name,
        side=side,
        seed=seed,
        metric=problem.metric,
        score=figures[problem.metric],
        exact_match=figures.get("exact_match"),
        steps=watch.steps,
        seconds=watch.seconds,
        cpu_seconds=watch.cpu_seconds,
        threads=torch.get_num_threads(),
        load=load,
        commit=commit(),
        date=now(),
        settings=problem.settings,
    )
