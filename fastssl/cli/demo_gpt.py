"""``fastssl demo gpt``: a GPT from nothing to its first sentences, on text that every Python carries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fastssl.cli.flags import parse_flags
from fastssl.cli.pretrain import print_cost, print_next_steps
from fastssl.tasks.demo import write_corpus
from fastssl.tasks.demo_gpt import PROMPTS, DemoGptConfig, demo_gpt_pretraining, write_on
from fastssl.tasks.pretraining import prepare_pretraining


@dataclass(frozen=True, kw_only=True)
class DemoGptFlags(DemoGptConfig):
    """Pretrain a small GPT in minutes, without files or network, and let it write before and after.

    The text is what every Python installation carries: the language reference and the docstrings of the standard
    library. A byte-level BPE tokenizer and a GPT are trained on it; the GPT then goes on from beginnings of sentences.

    Examples:
      fastssl demo gpt --time-budget-minutes 5 --output-dir runs/demo-gpt
    """


def main(arguments: list[str]) -> int:
    """Run the demonstration; returns 0, or 130 or 143 after a signal."""
    flags = parse_flags(DemoGptFlags, arguments, program="fastssl demo gpt")
    console = Console(highlight=False)
    corpus = write_corpus(flags.output_dir / "corpus.txt")
    console.print(f"{corpus}: {corpus.stat().st_size / 1e6:.1f} MB of the documentation that comes with Python")
    run = prepare_pretraining(demo_gpt_pretraining(flags, corpus), say=console.print)
    print_cost(run, console, by_part=False)
    _print_texts(console, "before training, it writes:", write_on(run.model, run.tokenizer))
    result = run.run()
    if result.exit_code != 0:
        return result.exit_code
    _print_texts(console, "after training, it writes:", write_on(run.model, run.tokenizer))
    _print_curve(console, flags.output_dir)
    print_next_steps(flags.output_dir, run)
    return 0


def _print_texts(console: Console, title: str, texts: Sequence[str]) -> None:
    console.print(f"\n{title}")
    for prompt, text in zip(PROMPTS, texts, strict=True):
        written = Text("  ").append(prompt, style="bold").append(text.replace("\n", " "))
        console.print(written, soft_wrap=True)
    console.print()


def _print_curve(console: Console, directory: Path) -> None:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    measured = [row["eval_bits_per_byte"] for row in rows if "eval_bits_per_byte" in row]
    curve = " ".join(f"{bits:.2f}" for bits in measured)
    console.print(f"bits that held-out text costs per byte, as training went on: {curve}")
    console.print(f"loss and accuracy curves: {directory / 'curves.png'}")
