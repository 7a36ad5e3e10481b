"""``fastssl data in-context-corpus``: text from which a small model learns to learn from its prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastssl.cli.flags import parse_flags
from fastssl.data.in_context_corpus import InContextCorpusConfig, write_in_context_corpus


@dataclass(frozen=True, kw_only=True)
class InContextCorpusFlags(InContextCorpusConfig):
    """Write a corpus of small made-up tasks in the layout of prompts, and files to measure in-context learning with.

    Each document holds solved examples of one hidden operation: words copied or translated into one of three made-up
    languages, words looked up in a dictionary that only the document itself tells, the first or the second of two
    words, two numbers added, subtracted or compared. Pretrain on the corpus alone, or beside text of your own.

    Examples:
      fastssl data in-context-corpus --output-dir made-up
      fastssl pretrain --arch gpt --train-files made-up/corpus.jsonl --vocab-size 1024
          --position-embedding rotary --initializer-range 0.08 --dropout 0 --max-seq-length 128 --max-steps 4000
          --output-dir runs/made-up
      fastssl in-context --model runs/made-up --task made-up/translate.jsonl made-up/look-up.jsonl
          --group-column operation --shots 0 1 5 --output-dir runs/shots
    """

    output_dir: Path
    """Gets corpus.jsonl and, for each family of tasks, a .jsonl file."""


def main(arguments: list[str]) -> int:
    """Write the files, and print their names."""
    flags = parse_flags(InContextCorpusFlags, arguments, program="fastssl data in-context-corpus")
    for path in write_in_context_corpus(flags, flags.output_dir):
        print(path)
    return 0
