"""``fastssl data show``: training examples in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro
from rich.console import Console
from rich.text import Text

from fastssl.cli.flags import parse_flags
from fastssl.cli.shards_of import open_shards
from fastssl.cli.text_flags import TextFlags
from fastssl.data.causal import CausalData, CausalObjectiveConfig
from fastssl.data.dataset import PretrainingData
from fastssl.data.objectives import ObjectiveConfig
from fastssl.data.restore import ExampleDescription, Target, describe_causal, describe_example
from fastssl.data.shards import TokenShards
from fastssl.data.tokenizer import Tokenizer

_PROGRAM = "fastssl data show"
_SAMPLE_CHARACTERS = 4_000_000
_COLOURS = {"masked": "bold yellow", "random": "bold red", "kept": "bold green"}


@dataclass(frozen=True, kw_only=True)
class ShowFlags:
    """Print training examples as a model sees them (input) and what it is to predict (target).

    Self-supervision makes both from the text itself: putting the targets back into the input restores it, and the last
    line of each example shows that. A target is masked (the model sees [MASK]), random (it sees another token) or kept
    (it sees the token itself, and does not know that this one counts). Of shards that were encoded with --text-form
    exact, examples are of next-token prediction: a target below each token.

    Examples:
      fastssl data show shards --mask-strategy word --sentence-objective sop
      fastssl data show a.txt b.jsonl.gz --tokenizer bert-base-uncased/ --mask-strategy span --mask-rate 0.3
    """

    inputs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """A directory that `fastssl data encode` wrote; or text files, of which the first 4 million characters are used."""
    num_examples: int = 3
    """How many to print."""
    seed: int = 42
    """Draws the examples and their masks; the same seed shows what a training run with it sees."""
    epoch: int = 0
    """Which pass over the text; masks are drawn anew in each."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What the model is to predict, and from what."""
    text: TextFlags = field(default_factory=TextFlags)
    """How text files are read and cut into tokens."""


def main(arguments: list[str]) -> int:
    """Print examples."""
    flags = parse_flags(ShowFlags, arguments, program=_PROGRAM)
    if flags.num_examples < 1:
        raise ValueError(f"num_examples must be at least 1, but is {flags.num_examples}")
    console = Console(highlight=False, soft_wrap=True)
    with open_shards(flags.inputs, flags.text, program=_PROGRAM, max_characters=_SAMPLE_CHARACTERS) as (
        shards,
        tokenizer,
    ):
        (_show_causal if shards.is_exact else _show_masked)(shards, tokenizer, flags, console)
    return 0


def _show_masked(shards: TokenShards, tokenizer: Tokenizer, flags: ShowFlags, console: Console) -> None:
    data = PretrainingData(shards, tokenizer.special, flags.objective, seed=flags.seed, batch_size=flags.num_examples)
    batch = data.batch(flags.epoch, 0)
    for index in range(batch.num_sequences):
        example = describe_example(batch, index, tokenizer, flags.objective.sentence_objective)
        console.print(_title(index, example), style="bold")
        for name, line in _lines(example):
            console.print(Text(f"  {name:8}  ").append_text(line))


def _show_causal(shards: TokenShards, tokenizer: Tokenizer, flags: ShowFlags, console: Console) -> None:
    objective = CausalObjectiveConfig(max_seq_length=flags.objective.max_seq_length)
    data = CausalData(shards, tokenizer.bounds, objective, seed=flags.seed, batch_size=flags.num_examples)
    batch = data.batch(flags.epoch, 0)
    for index in range(batch.num_sequences):
        example = describe_causal(batch, index, tokenizer)
        console.print(f"example {index + 1}: {len(example.input_tokens)} tokens, each predicts the next", style="bold")
        columns = zip(example.input_tokens, example.next_tokens, strict=True)
        padded = [(a.ljust(len(b)), b.ljust(len(a))) for a, b in columns]
        for name, tokens in zip(("input", "target"), zip(*padded, strict=True), strict=True):
            console.print(Text(f"  {name:8}  " + " ".join(tokens)))
        console.print(Text(f"  restored  {example.restored!r}"))


def _title(index: int, example: ExampleDescription) -> str:
    return f"example {index + 1}: {len(example.input_tokens)} tokens, {len(example.targets)} to predict"


def _lines(example: ExampleDescription) -> list[tuple[str, Text]]:
    kinds = {target.position: _COLOURS[target.kind] for target in example.targets}
    words = [Text(token, style=kinds.get(i, "")) for i, token in enumerate(example.input_tokens)]
    lines = [("input", Text(" ").join(words)), ("target", Text(", ").join(map(_target, example.targets)))]
    if example.sentence_target is not None:
        lines.append(("order", Text(example.sentence_target)))
    return [*lines, ("restored", Text(" | ".join(example.restored_segments)))]


def _target(target: Target) -> Text:
    remark = "" if target.kind == "masked" else f" ({target.kind})"
    return Text(f"{target.position}: {target.input_token} -> {target.token}{remark}", style=_COLOURS[target.kind])
