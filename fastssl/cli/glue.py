"""``fastssl glue``: a model on the tasks of GLUE that are in a folder."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.text import Text

from fastssl.cli.flags import parse_flags
from fastssl.cli.plain_table import plain_table
from fastssl.tasks.glue.benchmark import FIGURE_FILE, SUMMARY_FILE, TABLE_FILE, GlueConfig, GlueReport, run_glue


@dataclass(frozen=True, kw_only=True)
class GlueFlags(GlueConfig):
    """Fine-tune a model on each task of GLUE that a folder holds, and chart the official scores against people's.

    The folder has a folder for each task (CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, RTE, WNLI, in any case), with
    train.tsv, dev.tsv and perhaps test.tsv as GLUE gives them out. Scores are those of the best epoch on the
    development set: Matthews' correlation for CoLA, the mean of F1 and accuracy for MRPC and QQP, the mean of Pearson's
    and Spearman's correlation for STS-B, the mean of the matched and the mismatched accuracy for MNLI, accuracy for the
    others. The settings are of those that BERT's authors chose from: batches of 32, three epochs, a learning rate of
    5e-5; all flags of finetune change them for every task that runs.

    Run again, the same command goes on where it stopped and leaves finished tasks as they are; --overwrite starts
    anew. Where there is a test.tsv, the predictions for the leaderboard are in submission/.

    Examples:
      fastssl glue glue_data/ --model bert-base-uncased/ --output-dir runs/glue
      fastssl glue glue_data/ --model runs/docs --tasks sst2 rte --max-train-examples 2000 --output-dir runs/trial
      fastssl glue glue_data/ --model bert-base-uncased/ --tasks rte --overwrite --learning-rate 2e-5
          --output-dir runs/glue
    """

    folder: tyro.conf.Positional[Path]
    """Folder with a folder for each task, such as CoLA, SST-2 or sst2, in the official layouts."""


def main(arguments: list[str]) -> int:
    """Run GLUE; returns 0, or 130 or 143 after a signal."""
    flags = parse_flags(GlueFlags, arguments, program="fastssl glue")
    errors = Console(stderr=True, highlight=False)

    def say(text: str) -> None:
        errors.print(text, markup=False, soft_wrap=True)

    report = run_glue(flags, say=say)
    if report.exit_code:
        say("stopped; the same command goes on from here")
        return report.exit_code
    _print_report(report, Console(highlight=False, markup=False))
    directory = Path(flags.training.output_dir)
    print(f"{directory}: {FIGURE_FILE}, {TABLE_FILE}, {SUMMARY_FILE}, and a directory for each task with its model")
    return 0


def _print_report(report: GlueReport, console: Console) -> None:
    table = plain_table("task", "figures")
    for column in ("", "score", "people", "training examples"):
        table.add_column(column, justify="right")
    for result in report.results:
        task = result.task
        values = " / ".join(f"{value:.1f}" for value in result.figures)
        table.add_row(
            task.name,
            " / ".join(task.figure_names),
            values,
            f"{result.score:.1f}",
            f"{statistics.fmean(task.human):.1f}",
            f"{result.num_train:,}",
        )
    table.add_row(Text("average", style="bold"), "", "", f"{report.average:.1f}", f"{report.human_average:.1f}", "")
    console.print("", table, "")
    if report.missing:
        told = ", ".join(f"{name} ({why})" for name, why in report.missing.items())
        console.print(f"not run, and in neither average: {told}", soft_wrap=True)
