"""``fastssl score``: how likely a model finds each line of a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import tyro

from fastssl.cli.architecture import architecture_of
from fastssl.cli.flags import parse_flags
from fastssl.cli.text_lines import STANDARD_INPUT, text_lines
from fastssl.cli.threads import use_threads
from fastssl.models.likelihood import rolling_loglikelihoods
from fastssl.tasks.generation.text_generator import TextGenerator
from fastssl.tasks.pseudo_likelihood import PseudoLikelihoodScorer

_LINES_AT_ONCE = 256


class _Score(NamedTuple):
    """One line's."""

    score: float
    tokens: int
    text: str


@dataclass(frozen=True, kw_only=True)
class ScoreFlags:
    """Score texts, one a line: the log-probability under a causal model, or the pseudo-log-likelihood under BERT.

    Printed are the score (natural logarithms, summed over the tokens), the number of tokens and the text, with tabs
    between them. Of two texts, the model prefers the one with the larger score; divide by the tokens where one is much
    longer. A causal model may read texts of any length; the pseudo-log-likelihood masks one token after the other.

    Examples:
      fastssl score --model gpt2/ sentences.txt
      echo "The cats on the mat sleep." | fastssl score --model bert-base-uncased/ --json
    """

    file: tyro.conf.Positional[Path] = STANDARD_INPUT
    """Text, UTF-8, one text a line, also .gz or .zst; "-" or nothing: standard input."""
    model: Path
    """Directory of a causal or a masked language model, and its tokenizer."""
    dtype: Literal["fp32", "bf16", "int8"] = "fp32"
    """What the model computes in."""
    device: str = "auto"
    """Where: auto (a GPU where there is one; int8 always on the CPU), cpu, cuda or cuda:1."""
    tokens_per_batch: int = 4096
    """About how many tokens go through the model at once."""
    num_threads: int | None = None
    """Threads of the computation; None: PyTorch's choice."""
    json: bool = False
    """Print JSON, one object a line for each text."""


def main(arguments: list[str]) -> int:
    """Print a score for each line."""
    flags = parse_flags(ScoreFlags, arguments, program="fastssl score")
    use_threads(flags.num_threads)
    kinds = {"gpt": _by_causal_model, "bert": _by_masked_model}
    scores = kinds[architecture_of(["--model", str(flags.model)])](flags, text_lines(flags.file))
    for one in scores:
        if flags.json:
            print(json.dumps(one._asdict(), ensure_ascii=False))
        else:
            print(f"{one.score:.4f}\t{one.tokens}\t{one.text}")
    return 0


def _by_causal_model(flags: ScoreFlags, texts: Iterable[str]) -> Iterator[_Score]:
    generator = TextGenerator.load(flags.model, dtype=flags.dtype, device=flags.device)
    config, texts = generator.model.config, iter(texts)
    first = next((token for token in (config.bos_token_id, *config.end_tokens) if token is not None), None)
    if first is None:
        raise ValueError(
            f"{flags.model} has neither a first token to put in front of a text nor an end token; name one as "
            "bos_token_id in its config.json"
        )
    while window := list(islice(texts, _LINES_AT_ONCE)):
        tokens = generator.tokenizer.encode_many(window)
        found = rolling_loglikelihoods(
            generator.model, tokens, first_token=first, tokens_per_batch=flags.tokens_per_batch
        )
        for text, one in zip(window, found, strict=True):
            yield _Score(one.log_probability, one.num_tokens, text)


def _by_masked_model(flags: ScoreFlags, texts: Iterable[str]) -> Iterator[_Score]:
    scorer = PseudoLikelihoodScorer.load(
        flags.model, dtype=flags.dtype, device=flags.device, tokens_per_batch=flags.tokens_per_batch
    )
    for one in scorer.stream(texts, texts_at_once=_LINES_AT_ONCE):
        yield _Score(one.score, len(one.tokens), one.text)
