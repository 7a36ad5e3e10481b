"""``fastssl search``: the lines of a file that are nearest to a query in meaning."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from rich.console import Console
from rich.text import Text

from fastssl.allocator import keep_freed_memory
from fastssl.cli.flags import parse_flags
from fastssl.cli.plain_table import plain_table
from fastssl.cli.text_lines import STANDARD_INPUT, text_lines
from fastssl.cli.threads import use_threads
from fastssl.tasks.embedding.embedder import SentenceEmbedder
from fastssl.tasks.embedding.nearest import nearest_rows
from fastssl.tasks.embedding.search import read_embeddings

_CHECKED_MATCHES, _LEAST_COSINE = 8, 0.9


@dataclass(frozen=True, kw_only=True)
class SearchFlags:
    """Search the lines of a file by meaning: those whose embeddings have the largest cosine with a query's.

    The model is a directory of sentence-transformers, or any BERT directory, as for `fastssl embed`. Every line is
    looked at, in memory that does not grow with the file. For many searches over one file, embed it once.

    Examples:
      fastssl search --model all-MiniLM-L6-v2/ --file sentences.txt "a man is eating" "how is the weather?"
      fastssl embed --model all-MiniLM-L6-v2/ sentences.txt --output sentences.npy
      fastssl search --model all-MiniLM-L6-v2/ --file sentences.txt --embeddings sentences.npy "a man is eating" --json
      cat queries.txt | fastssl search --model all-MiniLM-L6-v2/ --file sentences.txt --top-k 1 --json
    """

    queries: tyro.conf.Positional[tuple[str, ...]] = ()
    """What to look for, one or several; "-" or nothing: the lines of standard input."""
    model: Path
    """Directory of the model and its tokenizer."""
    file: Path
    """The lines to search, UTF-8, also .gz or .zst."""
    embeddings: Path | None = None
    """Their embeddings, a .npy file that `fastssl embed` made from this file with this model; None embeds them now."""
    top_k: int = 10
    """Lines to show for each query."""
    pooling: tuple[Literal["cls", "max", "mean", "mean_sqrt_len_tokens"], ...] = ()
    """How token vectors become one, as the embeddings were made; none: as the directory says."""
    max_length: int | None = None
    """Tokens of a text that are read, [CLS] and [SEP] included; None: as the directory says."""
    dtype: Literal["fp32", "bf16", "int8"] = "fp32"
    """What the model computes in: int8 where the CPU has AVX-512 VNNI, bf16 where it has bf16 instructions."""
    device: str = "auto"
    """Where: auto (a GPU where there is one; int8 always on the CPU), cpu, cuda or cuda:1."""
    num_threads: int | None = None
    """Threads; None keeps PyTorch's choice."""
    json: bool = False
    """Print a line of JSON for each query, instead of tables."""


def main(arguments: list[str]) -> int:
    """Print the nearest lines for every query."""
    flags = parse_flags(SearchFlags, arguments, program="fastssl search")
    if flags.top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {flags.top_k}")
    if str(flags.file) == str(STANDARD_INPUT):
        raise ValueError("--file - is not possible: the lines are read again to show what was found; name a file")
    use_threads(flags.num_threads)
    keep_freed_memory()
    lines = text_lines(flags.file)
    embedder = SentenceEmbedder.load(
        flags.model, dtype=flags.dtype, device=flags.device, pooling=flags.pooling or None, max_length=flags.max_length
    )
    embeddings = None if flags.embeddings is None else read_embeddings(flags.embeddings, embedder)
    if embeddings is not None:
        _check_rows(flags, len(embeddings))
    queries = list(_queries(flags))
    blocks = embedder.stream(lines) if embeddings is None else [embeddings]
    scores, rows = nearest_rows(embedder(queries), blocks, flags.top_k)
    if not rows.size:
        raise ValueError(f"{flags.file} has no lines to search")
    texts = _lines_at(flags.file, rows)
    if embeddings is not None:
        _warn_of_other_texts(flags, embedder, embeddings, texts)
    console = Console(highlight=False)
    for query, best_scores, best_rows in zip(queries, scores.tolist(), rows.tolist(), strict=True):
        found = [
            {"line": row + 1, "score": score, "text": texts[row]}
            for score, row in zip(best_scores, best_rows, strict=True)
        ]
        if flags.json:
            print(json.dumps({"query": query, "matches": found}, ensure_ascii=False))
        else:
            _print(console, query if len(queries) > 1 else None, found)
    return 0


def _queries(flags: SearchFlags) -> Iterator[str]:
    if flags.queries and flags.queries != (str(STANDARD_INPUT),):
        yield from flags.queries
        return
    lines = text_lines(STANDARD_INPUT)
    first = next(lines, None)
    if first is None:
        raise ValueError('there is no query; give one in quotes: fastssl search --model DIR --file LINES "a query"')
    yield from itertools.chain((first,), lines)


def _check_rows(flags: SearchFlags, num_rows: int) -> None:
    num_lines = sum(1 for _ in text_lines(flags.file))
    if num_lines != num_rows:
        raise ValueError(
            f"{flags.embeddings} has {num_rows:,} rows, but {flags.file} has {num_lines:,} lines; make it anew: "
            f"fastssl embed --model {flags.model} {flags.file} --output {flags.embeddings}"
        )


def _lines_at(file: Path, rows: np.ndarray) -> dict[int, str]:
    """Return the lines of some numbers, from 0."""
    wanted = set(rows.ravel().tolist())
    return {number: line for number, line in enumerate(text_lines(file)) if number in wanted}


def _warn_of_other_texts(
    flags: SearchFlags, embedder: SentenceEmbedder, embeddings: np.ndarray, texts: dict[int, str]
) -> None:
    """Embed a few of the lines that were found, and tell where their rows hold something else."""
    checked = sorted(texts)[:_CHECKED_MATCHES]
    own = embedder([texts[row] for row in checked])
    for vector, row in zip(own, checked, strict=True):
        score = nearest_rows(vector[None], [embeddings[row : row + 1]], 1)[0].item()
        if score < _LEAST_COSINE and np.any(vector):
            print(
                f"fastssl: warning: row {row + 1} of {flags.embeddings} is not what this model makes of line {row + 1} "
                f"of {flags.file} (cosine {score:.2f}): was it made with another model or pooling, or from other text?",
                file=sys.stderr,
            )
            return


def _print(console: Console, query: str | None, found: list[dict]) -> None:
    if query is not None:
        console.print(Text(query, style="bold"), soft_wrap=True)
    table = plain_table("score", "line", "text")
    table.columns[1].justify = "right"
    for match in found:
        table.add_row(f"{match['score']:.4f}", f"{match['line']:,}", Text(match["text"]))
    console.print(table)
