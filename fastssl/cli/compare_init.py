"""``fastssl compare-init``: what was pretraining worth for a task?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fastssl.cli.flags import parse_flags
from fastssl.cli.plain_table import plain_table
from fastssl.tasks.comparison.compare_init import FIGURE_FILE, SUMMARY_FILE, TABLE_FILE, Comparison, compare_init
from fastssl.tasks.comparison.config import STARTS, CompareInitConfig
from fastssl.tasks.comparison.label_budget import FIGURE_FILE as BUDGET_FIGURE
from fastssl.tasks.comparison.label_budget import SUMMARY_FILE as BUDGET_SUMMARY
from fastssl.tasks.comparison.label_budget import TABLE_FILE as BUDGET_TABLE
from fastssl.tasks.comparison.label_budget import BudgetPoint, LabelBudgetExperiment, LabelBudgets


@dataclass(frozen=True, kw_only=True)
class CompareInitFlags(CompareInitConfig):
    """Learn a task twice, from a pretrained model and from random weights of the same shape, and draw both curves.

    Both runs see the same examples in the same order, with the same seed; all flags of finetune hold for both. The
    output directory gets the runs (pretrained/, from-scratch/), a figure, a CSV of the curves and a JSON summary. What
    was stopped goes on with --resume-from-checkpoint last.

    With --label-budget, many short runs answer instead how the two compare as labelled examples become fewer: each
    budget is a random part of the file in which every class occurs, the smaller ones inside the larger ones; the score
    is that of the end of each run, and no checkpoints are kept.

    Examples:
      fastssl compare-init --task classification --model bert-base-uncased/ --train-file train.tsv --eval-file dev.tsv
          --num-train-epochs 5 --output-dir runs/worth
      fastssl compare-init --model runs/docs --train-file train.tsv --eval-file dev.tsv --threshold 0.9
          --threshold-of score --output-dir runs/worth
      fastssl compare-init --model runs/docs --train-file train.tsv --eval-file dev.tsv --label-budget 10 100 1000 all
          --num-seeds 5 --output-dir runs/labels
    """


def main(arguments: list[str]) -> int:
    """Compare; returns 0, or 130 or 143 after a signal."""
    flags = parse_flags(CompareInitFlags, arguments, program="fastssl compare-init")
    errors = Console(stderr=True, highlight=False)

    def say(text: str) -> None:
        errors.print(text, markup=False, soft_wrap=True)

    console = Console(highlight=False, markup=False)
    if flags.budget.label_budget:
        found = LabelBudgetExperiment(flags, say=say).run()
        exit_code = found.exit_code
        if not exit_code:
            _print_label_budgets(found, Path(flags.training.output_dir), console)
    else:
        found = compare_init(flags, say=say)
        exit_code = found if isinstance(found, int) else 0
        if not exit_code:
            _print_comparison(found, console)
    if exit_code:
        say("stopped; the same command with --resume-from-checkpoint last goes on from here")
    return exit_code


def _print_comparison(found: Comparison, console: Console) -> None:
    score = found.metric.replace("_", " ")
    table = plain_table("epoch")
    for column in (f"{what},\n{start.replace('-', ' ')}" for what in ("training loss", score) for start in STARTS):
        table.add_column(column, justify="right")
    for row in found.summary()["epochs"]:
        values = [row[what][start] for what in ("training_loss", "score") for start in STARTS]
        table.add_row(f"{row['epoch']:g}", *("" if value is None else f"{value:.4f}" for value in values))
    console.print("", table)
    lower = found.pretrained_is_lower
    console.print(f"\nthe pretrained training loss is lower in {sum(lower.values())} of {len(lower)} epochs")
    what = "smoothed training loss" if found.config.arrival.threshold_of == "training_loss" else score
    whose = "" if found.config.arrival.threshold is not None else ", what the run from scratch reaches"
    arrivals = ", ".join(
        f"{start.replace('-', ' ')} " + ("not within its run" if epochs is None else f"after {epochs:.2f} epochs")
        for start, epochs in found.epochs_to_threshold.items()
    )
    console.print(f"{what} {found.threshold:.4g}{whose}: {arrivals}", soft_wrap=True)
    directory = Path(found.config.training.output_dir)
    console.print(f"{directory}: {FIGURE_FILE}, {TABLE_FILE}, {SUMMARY_FILE}, and the runs", soft_wrap=True)


def _print_label_budgets(found: LabelBudgets, directory: Path, console: Console) -> None:
    table = plain_table("labels")
    for start in STARTS:
        table.add_column(f"{found.metric.replace('_', ' ')},\n{start.replace('-', ' ')}", justify="right")
    table.add_column("steps", justify="right")
    for size in sorted({run.num_labels for run in found.runs}):
        own = {point.start: point for point in found.points if point.num_labels == size}
        scores = (_mean_and_spread(own[start]) for start in STARTS)
        table.add_row(f"{size:,}", *scores, f"{next(run.steps for run in found.runs if run.num_labels == size):,}")
    seeds = len({run.seed for run in found.runs})
    console.print("", table, f"\nmean and standard deviation over {seeds} seeds" if seeds > 1 else "\none seed")
    console.print(f"{directory}: {BUDGET_FIGURE}, {BUDGET_TABLE}, {BUDGET_SUMMARY}", soft_wrap=True)


def _mean_and_spread(point: BudgetPoint) -> str:
    return f"{point.mean:.4f}" + (f" ± {point.deviation:.4f}" if len(point.scores) > 1 else "")
