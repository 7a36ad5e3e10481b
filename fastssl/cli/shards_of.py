"""Token shards from what a person names: a directory of shards, or text files."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastssl.cli.text_flags import TextFlags, check_files
from fastssl.data.corpus import Corpus
from fastssl.data.encode import encode_files
from fastssl.data.shards import TokenShards
from fastssl.data.tokenizer import Tokenizer


@contextlib.contextmanager
def open_shards(
    inputs: Sequence[Path], flags: TextFlags, *, program: str, max_characters: int | None = None
) -> Iterator[tuple[TokenShards, Tokenizer]]:
    """Open a directory of shards with its tokenizer, or encode text files into a temporary one.

    Args:
        inputs: One directory that ``fastssl data encode`` wrote, or text files.
        flags: How text files are read; a directory of shards has its own tokenizer, to which a given one must be equal.
        program: Named in errors.
        max_characters: Encode no more than about this much of the text files.
    """
    if len(inputs) == 1 and inputs[0].is_dir():
        shards = TokenShards.open(inputs[0])
        tokenizer = Tokenizer.load(flags.tokenizer or inputs[0])
        shards.check_tokenizer(tokenizer)
        yield shards, tokenizer
        return
    check_files(inputs, program=program)
    tokenizer = flags.make_tokenizer(inputs)
    with tempfile.TemporaryDirectory(prefix="fastssl-") as folder:
        options = {"text_field": flags.text_field, "encoding_errors": flags.encoding_errors}
        if max_characters is not None:
            corpus = Corpus(paths=inputs, max_characters=max_characters, **options)
            inputs, options = [_write_sample(corpus, Path(folder) / "sample.jsonl")], {}
        yield encode_files(inputs, tokenizer, Path(folder) / "shards", **options), tokenizer


def _write_sample(corpus: Corpus, path: Path) -> Path:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": document}) + "\n" for document in corpus)
    return path
