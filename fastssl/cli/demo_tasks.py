"""``fastssl demo tasks``: the four ways to use a BERT, on labelled data that every Python carries."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastssl.cli.flags import parse_flags
from fastssl.cli.plain_table import plain_table
from fastssl.tasks.demo_tasks import DEMO_TASKS, DemoResult, DemoTasksConfig, run_demo_task


@dataclass(frozen=True, kw_only=True)
class DemoTasksFlags(DemoTasksConfig):
    """Fine-tune the model of `fastssl demo` on four tasks in minutes, without files or network.

    The examples are made from the sources of the standard library: which module a function's summary is from; whether
    a summary and a signature belong together; what each token of a line of code is; which function of several a summary
    describes. Each is learnt from the pretrained model and from random weights, and measured on held-out examples
    beside a guess. The same command again goes on where it was stopped.

    Example:
      fastssl demo && fastssl demo tasks
    """


def main(arguments: list[str]) -> int:
    """Run the demonstration; returns 0, or 130 or 143 after a signal."""
    flags = parse_flags(DemoTasksFlags, arguments, program="fastssl demo tasks")
    if not flags.model.is_dir():
        raise ValueError(
            f"there is no model in {flags.model}; run `fastssl demo` first, which trains one in minutes, or give "
            "--model DIR"
        )
    console = Console(highlight=False)
    results = []
    for demo in DEMO_TASKS:
        console.print(f"\n{demo.name}: {demo.question}", style="bold")
        result = run_demo_task(demo, flags, say=lambda text: console.print(text, markup=False, soft_wrap=True))
        if isinstance(result, int):
            return result
        results.append(result)
    console.print("", _table(results))
    print_next_steps(results)
    return 0


def _table(results: list[DemoResult]) -> Table:
    table = plain_table("held-out examples", "figure")
    for column in ("a guess", "from random weights", "pretrained"):
        table.add_column(column, justify="right")
    for result in results:
        shares = (result.guessed, result.from_scratch, result.pretrained)
        figure = result.demo.metric.replace("_", " ")
        table.add_row(Text(result.demo.name, style="bold"), figure, *(f"{share:.1%}" for share in shares))
    return table


def print_next_steps(results: list[DemoResult]) -> None:
    """Print a command for each model that shows it at work on a held-out example."""
    print("\nEach directory is a Hugging Face model with its curves. Try them:")
    for result in results:
        folder, model = result.directory.parent, shlex.quote(f"{result.directory}")
        if result.demo.task == "question_answering":
            print(f"  fastssl evaluate --model {model} --eval-file {shlex.quote(str(folder / 'held-out.json'))}")
            continue
        row = json.loads(Path(folder / "held-out.jsonl").read_text(encoding="utf-8").splitlines()[0])
        texts = [row[key] for key in ("text", "sentence1", "sentence2") if key in row] or [" ".join(row["words"])]
        print(f"  fastssl predict --model {model} {shlex.join(texts)}")
