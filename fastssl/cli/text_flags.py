"""Flags that say which text is meant, and with which tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastssl.data.corpus import SENTENCES, Corpus, TextForm, check_file
from fastssl.data.tokenizer import Tokenizer

_TOKENIZER_TRAINING_CHARACTERS = 200_000_000


@dataclass(frozen=True, kw_only=True)
class TextFlags:
    """How text is read and cut into tokens."""

    tokenizer: Path | None = None
    """Use this tokenizer: a Hugging Face directory, a tokenizer.json, a BERT vocab.txt, or GPT-2's vocab.json."""
    vocab_size: int | None = None
    """Instead, train a tokenizer of at most this many tokens on the files (their first 200 million characters, in equal
    shares)."""
    tokenizer_type: Literal["wordpiece", "bpe", "characters", "bytes"] = "wordpiece"
    """Of a tokenizer that is trained: wordpiece for masked language models, the others for causal ones."""
    cased: bool = False
    """Let a WordPiece tokenizer that is trained keep upper case and accents."""
    text_field: str = "text"
    """Key or column of the text in JSON lines and Parquet."""
    encoding_errors: Literal["strict", "replace", "ignore"] = "strict"
    """What to do with bytes that are not UTF-8: stop and name them, put a replacement character, or drop them."""

    def make_tokenizer(self, files: Sequence[Path], form: TextForm = SENTENCES) -> Tokenizer:
        """Load the tokenizer, or train it on the files, read in this form.

        Raises:
            ValueError: Neither or both of ``tokenizer`` and ``vocab_size`` are given.
        """
        needs_no_size = self.tokenizer is None and self.tokenizer_type in ("characters", "bytes")
        if (self.tokenizer is None) == (self.vocab_size is None) and not needs_no_size:
            found = "neither" if self.tokenizer is None else "both"
            raise ValueError(
                f"expected either --tokenizer DIR or --vocab-size N, got {found}; name a tokenizer, or say how large a "
                "vocabulary to train"
            )
        if self.tokenizer is None and self.tokenizer_type == "bytes" and self.vocab_size is not None:
            raise ValueError("--tokenizer-type bytes takes the 256 bytes as tokens: leave out --vocab-size")
        if self.tokenizer is not None:
            return Tokenizer.load(self.tokenizer)
        corpus = Corpus(
            paths=files,
            text_field=self.text_field,
            encoding_errors=self.encoding_errors,
            form=form,
            max_characters=_TOKENIZER_TRAINING_CHARACTERS,
        )
        match self.tokenizer_type:
            case "wordpiece":
                return Tokenizer.train_wordpiece(corpus, vocab_size=self.vocab_size, lowercase=not self.cased)
            case "bpe":
                return Tokenizer.train_byte_pairs(corpus, vocab_size=self.vocab_size)
            case "characters":
                return Tokenizer.train_characters(corpus, vocab_size=self.vocab_size)
        return Tokenizer.of_bytes()


def check_files(files: Sequence[Path], *, program: str) -> None:
    """Raise the error that reading the files would raise: none is given, one is missing, empty, or a directory."""
    if not files:
        raise ValueError(f"no files given: expected at least one; run `{program} --help` for examples")
    for file in files:
        check_file(file)
