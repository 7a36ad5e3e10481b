"""From (input, target) back to the text: what a batch hides, and the proof that it hides nothing else."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from fastssl.data.batch import PackedBatch
from fastssl.data.objectives import SentenceObjective

if TYPE_CHECKING:
    from fastssl.data.tokenizer import Tokenizer

_SENTENCE_TARGETS = {
    "none": (None, None),
    "nsp": ("the second segment follows the first", "the second segment is from another document"),
    "sop": ("in order", "swapped"),
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """One masked-LM target of a sequence."""

    position: int
    """Place of the token in its sequence, [CLS] included."""
    input_token: str
    """What the model sees there: [MASK], a random token, or the token itself."""
    token: str
    """What it is to predict."""

    kind: Literal["masked", "random", "kept"]
    """What happened to it: hidden behind [MASK], replaced by a random token, or left as it is."""


@dataclass(frozen=True, kw_only=True)
class ExampleDescription:
    """A sequence as a person reads it."""

    input_tokens: list[str]
    """What the model sees."""
    targets: list[Target]
    """What it is to predict, in the order of the text."""
    sentence_target: str | None
    """What the sentence objective asks for, in words."""
    restored_segments: list[str]
    """The text with the targets put back, in its own order (a swap undone), one string per segment."""


@dataclass(frozen=True, kw_only=True)
class CausalDescription:
    """A sequence of next-token prediction as a person reads it."""

    input_tokens: list[str]
    """What the model reads."""
    next_tokens: list[str]
    """What it is to predict at each of them."""
    restored: str
    """The text, put together from the predictions; without what marks the end of a document."""


def describe_causal(batch: PackedBatch, index: int, tokenizer: "Tokenizer") -> CausalDescription:
    """Put a sequence of a causal batch into words.

    Args:
        batch: as drawn by `CausalData`.
        index: number of the sequence in the batch.
        tokenizer: the one that made the ids.
    """
    begin, end = batch.cu_seqlens[index : index + 2].tolist()
    following = batch.next_tokens[begin:end].tolist()
    return CausalDescription(
        input_tokens=[tokenizer.id_to_token(token) for token in batch.input_ids[begin:end].tolist()],
        next_tokens=[tokenizer.id_to_token(token) for token in following],
        restored=tokenizer.decode(following, skip_special_tokens=True),
    )


def restore_input_ids(batch: PackedBatch) -> np.ndarray:
    """Return (N) int64: the input ids with every target put back."""
    input_ids = batch.input_ids.numpy().copy()
    if batch.masked_positions is not None:
        input_ids[batch.masked_positions.numpy()] = batch.masked_labels.numpy()
    return input_ids


def restore_segments(
    batch: PackedBatch, index: int, sentence_objective: SentenceObjective = "none"
) -> list[np.ndarray]:
    """Return the original tokens of a sequence, one int64 array per segment, in the order of the text.

    Args:
        batch: as drawn.
        index: number of the sequence in the batch.
        sentence_objective: of the batch; a swap ("sop") is undone.
    """
    begin, end = batch.cu_seqlens[index : index + 2].tolist()
    restored, types = restore_input_ids(batch)[begin:end], batch.token_type_ids[begin:end].numpy()
    first, second = restored[types == 0], restored[types == 1]
    segments = [first[1:-1]] if len(second) == 0 else [first[1:-1], second[:-1]]
    swapped = sentence_objective == "sop" and int(batch.sentence_labels[index]) == 1
    return segments[::-1] if swapped else segments


def describe_example(
    batch: PackedBatch, index: int, tokenizer: "Tokenizer", sentence_objective: SentenceObjective = "none"
) -> ExampleDescription:
    """Put a sequence of a batch into words.

    Args:
        batch: as drawn.
        index: number of the sequence in the batch.
        tokenizer: the one that made the ids.
        sentence_objective: of the batch.
    """
    begin, end = batch.cu_seqlens[index : index + 2].tolist()
    names = [tokenizer.id_to_token(token) for token in batch.input_ids[begin:end].tolist()]
    targets = []
    for place, label in zip(batch.masked_positions.tolist(), batch.masked_labels.tolist(), strict=True):
        if begin <= place < end:
            seen, wanted = names[place - begin], tokenizer.id_to_token(label)
            kind = "kept" if seen == wanted else "masked" if seen == tokenizer.special_names["mask"] else "random"
            targets.append(Target(position=place - begin, input_token=seen, token=wanted, kind=kind))
    meanings = _SENTENCE_TARGETS[sentence_objective]
    return ExampleDescription(
        input_tokens=names,
        targets=targets,
        sentence_target=None if batch.sentence_labels is None else meanings[int(batch.sentence_labels[index])],
        restored_segments=[
            tokenizer.decode(segment.tolist()) for segment in restore_segments(batch, index, sentence_objective)
        ],
    )
