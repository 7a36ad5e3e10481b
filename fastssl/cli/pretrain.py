"""``fastssl pretrain``: from text files to a pretrained model."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fastssl.cli.flags import parse_flags
from fastssl.models.cost import parameter_table
from fastssl.tasks.pretraining import PretrainingRun, prepare_pretraining
from fastssl.tasks.pretraining_config import PretrainingConfig


@dataclass(frozen=True, kw_only=True)
class PretrainFlags(PretrainingConfig):
    """Pretrain a model on your text, and leave a directory that Hugging Face loads.

    The text is cut into tokens and kept as shards in the output directory, and some of its documents are held out to
    measure on. Before the start the cost is printed. A run that was stopped, by Ctrl-C or by anything else, goes on
    with --resume-from-checkpoint last; with as many threads, and no time budget, it ends in the weights of a run that
    was never stopped.

    Examples:
      fastssl pretrain --train-files a.txt b.jsonl.gz --preset bert-mini --max-steps 1000 --output-dir runs/x
      fastssl pretrain --train-files a.txt --mask-strategy word --sentence-objective sop --time-budget-minutes 60
          --output-dir runs/y
      fastssl pretrain --train-files a.txt --model bert-base-uncased/ --new-tokens 500 --learning-rate 5e-5
          --output-dir runs/z
    """

    dry_run: bool = False
    """Encode the text, print what the run will cost, and stop there."""


def main(arguments: list[str]) -> int:
    """Pretrain; returns 0, or 130 or 143 after a signal."""
    flags = parse_flags(PretrainFlags, arguments, program="fastssl pretrain")
    console = Console(stderr=True, highlight=False)
    run = prepare_pretraining(
        flags, say=lambda text: console.print(text, markup=False, soft_wrap=True), progress=sys.stderr.isatty()
    )
    console.quiet = not run.is_main
    print_cost(run, console, by_part=flags.dry_run)
    if flags.dry_run:
        return 0
    result = run.run()
    if result.exit_code == 0 and run.is_main:
        print_next_steps(Path(flags.training.output_dir), run)
    return result.exit_code


def print_cost(run: PretrainingRun, console: Console, *, by_part: bool) -> None:
    """Print what a run will cost, at the speed of a few steps timed now; with the parameters of each part if asked."""
    if by_part:
        table = Table("part", "each", "copies", "parameters", box=None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for row in parameter_table(run.model):
            table.add_row(row.part, f"{row.parameters:,}", f"{row.copies}", f"{row.total:,}")
        console.print(table, "")
    for line in run.trainer.estimate_cost().lines():
        console.print(line, markup=False)


def print_next_steps(directory: Path, run: PretrainingRun) -> None:
    """Print where the model is, and the three commands to go on from there."""
    mask = run.tokenizer.special_names["mask"]
    print(
        f"\n{directory} is a Hugging Face directory with curves.png beside the model. To go on from there:\n"
        f'  fastssl fill-mask --model {directory} "A text with a {mask} in it."\n'
        f"  fastssl info {directory}\n"
        f"  fastssl pretrain --model {directory} --train-files MORE.txt --output-dir {directory}-more"
    )
