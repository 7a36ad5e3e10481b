"""``fastssl demo``: the whole way, on text that every Python carries."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastssl.cli import demo_gpt, demo_tasks
from fastssl.cli.flags import parse_flags
from fastssl.cli.pretrain import print_cost, print_next_steps
from fastssl.tasks.demo import SENTENCES, DemoConfig, demo_pretraining, fill_sentences, write_corpus
from fastssl.tasks.fill_mask import FilledText, FillMask
from fastssl.tasks.pretraining import prepare_pretraining


@dataclass(frozen=True, kw_only=True)
class DemoFlags(DemoConfig):
    """Pretrain a small BERT in minutes, without files or network, and watch it learn to fill masks.

    The text is what every Python installation carries: the language reference and the docstrings of the standard
    library. A tokenizer and a BERT are trained on it, with whole-word masking and sentence order.

    Then `fastssl demo tasks` fine-tunes it on four tasks, on examples that every Python carries as well, and
    `fastssl demo gpt` pretrains a small GPT, which writes.

    Examples:
      fastssl demo --time-budget-minutes 2 --output-dir runs/demo
      fastssl demo tasks
      fastssl demo gpt
    """


def main(arguments: list[str]) -> int:
    """Run the demonstration; returns 0, or 130 or 143 after a signal."""
    if arguments[:1] == ["tasks"]:
        return demo_tasks.main(arguments[1:])
    if arguments[:1] == ["gpt"]:
        return demo_gpt.main(arguments[1:])
    flags = parse_flags(DemoFlags, arguments, program="fastssl demo")
    console = Console(highlight=False)
    corpus = write_corpus(flags.output_dir / "corpus.txt")
    console.print(f"{corpus}: {corpus.stat().st_size / 1e6:.1f} MB of the documentation that comes with Python")
    run = prepare_pretraining(demo_pretraining(flags, corpus), say=console.print)
    print_cost(run, console, by_part=False)
    fill_mask = FillMask(run.model, run.tokenizer)
    before = fill_sentences(fill_mask)
    result = run.run()
    if result.exit_code != 0:
        return result.exit_code
    _print_before_and_after(console, before, fill_sentences(fill_mask))
    _print_accuracy(console, flags.output_dir)
    print_next_steps(flags.output_dir, run)
    return 0


def _print_before_and_after(console: Console, before: list[FilledText], after: list[FilledText]) -> None:
    table = Table("masked sentence", "before", "after", title="the three likeliest tokens", title_justify="left")
    for sentence, *filled in zip(SENTENCES, before, after, strict=True):
        table.add_row(Text(sentence), *(_candidates(one) for one in filled))
    console.print("", table)


def _candidates(filled: FilledText) -> Text:
    return Text("\n".join(f"{c.token} {c.probability:.0%}" for c in filled.masks[0]))


def _print_accuracy(console: Console, directory: Path) -> None:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    measured = [row["eval_masked_lm_accuracy"] for row in rows if "eval_masked_lm_accuracy" in row]
    curve = " ".join(f"{accuracy:.1%}" for accuracy in measured)
    console.print(f"\nmasked words of held-out text filled correctly, as training went on: {curve}")
    console.print(f"loss and accuracy curves: {directory / 'curves.png'}")
