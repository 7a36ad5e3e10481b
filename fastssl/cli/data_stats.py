"""``fastssl data stats``: lengths of a corpus, and what padding would cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from fastssl.cli.flags import parse_flags
from fastssl.cli.shards_of import open_shards
from fastssl.cli.text_flags import TextFlags
from fastssl.data.objectives import ObjectiveConfig
from fastssl.data.shards import TokenShards
from fastssl.data.statistics import LengthStatistics, causal_length_statistics, length_statistics

_PROGRAM = "fastssl data stats"
_BAR_WIDTH = 40


@dataclass(frozen=True, kw_only=True)
class StatsFlags:
    """Count documents, sentences and tokens, and show how long the training sequences of an epoch are.

    A model that pads every sequence to the longest spends the share "padding to the maximum" on nothing. Here nothing
    is padded: sequences are packed into batches of --tokens-per-batch, and "batch fill" is the share in use. Of shards
    that were encoded with --text-form exact, sequences are those of next-token prediction.

    Examples:
      fastssl data stats shards --max-seq-length 512 --tokens-per-batch 16384
      fastssl data stats a.txt --tokenizer bert-base-uncased/ --sentence-objective sop
    """

    inputs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """A directory that `fastssl data encode` wrote, or text files."""
    tokens_per_batch: int = 16384
    """Token budget of a batch."""
    seed: int = 42
    """Draws the epoch that is counted."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What kind of sequences."""
    text: TextFlags = field(default_factory=TextFlags)
    """How text files are read and cut into tokens."""


def main(arguments: list[str]) -> int:
    """Print the counts and a histogram."""
    flags = parse_flags(StatsFlags, arguments, program=_PROGRAM)
    if flags.tokens_per_batch < flags.objective.max_seq_length:
        raise ValueError(
            f"tokens_per_batch must hold the longest sequence, max_seq_length={flags.objective.max_seq_length}, but is "
            f"{flags.tokens_per_batch}; raise it, or lower --max-seq-length"
        )
    console = Console(highlight=False)
    with open_shards(flags.inputs, flags.text, program=_PROGRAM) as (shards, _):
        sizes = {"seed": flags.seed, "tokens_per_batch": flags.tokens_per_batch}
        if shards.is_exact:
            statistics = causal_length_statistics(shards, flags.objective.max_seq_length, **sizes)
        else:
            statistics = length_statistics(shards, flags.objective, **sizes)
        console.print(_counts(shards))
        console.print(_epoch(statistics, flags.tokens_per_batch))
        console.print(_histogram(statistics))
    return 0


def _counts(shards: TokenShards) -> Table:
    table = Table(title="corpus", title_justify="left", box=None)
    for name in ("", "count", "median tokens", "mean", "95 %", "longest"):
        table.add_column(name, justify="right" if name else "left")
    for name, lengths in (("documents", shards.document_lengths()), ("sentences", shards.sentence_lengths())):
        median, high = np.quantile(lengths, [0.5, 0.95])
        table.add_row(
            name, f"{len(lengths):,}", f"{median:,.0f}", f"{lengths.mean():,.1f}", f"{high:,.0f}", f"{lengths.max():,}"
        )
    table.add_row("tokens", f"{shards.num_tokens:,}")
    table.add_row("vocabulary", f"{shards.vocab_size:,}")
    return table


def _epoch(statistics: LengthStatistics, tokens_per_batch: int) -> Table:
    table = Table(title="\none epoch", title_justify="left", box=None, show_header=False)
    table.add_row("sequences", f"{statistics.num_examples:,}")
    table.add_row("mean length", f"{statistics.mean_example_length:.1f} of at most {statistics.max_seq_length} tokens")
    table.add_row("padding to the maximum", f"{statistics.padding_to_maximum:.1%} of all work would be wasted")
    table.add_row("batches", f"{statistics.num_batches:,} of at most {tokens_per_batch:,} tokens")
    table.add_row("batch fill", f"{statistics.batch_fill:.1%}")
    return table


def _histogram(statistics: LengthStatistics) -> Table:
    counts, edges = statistics.histogram()
    table = Table(title="\nsequence lengths", title_justify="left", box=None, show_header=False)
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        bar = "█" * round(_BAR_WIDTH * count / max(1, counts.max()))
        table.add_row(f"{low:.0f}-{high:.0f}", f"{count:,}", f"{bar:{_BAR_WIDTH}}")
    return table
