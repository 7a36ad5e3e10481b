"""``fastssl pretrain``: from text files to a pretrained model."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fastssl.cli.architecture import architecture_of
from fastssl.cli.flags import parse_flags
from fastssl.models.cost import parameter_table
from fastssl.models.gpt_files import OUR_MODEL_TYPE
from fastssl.models.pretrained import read_config
from fastssl.tasks.gpt_pretraining_config import GptPretrainingConfig
from fastssl.tasks.pretraining import PretrainingRun, prepare_pretraining
from fastssl.tasks.pretraining_config import PretrainingConfig


@dataclass(frozen=True, kw_only=True)
class BertFlags(PretrainingConfig):
    """Pretrain a BERT on your text, and leave a directory that Hugging Face loads.

    These are the flags of BERT; `fastssl pretrain --arch gpt --help` tells those of GPT, which predicts the next token.

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


@dataclass(frozen=True, kw_only=True)
class GptFlags(GptPretrainingConfig):
    """Pretrain a GPT on your text, and leave a directory that Hugging Face loads (if its options are those of theirs).

    The text is kept as it is, spaces and line ends included. Each token is predicted from those before it in its
    document, or in the part of --max-seq-length tokens that is read of a longer one. Held-out text is measured as loss,
    perplexity, and bits per byte, which compares models with different tokenizers. The cost is printed before the
    start. A run that was stopped goes on with --resume-from-checkpoint last.

    Examples:
      fastssl pretrain --arch gpt --train-files a.txt b.jsonl.gz --max-steps 1000 --output-dir runs/x
      fastssl pretrain --preset gpt2 --tokenizer gpt2/ --train-files stories.txt --document-separator "<|endoftext|>"
          --max-seq-length 1024 --tokens-per-batch 16384 --time-budget-minutes 600 --output-dir runs/y
      fastssl pretrain --arch gpt --train-files tinyshakespeare.txt --tokenizer-type characters --eval-fraction 0.1
          --num-hidden-layers 4 --hidden-size 128 --num-attention-heads 4 --dropout 0 --max-seq-length 64
          --per-device-train-batch-size 12 --max-steps 2000 --warmup-steps 100 --learning-rate 1e-3
          --min-learning-rate 1e-4 --adam-beta2 0.99 --output-dir runs/shakespeare
    """

    dry_run: bool = False
    """Encode the text, print what the run will cost, and stop there."""


_FLAGS = {"bert": BertFlags, "gpt": GptFlags}


def main(arguments: list[str]) -> int:
    """Pretrain; returns 0, or 130 or 143 after a signal."""
    flags = parse_flags(_FLAGS[architecture_of(arguments)], arguments, program="fastssl pretrain")
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
    """Print where the model is, and commands to go on from there."""
    # A mixture of options that none of their models has is written under a type of our own.
    kind = "fastssl" if read_config(directory)["model_type"] == OUR_MODEL_TYPE else "Hugging Face"
    print(f"\n{directory} is a {kind} directory with curves.png beside the model. To go on from there:")
    for command in run.parts.next_commands(directory, run.tokenizer):
        print(f"  {shlex.join(command)}")
