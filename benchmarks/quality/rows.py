"""What is kept of each run, and the table that is made of it."""

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks.comparison import OURS
from benchmarks.environment import Origin
from benchmarks.quality.problems import Problem

PEER = "HF Trainer"
NOTES = (
    "The same weights (all-MiniLM-L6-v2), hyperparameters and order of examples on both sides; heads and dropout are "
    "each side's own draw. The score is that of the last weights, mean ± standard deviation over the seeds. Seconds "
    "are those from the files to the trained weights, by the clock and of the processor."
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run."""

    problem: str
    """Name of the problem."""
    side: str
    """Who learnt it."""
    seed: int
    """Of head, order and dropout."""
    metric: str
    """Name of the main figure."""
    score: float
    """The main figure."""
    exact_match: float | None
    """Beside the F1 of answers; None elsewhere."""
    steps: int
    """Of the optimizer."""
    seconds: float
    """From the files to the trained weights."""
    cpu_seconds: float
    """Of the processor meanwhile."""
    threads: int
    """Of PyTorch."""
    load: float
    """Processes that wanted to run in the minute before, other work included."""
    commit: str
    """Of this project."""
    date: str
    """When the run was done."""
    settings: str
    """What else decides the score."""

    @property
    def key(self) -> tuple[str, str, int]:
        """What a run is told apart by."""
        return self.problem, self.side, self.seed


def read_rows(path: Path) -> list[Row]:
    """Return the runs that a file holds; none where there is no file."""
    if not path.exists():
        return []
    kinds = {field.name: field.type for field in fields(Row)}
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Row(**{name: None if value == "" else _read(value, kinds[name]) for name, value in row.items()})
            for row in csv.DictReader(file)
        ]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write all runs anew, so that a run that was stopped leaves no half of a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    anew = path.with_suffix(".tmp")
    with anew.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            values = asdict(row)
            writer.writerow({n: f"{v:.6g}" if isinstance(v, float) else v for n, v in values.items()})
    anew.replace(path)


def markdown(rows: Sequence[Row], problems: Mapping[str, Problem], machine: Origin, remark: str = "") -> str:
    """Return the report: machine, notes, a table with a line for each problem and side, and what follows from it."""
    lines = [f"# Quality of fine-tuning, {machine.title}", "", NOTES]
    lines += ["", remark] if remark else []
    lines += ["", "| problem | side | seeds | scores | mean | exact match | seconds | processor |", "|" + " :-- |" * 8]
    verdicts = []
    for name, problem in problems.items():
        sides = {side: [row for row in rows if (row.problem, row.side) == (name, side)] for side in (OURS, PEER)}
        lines += [_line(problem, side, found) for side, found in sides.items() if found]
        if sides[OURS]:
            verdicts.append(f"* **{name}**: {verdict(problem, sides[OURS], sides[PEER])}")
    settings = {row.problem: row.settings for row in rows}
    lines += ["", *verdicts, "", *(f"* {name}: {settings[name]}" for name in problems if name in settings)]
    return "\n".join(lines) + "\n"


def verdict(problem: Problem, ours: Sequence[Row], peers: Sequence[Row]) -> str:
    """Return in words how a problem went; the spread is the larger standard deviation of the two sides."""
    mean = statistics.fmean(row.score for row in ours)
    said = []
    if problem.goal is not None:
        said.append(f"{problem.metric} {mean:.4f}, {'at least' if mean >= problem.goal else 'below'} {problem.goal:g}")
    seeds = {row.seed for row in ours} & {row.seed for row in peers}
    if seeds:
        one, other = ([row for row in side if row.seed in seeds] for side in (ours, peers))
        difference = statistics.fmean(r.score for r in one) - statistics.fmean(r.score for r in other)
        spread = max(_deviation(side) for side in (one, other))
        within = f" (standard deviation {spread:.4f})" if len(seeds) > 1 else " (one seed)"
        shares = (sum(getattr(row, name) for row in one) / sum(getattr(row, name) for row in other) for name in _TIMES)
        said.append(
            f"{problem.metric} {difference:+.4f} against {PEER}{within}, in {next(shares):.0%} of its time by the "
            f"clock and {next(shares):.0%} of its processor time"
        )
    return "; ".join(said) or f"{problem.metric} {mean:.4f}"


_TIMES = ("seconds", "cpu_seconds")


def _line(problem: Problem, side: str, rows: Sequence[Row]) -> str:
    mean = statistics.fmean(row.score for row in rows)
    exact = [row.exact_match for row in rows if row.exact_match is not None]
    cells = [
        problem.name,
        side,
        " ".join(str(row.seed) for row in rows),
        " ".join(f"{row.score:.4f}" for row in rows),
        f"{problem.metric} {mean:.4f}" + (f" ± {_deviation(rows):.4f}" if len(rows) > 1 else ""),
        f"{statistics.fmean(exact):.4f}" if exact else "",
        *(f"{statistics.fmean(getattr(row, name) for row in rows):.0f}" for name in _TIMES),
    ]
    return "| " + " | ".join(cells) + " |"


def _deviation(rows: Sequence[Row]) -> float:
    return statistics.stdev(row.score for row in rows) if len(rows) > 1 else 0.0


def _read(value: str, kind: type) -> object:
    return kind(value) if kind in (str, int) else float(value)
