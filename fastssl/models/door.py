"""The door of a model: padded tensors are packed here once on the way in, and unpacked once on the way out."""

import torch
from torch import Tensor

from fastssl.data.batch import PackedBatch
from fastssl.nn.encoder import Trace


def pack(
    batch: PackedBatch | None,
    *,
    vocab_size: int,
    max_positions: int,
    num_token_types: int,
    input_ids: Tensor | None = None,
    **padded: Tensor | None,
) -> PackedBatch:
    """Return the packed batch that a model runs on.

    Args:
        batch: a packed batch, or None.
        vocab_size: V of the model.
        max_positions: longest sequence of the model, in tokens.
        num_token_types: token types of the model.
        input_ids: (B, T) int64, where there is no packed batch.
        padded: the other arguments of `PackedBatch.from_padded`.

    Raises:
        ValueError: for neither or both kinds of input, one that is no tensor, a sequence too long for the model, or an
            id outside of one of its tables (seen on the CPU; a GPU is not made to wait for this check).
    """
    if batch is not None and not isinstance(batch, PackedBatch):
        raise ValueError(
            f"the model's first argument must be a PackedBatch, got {type(batch).__name__}; "
            "pass padded tensors by name: model(input_ids=..., attention_mask=...)"
        )
    surplus = [name for name, value in {"input_ids": input_ids, **padded}.items() if value is not None]
    if batch is None and input_ids is None:
        raise ValueError("the model needs a PackedBatch, or input_ids of shape (B, T); got neither")
    if batch is not None and surplus:
        raise ValueError(f"the model got a PackedBatch and also {', '.join(surplus)}; give one or the other")
    for name, value in {"input_ids": input_ids, **padded}.items():
        if value is not None and not isinstance(value, Tensor):
            argument = "labels" if name in ("sequence_labels", "token_labels", "causal_labels") else name
            raise ValueError(f"{argument} must be a tensor, got {type(value).__name__}; make one with torch.tensor")
    packed = PackedBatch.from_padded(input_ids, **padded) if batch is None else batch
    if packed.max_seqlen > max_positions:
        raise ValueError(
            f"a sequence of {packed.max_seqlen} tokens is longer than the model's {max_positions} positions "
            "(max_position_embeddings); cut it, or split it into several"
        )
    if packed.input_ids.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_range(
            "input_ids", packed.input_ids, vocab_size, "the tokenizer and the model have different vocabularies"
        )
        _check_range("token_type_ids", packed.token_type_ids, num_token_types, "type_vocab_size is too small")
        _check_range("position_ids", packed.position_ids, max_positions, "max_position_embeddings is too small")
    return packed


class View:
    """How outputs are shown to the caller: packed as computed, or padded as the input came."""

    def __init__(self, padded: bool, output_hidden_states: bool, output_attentions: bool) -> None:
        self.padded = padded
        self.trace = Trace(
            hidden_states=[] if output_hidden_states else None, attentions=[] if output_attentions else None
        )

    def tokens(self, batch: PackedBatch, rows: Tensor) -> Tensor:
        """Return (N, ...) rows as they are, or (B, T, ...) with 0 at padding."""
        return batch.unpack(rows) if self.padded else rows

    def traced(self, batch: PackedBatch) -> dict[str, tuple]:
        """Return what was recorded on the way, "hidden_states" and "attentions", as far as it was asked for."""
        found = {}
        if self.trace.hidden_states is not None:
            found["hidden_states"] = tuple(self.tokens(batch, rows) for rows in self.trace.hidden_states)
        if self.trace.attentions is not None:
            layers = self.trace.attentions
            found["attentions"] = tuple(unpack_attentions(batch, one) if self.padded else one for one in layers)
        return found


def unpack_attentions(batch: PackedBatch, attentions: tuple[Tensor, ...]) -> Tensor:
    """Return one layer's attention probabilities in the padded layout that `batch` came from.

    Args:
        batch: made by `PackedBatch.from_padded`.
        attentions: B tensors (H, T_b, T_b), T_b the real tokens of a sequence.

    Returns:
        (B, H, T, T); 0 in the rows and columns of padding.
    """
    length = batch.padded_length
    padded = attentions[0].new_zeros(batch.num_sequences, attentions[0].shape[0], length, length)
    columns = batch.padded_positions.remainder(length).split(batch.cu_seqlens.diff().tolist())
    for sequence, (column, probabilities) in enumerate(zip(columns, attentions, strict=True)):
        padded[sequence, :, column[:, None], column] = probabilities
    return padded


def _check_range(name: str, values: Tensor, end: int, cause: str) -> None:
    if values.numel() == 0:
        return
    low, high = (bound.item() for bound in values.aminmax())
    if low < 0 or high >= end:
        wrong = low if low < 0 else high
        raise ValueError(f"{name} must be at least 0 and below {end}, got {wrong}: {cause}")
