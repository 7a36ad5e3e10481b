"""``fastssl embed``: a vector for every line of a file."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from fastssl.allocator import keep_freed_memory
from fastssl.cli.flags import parse_flags
from fastssl.cli.text_lines import STANDARD_INPUT, text_lines
from fastssl.cli.threads import use_threads
from fastssl.data.array_file import write_rows
from fastssl.data.files import make_directory, replaceable_file
from fastssl.tasks.embedding.embedder import SentenceEmbedder


@dataclass(frozen=True, kw_only=True)
class EmbedFlags:
    """Embed texts, one a line: a .npy file with one row of float32 for each line, empty lines included.

    The model is a directory of sentence-transformers, whose pooling, normalisation and length hold unless said
    otherwise, and its prompt and truncate_dim, or any BERT directory, whose token vectors are averaged.

    Examples:
      fastssl embed --model all-MiniLM-L6-v2/ sentences.txt --output sentences.npy
      zcat lines.gz | fastssl embed --model runs/x - --pooling cls --normalize --output lines.npy
    """

    file: tyro.conf.Positional[Path] = STANDARD_INPUT
    """Text, UTF-8, one text a line, also .gz or .zst; "-" or nothing: standard input."""
    model: Path
    """Directory of the model and its tokenizer."""
    output: Path
    """The .npy file to write."""
    pooling: tuple[Literal["cls", "max", "mean", "mean_sqrt_len_tokens"], ...] = ()
    """How token vectors become one; several are put side by side; none: as the directory says."""
    normalize: bool = False
    """Divide every vector by its length, where the directory does not say so already."""
    max_length: int | None = None
    """Tokens of a text that are read, [CLS] and [SEP] included; None: as the directory says."""
    dtype: Literal["fp32", "bf16", "int8"] = "fp32"
    """What the model computes in: int8 where the CPU has AVX-512 VNNI, bf16 where it has bf16 instructions."""
    device: str = "auto"
    """Where: auto (a GPU where there is one; int8 always on the CPU), cpu, cuda or cuda:1."""
    tokens_per_batch: int = 2048
    """About how many tokens go through the model at once."""
    num_threads: int | None = None
    """Threads; None keeps PyTorch's choice."""


def main(arguments: list[str]) -> int:
    """Embed every line, and print how many and how fast."""
    flags = parse_flags(EmbedFlags, arguments, program="fastssl embed")
    if str(flags.output) == "-":
        raise ValueError("--output - is not possible: an array's size stands before its rows; name a .npy file")
    if flags.output.is_dir():
        raise ValueError(f"--output {flags.output} is a directory; name a file in it, such as {flags.output}/out.npy")
    replaceable_file(flags.output)
    use_threads(flags.num_threads)
    keep_freed_memory()
    texts = text_lines(flags.file)
    embedder = SentenceEmbedder.load(
        flags.model,
        dtype=flags.dtype,
        device=flags.device,
        pooling=flags.pooling or None,
        normalize=flags.normalize or None,
        max_length=flags.max_length,
        tokens_per_batch=flags.tokens_per_batch,
    )
    make_directory(flags.output.parent)
    start = time.perf_counter()
    num_rows = write_rows(flags.output, embedder.stream(texts), embedder.width)
    seconds = time.perf_counter() - start
    print(
        f"{flags.output}: {num_rows:,} x {embedder.width} float32, {seconds:.1f} s, "
        f"{num_rows / max(seconds, 1e-9):,.0f} texts/s"
    )
    return 0
