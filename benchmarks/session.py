"""The pytest plugin behind `python -m benchmarks`: cases become tests, tests become rows, rows become a report."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.comparison import OURS, Comparison, Row
from benchmarks.environment import ROOT, describe
from benchmarks.memory import peak_bytes
from benchmarks.recording import write_results
from benchmarks.revisions import Worker, check_revision, checked_out, compare_revisions
from benchmarks.suites import Case, Run, select
from benchmarks.table import NOTES, rich_tables, summary_line
from benchmarks.timing import Effort

PARTIAL_RESULTS, RECORDED_RESULTS = ROOT / "build" / "benchmarks", ROOT / "benchmarks" / "results"
EFFORT, QUICK_EFFORT = Effort(), Effort(seconds=1.0, min_rounds=3, warmup_rounds=1)
_WIDTH_OF_A_FILE = 160


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure and where to leave it."""

    only: tuple[str, ...] = ()
    """Suites to run, such as attention; all of them when left out."""
    quick: bool = False
    """A first look: fewer cases, fewer rounds."""
    base: str | None = None
    """Compare this checkout with a revision of itself (commit, branch or tag) instead of with its peers."""
    output_dir: Path | None = None
    """Where results go. Default: benchmarks/results/MACHINE for a whole run, build/benchmarks for a part of one."""

    @property
    def whole(self) -> bool:
        """Whether everything is measured, so that the results may stand as the record of the machine."""
        return not (self.only or self.quick or self.base)


class BenchmarkSession:
    """Gives pytest its cases, collects the rows, reports at the end."""

    def __init__(self, options: Options) -> None:
        self.options = options
        if options.base:
            check_revision(options.base)
        self.environment = describe()
        default = RECORDED_RESULTS / self.environment.machine if options.whole else PARTIAL_RESULTS
        self.run = Run(quick=options.quick, output_dir=(options.output_dir or default).resolve())
        self.cases = select(options.only, self.run)
        self.rows: list[Row] = []
        self._workers: dict[str, Worker] = {}

    def measure(self, case: Case) -> Row:
        """Build, check, measure and record one case."""
        effort = QUICK_EFFORT if self.options.quick else EFFORT
        comparison = compare_revisions(case, self._workers) if self._workers else case.build()
        comparison.check()
        self.rows.append(_measured(case, comparison, effort))
        return self.rows[-1]

    @contextmanager
    def revisions(self) -> Iterator[None]:
        """With `--base`: hold the two revisions in two processes, and compare them instead of the peers."""
        if not self.options.base:
            yield
            return
        with ExitStack() as stack:
            base = stack.enter_context(checked_out(self.options.base))
            for name, tree in {OURS: ROOT, f"base {self.options.base}": base}.items():
                self._workers[name] = stack.enter_context(Worker(tree, quick=self.options.quick))
            yield

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Make one test of every case."""
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.cases, ids=str)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Say each row as soon as it is measured."""
        if report.when == "call" and report.passed:
            print(f"\n{summary_line(self.rows[-1])}", flush=True)

    def pytest_terminal_summary(self) -> None:
        """Print the tables and write the results."""
        if not self.rows:
            return
        console = Console()
        if not console.is_terminal:
            console.width = _WIDTH_OF_A_FILE
        for table in rich_tables(self.rows):
            console.print(table)
        console.print(f"Before the rows, {self.environment.load_text}. {NOTES}", style="dim")
        write_results(self.rows, self.environment, self.run.output_dir)
        console.print(f"Results: {self.run.output_dir}")


def _measured(case: Case, comparison: Comparison, effort: Effort) -> Row:
    seconds = comparison.measure(effort)
    memory_bytes = {name: peak_bytes(work) for name, work in comparison.memory.items()}
    remark = comparison.finish()
    return Row(
        suite=case.suite,
        case=case.name,
        seconds=seconds,
        work=comparison.work,
        unit=comparison.unit,
        limit_work=comparison.limit.work if comparison.limit else 0.0,
        limit_name=comparison.limit.name if comparison.limit else "",
        memory_bytes=memory_bytes,
        remark=remark,
    )
