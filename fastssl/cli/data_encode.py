"""``fastssl data encode``: text files to token shards."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from fastssl.cli.flags import parse_flags
from fastssl.cli.text_flags import TextFlags, check_files
from fastssl.data.corpus import TextForm
from fastssl.data.encode import encode_files

_PROGRAM = "fastssl data encode"


@dataclass(frozen=True, kw_only=True)
class EncodeFlags:
    """Turn text files into token shards: ids and word boundaries, memory-mapped in training, never encoded again.

    Documents are separated by blank lines in text files, and are records in .jsonl and .parquet; they are cut into
    sentences. With --text-form exact, which causal language models learn from, they stay as they are, to the last line
    end, and a text file is one document. A run that was interrupted goes on where it stopped; finished shards of
    unchanged files are kept.

    Examples:
      fastssl data encode corpus/*.txt --vocab-size 8192 --output-dir shards
      fastssl data encode news.jsonl.zst --tokenizer bert-base-uncased/ --output-dir shards
      fastssl data encode stories.txt --tokenizer gpt2/ --text-form exact --document-separator "<|endoftext|>"
          --output-dir shards
    """

    files: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Text files: plain, .jsonl, each also .gz or .zst, or .parquet."""
    output_dir: Path
    """Directory for the shards, their index, and the tokenizer."""
    text: TextFlags = field(default_factory=TextFlags)
    """How text is read and cut into tokens."""
    text_form: Literal["sentences", "exact"] = "sentences"
    """sentences, for masked language models; exact, for causal ones."""
    document_separator: str | None = None
    """Of exact text: the line that parts two documents of a text file; "" is an empty line; None: a file is one
    document."""
    num_processes: int | None = None
    """Worker processes; None: one per CPU, or none where the files are small."""
    overwrite: bool = False
    """Replace shards of other files, settings or tokenizers in the output directory."""


def main(arguments: list[str]) -> int:
    """Encode, and print what was written."""
    flags = parse_flags(EncodeFlags, arguments, program=_PROGRAM)
    check_files(flags.files, program=_PROGRAM)
    form = TextForm(exact=flags.text_form == "exact", document_separator=flags.document_separator)
    start = time.perf_counter()
    if form.exact and flags.text.tokenizer is None and flags.text.tokenizer_type == "wordpiece":
        raise ValueError(
            "--text-form exact is for causal models, and wordpiece does not keep text as it is; give --tokenizer-type "
            "bpe, characters or bytes, or --tokenizer DIR"
        )
    if not form.exact and flags.text.tokenizer is None and flags.text.tokenizer_type != "wordpiece":
        raise ValueError(
            f"--text-form sentences is for masked language models, and {flags.text.tokenizer_type} has no mask token; "
            "give --text-form exact, or leave --tokenizer-type out"
        )
    tokenizer = flags.text.make_tokenizer(flags.files, form)
    # The tokens around a document, or those of masking and pairs, without which nothing could learn from the shards.
    _ = tokenizer.bounds if form.exact else tokenizer.special
    shards = encode_files(
        flags.files,
        tokenizer,
        flags.output_dir,
        form=form,
        num_processes=flags.num_processes,
        text_field=flags.text.text_field,
        encoding_errors=flags.text.encoding_errors,
        overwrite=flags.overwrite,
    )
    seconds = time.perf_counter() - start
    size_bytes = sum(info.size_bytes for info in shards.index.parts)
    print(
        f"{flags.output_dir}: {shards.num_tokens:,} tokens of {shards.num_sentences:,} sentences in "
        f"{shards.num_documents:,} documents, vocabulary {shards.vocab_size:,}; {size_bytes / 1e6:,.1f} MB in "
        f"{len(shards.parts)} part{'s' if len(shards.parts) > 1 else ''}, {seconds:.1f} s"
    )
    if remark := shards.remark_on_unknown(tokenizer):
        print(remark)
    directory = shlex.quote(f"{flags.output_dir}")
    if shards.is_exact:
        print(f"learn from them: fastssl pretrain --arch gpt --train-files {directory} --output-dir runs/x")
    else:
        print(f"look at examples: fastssl data show {directory} --mask-strategy word --sentence-objective sop")
    return 0
