"""``fastssl fill-mask``: the likeliest tokens for every mask of a text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.text import Text

from fastssl.cli.flags import parse_flags
from fastssl.cli.plain_table import plain_table
from fastssl.tasks.fill_mask import FilledText, FillMask


@dataclass(frozen=True, kw_only=True)
class FillMaskFlags:
    """Fill in masked words: the likeliest tokens for each mask, with their probabilities.

    Each mask is filled by itself; a text may have several. The mask is spelt as the model's tokenizer spells it,
    which is [MASK] for BERT.

    Examples:
      fastssl fill-mask --model runs/x "In the beginning God [MASK] the heaven and the earth."
      fastssl fill-mask --model bert-base-chinese/ "台[MASK]大學" "我[MASK]台灣" --top-k 3 --json
    """

    texts: tyro.conf.Positional[tuple[str, ...]]
    """Texts with at least one mask each."""
    model: Path
    """Directory of a model with a masked-LM head, and its tokenizer."""
    top_k: int = 5
    """Tokens to show for each mask."""
    dtype: Literal["fp32", "bf16", "int8"] = "fp32"
    """What the model computes in; int8 rounds its linear maps to 8 bits."""
    device: str = "auto"
    """Where: auto (a GPU where there is one; int8 always on the CPU), cpu, cuda or cuda:1."""
    json: bool = False
    """Print JSON, one object for each text, instead of tables."""


def main(arguments: list[str]) -> int:
    """Print the likeliest tokens for every mask of every text."""
    flags = parse_flags(FillMaskFlags, arguments, program="fastssl fill-mask")
    if not flags.texts:
        raise ValueError(
            'there is no text to fill; give one in quotes: fastssl fill-mask --model DIR "text with [MASK]"'
        )
    results = FillMask.load(flags.model, dtype=flags.dtype, device=flags.device)(flags.texts, top_k=flags.top_k)
    if flags.json:
        print(json.dumps([asdict(result) for result in results], indent=2, ensure_ascii=False))
        return 0
    console = Console(highlight=False)
    for result in results:
        _print(console, result)
    return 0


def _print(console: Console, result: FilledText) -> None:
    console.print(Text(result.filled, style="bold"), soft_wrap=True)
    columns = [
        Text(f"mask {number}" if len(result.masks) > 1 else "token") for number in range(1, len(result.masks) + 1)
    ]
    table = plain_table()
    for column in columns:
        table.add_column(column)
        table.add_column("")
    for candidates in zip(*result.masks, strict=True):
        cells = [(Text(c.token), Text(f"{c.probability:.1%}", justify="right")) for c in candidates]
        table.add_row(*(cell for pair in cells for cell in pair))
    console.print(table)
