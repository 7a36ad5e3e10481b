"""The one shape in which token data reaches a model: N real tokens, no padding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

IGNORED_LABEL = -100
"""Label of a padded position that carries no target, as in Hugging Face."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedBatch:
    """B sequences laid end to end: N tokens in all, M of them with a masked-LM target."""

    input_ids: Tensor
    """(N) int64: token ids, some of them masked."""
    cu_seqlens: Tensor
    """(B + 1) int32: where each sequence begins; first 0, last N."""
    max_seqlen: int
    """Length of the longest sequence, in tokens."""
    position_ids: Tensor
    """(N) int64: position inside the token's sequence, from 0."""
    token_type_ids: Tensor
    """(N) int64: 0 in the first segment, 1 in the second."""
    masked_positions: Tensor | None = None
    """(M) int64: indices into N of the tokens to predict, ascending."""
    masked_labels: Tensor | None = None
    """(M) int64: the original ids at `masked_positions`."""
    sentence_labels: Tensor | None = None
    """(B) int64: next-sentence prediction: 1 = random second segment; sentence order: 1 = swapped."""
    sequence_labels: Tensor | None = None
    """(B) int64 classes, (B) floating values, or (B, C) floating: one target of each sequence as a whole."""
    answer_mask: Tensor | None = None
    """(N) bool: the tokens at which an answer may begin and end; None: all of them."""
    answer_starts: Tensor | None = None
    """(B) int64: index into N of the first token of each sequence's answer; -100 where the sequence has none."""
    answer_ends: Tensor | None = None
    """(B) int64: the same of its last token."""
    token_positions: Tensor | None = None
    """(M) int64: indices into N of the tokens that carry a label, ascending; another M than that of masked LM."""
    token_labels: Tensor | None = None
    """(M) int64: the classes of the tokens at `token_positions`."""
    next_tokens: Tensor | None = None
    """(N) int64: the id that follows each token in its sequence; -100 where none is to be predicted."""
    num_pairs: int | None = None
    """P: the first P sequences are anchors, the next P the texts that belong to them, in the same order, and any others
    belong to none; None where sequences are no pairs."""
    padded_positions: Tensor | None = None
    """(N) int64: index of each token in the flattened (B, T) layout that it came from; None where it came from none."""
    padded_length: int | None = None
    """T of that layout."""
    has_filler: bool = False
    """Whether the last sequences, some of which have no token, and targets of -100 only fill the batch up."""

    def __post_init__(self) -> None:
        n, b = self.input_ids.numel(), self.cu_seqlens.numel() - 1
        _expect_1d("input_ids", self.input_ids, n)
        _expect_1d("cu_seqlens", self.cu_seqlens, b + 1)
        if self.cu_seqlens.dtype != torch.int32:
            raise ValueError(f"cu_seqlens must be int32, got {self.cu_seqlens.dtype}; convert it with .int()")
        lengths = {"position_ids": n, "token_type_ids": n, "sentence_labels": b}
        lengths |= {"answer_mask": n, "answer_starts": b, "answer_ends": b, "next_tokens": n}
        for name, length in lengths.items():
            if getattr(self, name) is not None:
                _expect_1d(name, getattr(self, name), length)
        if self.sequence_labels is not None and self.sequence_labels.shape[:1] != (b,):
            raise ValueError(
                f"sequence_labels must have one row per sequence, ({b}, ...), got {tuple(self.sequence_labels.shape)}"
            )
        if self.num_pairs is not None and not 1 <= self.num_pairs <= b // 2:
            raise ValueError(
                f"num_pairs must be at least 1 and at most half of the {b} sequences, got {self.num_pairs}"
            )
        for kind in ("masked", "token"):
            positions, labels = getattr(self, f"{kind}_positions"), getattr(self, f"{kind}_labels")
            if (positions is None) != (labels is None):
                raise ValueError(f"{kind}_positions and {kind}_labels belong together; give both or neither")
            if positions is not None:
                _expect_1d(f"{kind}_positions", positions, labels.numel())
        if (self.answer_starts is None) != (self.answer_ends is None):
            raise ValueError("answer_starts and answer_ends belong together; give both or neither")
        if self.cu_seqlens.device.type == "cpu" and (b < 0 or self.cu_seqlens[0] != 0 or self.cu_seqlens[-1] != n):
            raise ValueError(f"cu_seqlens must start at 0 and end at {n} (the tokens), got {self.cu_seqlens.tolist()}")

    @property
    def num_tokens(self) -> int:
        """N, the number of tokens."""
        return self.input_ids.numel()

    @property
    def num_sequences(self) -> int:
        """B, the number of sequences."""
        return self.cu_seqlens.numel() - 1

    def target_counts(self) -> dict[str, int]:
        """Return the number of targets of each kind present.

        "masked_lm", "token" -> M, "sentence", "sequence" -> B, "answer" -> the sequences that have one, "pair" -> P,
        "causal_lm" -> the tokens whose next one is to be predicted. A batch that was brought to a GPU knows them from
        before: nobody waits for the GPU here.
        """
        if (counted := self.__dict__.get("_counted")) is not None:
            return dict(counted)
        counts = {}
        if self.masked_labels is not None:
            counts["masked_lm"] = self.masked_labels.numel()
        if self.sentence_labels is not None:
            counts["sentence"] = self.sentence_labels.numel()
        if self.sequence_labels is not None:
            counts["sequence"] = self.num_sequences
        if self.answer_starts is not None:
            counts["answer"] = int((self.answer_starts >= 0).sum())
        if self.token_labels is not None:
            counts["token"] = self.token_labels.numel()
        if self.next_tokens is not None:
            counts["causal_lm"] = int((self.next_tokens != IGNORED_LABEL).sum())
        if self.num_pairs is not None:
            counts["pair"] = self.num_pairs
        return counts

    def predicting_tokens(self) -> Tensor | None:
        """Return the (K) int64 indices of the tokens whose next one is to be predicted, ascending, on a GPU.

        Nobody waits for the GPU here: a batch that was brought there knows K from before. None for any other batch.
        """
        counted = self.__dict__.get("_counted")
        if self.next_tokens is None or counted is None:
            return None
        return (self.next_tokens == IGNORED_LABEL).byte().argsort(stable=True)[: counted["causal_lm"]]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "PackedBatch":
        """Return the batch with every tensor on `device`: itself where they are there already."""
        if all(tensor.device == torch.device(device) for tensor in self._tensors().values()):
            return self
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        # No field: `dataclasses.replace` makes a batch of other targets, which are to be counted anew.
        object.__setattr__(moved, "_counted", self.target_counts())
        return moved

    def pin_memory(self) -> "PackedBatch":
        """Return the batch in page-locked memory, from which a GPU copies without waiting."""
        return self._map(Tensor.pin_memory)

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the allocator that `stream` reads the batch, which was made on another one."""
        for tensor in self._tensors().values():
            tensor.record_stream(stream)

    def first_rows(self, values: Tensor) -> Tensor:
        """Return each sequence's first row, (B, ...) from (N, ...); every sequence has at least one token."""
        return values.index_select(0, self.cu_seqlens[:-1])

    def unpack(self, values: Tensor, *, padding_value: float = 0) -> Tensor:
        """Return packed rows in the padded layout; differentiable.

        A batch made by `from_padded` unpacks to the places its tokens came from (left padding and holes included);
        any other batch is padded on the right to `max_seqlen`.

        Args:
            values: (N, ...) one row per token, any dtype.
            padding_value: what stands where there is no token.

        Returns:
            (B, T, ...), dtype and device of `values`.
        """
        if values.shape[:1] != (self.num_tokens,):
            raise ValueError(f"values must have one row per token, ({self.num_tokens}, ...), got {tuple(values.shape)}")
        length = self.max_seqlen if self.padded_length is None else self.padded_length
        positions = self._right_padded_positions() if self.padded_positions is None else self.padded_positions
        flat = values.new_full((self.num_sequences * length, *values.shape[1:]), padding_value)
        return flat.index_copy(0, positions, values).unflatten(0, (self.num_sequences, length))

    @classmethod
    def from_padded(
        cls,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        sentence_labels: Tensor | None = None,
        sequence_labels: Tensor | None = None,
        answer_mask: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        token_labels: Tensor | None = None,
        causal_labels: Tensor | None = None,
    ) -> "PackedBatch":
        """Pack a padded batch: keep the tokens where `attention_mask` is not 0.

        Padding may stand on either side, and the mask may have holes. A sequence's first real token has position 0;
        the others keep their distance from it, so a hole hides a token without moving its neighbours.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T), 0 where there is no token; None means that all are tokens.
            token_type_ids: (B, T) int64; zeros where None.
            position_ids: (B, T) or (1, T) int64, used as given.
            labels: (B, T) int64, -100 where there is nothing to predict; labels of padding are ignored.
            sentence_labels: (B) int64.
            sequence_labels: (B) or (B, C).
            answer_mask: (B, T), 0 where no answer may begin or end.
            start_positions, end_positions: (B) int64: columns of the first and the last token of each row's answer; a
                row has none where one of them is negative, or T and more.
            token_labels: (B, T) int64, -100 where a token has no class; those of padding are ignored.
            causal_labels: (B, T) int64, the id of each token, or -100 where it is not to be predicted: it becomes the
                next token of the one in front of it.

        Raises:
            ValueError: for a wrong shape, a row without any token, or an answer that begins or ends at padding.
        """
        if input_ids.dim() != 2:
            raise ValueError(f"input_ids must have shape (B, T), got {tuple(input_ids.shape)}")
        shape = input_ids.shape
        if position_ids is not None and position_ids.dim() == 2 and position_ids.shape[0] == 1:
            position_ids = position_ids.expand(shape[0], -1)
        for name, value in {
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "labels": labels,
            "answer_mask": answer_mask,
            "token_labels": token_labels,
            "causal_labels": causal_labels,
        }.items():
            if value is not None and value.shape != shape:
                raise ValueError(
                    f"{name} must have the shape of input_ids, {tuple(shape)}, got {tuple(value.shape)}; "
                    "give one value per token"
                )
        real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask != 0
        lengths = real.sum(1)
        if input_ids.numel() == 0 or int(lengths.min()) == 0:
            raise ValueError(
                f"every sequence needs at least one token, but these rows have none: "
                f"{(lengths == 0).nonzero().flatten().tolist()}; drop them, or correct attention_mask"
            )
        if position_ids is None:
            first = real.int().argmax(1, keepdim=True)
            position_ids = torch.arange(shape[1], device=input_ids.device) - first
        padded_positions = real.flatten().nonzero().flatten()

        def pick(values: Tensor) -> Tensor:
            return values.reshape(-1)[padded_positions]

        targets = {} if labels is None else _targets("masked", pick(labels))
        if token_labels is not None:
            targets |= _targets("token", pick(token_labels))
        if causal_labels is not None:
            targets["next_tokens"] = following(pick(causal_labels), _cu_seqlens(lengths))
        if start_positions is not None or end_positions is not None:
            targets |= _answers(start_positions, end_positions, real)
        return cls(
            input_ids=pick(input_ids),
            cu_seqlens=_cu_seqlens(lengths),
            max_seqlen=int(lengths.max()),
            position_ids=pick(position_ids),
            token_type_ids=pick(torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids),
            sentence_labels=None if sentence_labels is None else sentence_labels.reshape(-1),
            sequence_labels=sequence_labels,
            answer_mask=None if answer_mask is None else pick(answer_mask) != 0,
            padded_positions=padded_positions,
            padded_length=shape[1],
            **targets,
        )

    @classmethod
    def from_sequences(
        cls,
        sequences: Sequence[Sequence[int]],
        *,
        token_type_ids: Sequence[Sequence[int]] | None = None,
        labels: Sequence[Sequence[int]] | None = None,
        sentence_labels: Sequence[int] | None = None,
        sequence_labels: Tensor | None = None,
        token_labels: Sequence[Sequence[int]] | None = None,
        predict_next: bool = False,
    ) -> "PackedBatch":
        """Pack sequences of token ids, special tokens included.

        Args:
            sequences: B sequences (lists, arrays or tensors) of ids.
            token_type_ids: one sequence of segment numbers per sequence; zeros where None.
            labels: one sequence of labels per sequence, -100 where there is nothing to predict.
            sentence_labels: B labels.
            sequence_labels: (B) or (B, C).
            token_labels: one sequence of classes per sequence, -100 where a token has none.
            predict_next: make each token's next one its target.

        Raises:
            ValueError: for no sequence, an empty one, or companions of another length.
        """
        lengths = [len(sequence) for sequence in sequences]
        if not lengths or min(lengths) == 0:
            raise ValueError(f"sequences must hold at least one token each, got lengths {lengths}; drop the empty ones")
        for name, companion in {
            "token_type_ids": token_type_ids,
            "labels": labels,
            "token_labels": token_labels,
        }.items():
            if companion is not None and [len(values) for values in companion] != lengths:
                raise ValueError(f"{name} must have the lengths of the sequences, {lengths}; give one value per token")
        input_ids = _concatenate(sequences)
        targets = {} if labels is None else _targets("masked", _concatenate(labels))
        if token_labels is not None:
            targets |= _targets("token", _concatenate(token_labels))
        cu_seqlens = _cu_seqlens(torch.tensor(lengths))
        if predict_next:
            targets["next_tokens"] = following(input_ids, cu_seqlens)
        return cls(
            input_ids=input_ids,
            cu_seqlens=cu_seqlens,
            max_seqlen=max(lengths),
            position_ids=torch.cat([torch.arange(length) for length in lengths]),
            token_type_ids=torch.zeros_like(input_ids) if token_type_ids is None else _concatenate(token_type_ids),
            sentence_labels=None if sentence_labels is None else torch.tensor(sentence_labels),
            sequence_labels=sequence_labels,
            **targets,
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> "PackedBatch":
        return replace(self, **{name: function(tensor) for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def _right_padded_positions(self) -> Tensor:
        starts = self.cu_seqlens[:-1].long()
        rows = torch.arange(self.num_sequences, device=starts.device)
        shift = rows * self.max_seqlen - starts
        token = torch.arange(self.num_tokens, device=starts.device)
        return token + torch.repeat_interleave(shift, self.cu_seqlens.diff().long(), output_size=self.num_tokens)


def following(values: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Return what stands behind each of the (N) values in its sequence; -100 behind the last."""
    shifted = values.roll(-1)
    shifted[cu_seqlens[1:].long() - 1] = IGNORED_LABEL
    return shifted


def _expect_1d(name: str, tensor: Tensor, length: int) -> None:
    if tensor.dim() != 1 or tensor.numel() != length:
        raise ValueError(f"{name} must have shape ({length},) in this batch, got {tuple(tensor.shape)}")


def _cu_seqlens(lengths: Tensor) -> Tensor:
    return torch.cat((lengths.new_zeros(1), lengths.cumsum(0))).int()


def _targets(kind: str, labels: Tensor) -> dict[str, Tensor]:
    positions = (labels != IGNORED_LABEL).nonzero().flatten()
    return {f"{kind}_positions": positions, f"{kind}_labels": labels[positions]}


def _answers(starts: Tensor | None, ends: Tensor | None, real: Tensor) -> dict[str, Tensor]:
    """Return indices into the real tokens from the columns of a padded layout."""
    if starts is None or ends is None:
        raise ValueError("start_positions and end_positions belong together; give both or neither")
    num_rows, length = real.shape
    columns = {}
    for name, values in (("start_positions", starts), ("end_positions", ends)):
        columns[name] = values.reshape(-1)
        _expect_1d(name, columns[name], num_rows)
    starts, ends = columns.values()
    answered = (starts >= 0) & (ends >= 0) & (starts < length) & (ends < length)
    index_of = (real.flatten().cumsum(0) - 1).reshape(real.shape)
    rows, found = torch.arange(num_rows, device=real.device), {}
    for name, values in (("answer_starts", starts), ("answer_ends", ends)):
        inside = values.clamp(0, length - 1)
        if real.device.type == "cpu" and not bool((real[rows, inside] | ~answered).all()):
            row = int((answered & ~real[rows, inside]).nonzero()[0])
            raise ValueError(f"the answer of row {row}, {int(starts[row])} to {int(ends[row])}, ends in padding")
        found[name] = index_of[rows, inside].masked_fill(~answered, IGNORED_LABEL)
    return found


def _concatenate(sequences: Sequence[Sequence[int]]) -> Tensor:
    arrays = [np.asarray(sequence) for sequence in sequences]
    if other := next((array.dtype for array in arrays if array.size and array.dtype.kind not in "iub"), None):
        raise ValueError(f"sequences must hold whole numbers, got {other}")
    return torch.from_numpy(np.concatenate(arrays).astype(np.int64, copy=False))
