"""PackedBatch: what goes in padded comes out padded, and nothing in between is padding."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastssl.data.batch import PackedBatch


@st.composite
def padded_batches(draw):
    b, t = draw(st.integers(1, 5)), draw(st.integers(1, 9))
    mask = torch.tensor(draw(st.lists(st.lists(st.booleans(), min_size=t, max_size=t), min_size=b, max_size=b)))
    mask[:, draw(st.integers(0, t - 1))] = True
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    input_ids = torch.randint(0, 50, (b, t), generator=generator)
    labels = torch.where(torch.rand(b, t, generator=generator) < 0.3, input_ids, -100)
    return input_ids, mask, labels


@given(padded_batches())
def test_from_padded_keeps_exactly_the_real_tokens(padded):
    input_ids, mask, labels = padded
    batch = PackedBatch.from_padded(input_ids, mask.long(), labels=labels)
    assert batch.num_tokens == mask.sum()
    assert batch.cu_seqlens.diff().tolist() == mask.sum(1).tolist()
    assert batch.max_seqlen == mask.sum(1).max()
    assert torch.equal(batch.unpack(batch.input_ids, padding_value=-1), input_ids.masked_fill(~mask, -1))
    packed_labels = torch.full_like(batch.input_ids, -100).index_copy(0, batch.masked_positions, batch.masked_labels)
    assert torch.equal(batch.unpack(packed_labels, padding_value=-100), labels.masked_fill(~mask, -100))
    assert batch.target_counts() == {"masked_lm": int(((labels != -100) & mask).sum())}
    first_column = mask.int().argmax(1)
    for row, columns in enumerate(mask):
        start, end = batch.cu_seqlens[row : row + 2].tolist()
        expected = columns.nonzero().flatten() - first_column[row]
        assert batch.position_ids[start:end].tolist() == expected.tolist()


def test_padding_side_does_not_matter():
    ids = torch.tensor([[5, 6, 7, 0, 0], [1, 2, 3, 4, 5]])
    right = PackedBatch.from_padded(ids, torch.tensor([[1, 1, 1, 0, 0], [1] * 5]))
    left = PackedBatch.from_padded(
        torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]]), torch.tensor([[0, 0, 1, 1, 1], [1] * 5])
    )
    packed = PackedBatch.from_sequences([[5, 6, 7], [1, 2, 3, 4, 5]])
    for name in ("input_ids", "cu_seqlens", "position_ids", "token_type_ids"):
        assert torch.equal(getattr(left, name), getattr(right, name))
        assert torch.equal(getattr(left, name), getattr(packed, name))
    assert torch.equal(packed.unpack(packed.input_ids), ids)


def test_no_mask_means_no_padding_and_id_0_is_real():
    batch = PackedBatch.from_padded(
        torch.zeros(2, 3, dtype=torch.long), labels=torch.tensor([[0, -100, 0], [-100] * 3])
    )
    assert batch.num_tokens == 6
    assert batch.masked_positions.tolist() == [0, 2] and batch.masked_labels.tolist() == [0, 0]


def test_given_positions_and_segments_are_used():
    batch = PackedBatch.from_padded(
        torch.tensor([[7, 8, 9]]),
        torch.tensor([[1, 0, 1]]),
        torch.tensor([[0, 0, 1]]),
        torch.tensor([[4, 5, 6]]),
        sentence_labels=torch.tensor([[1]]),
    )
    assert batch.position_ids.tolist() == [4, 6] and batch.token_type_ids.tolist() == [0, 1]
    assert batch.target_counts() == {"sentence": 1}
    shared = PackedBatch.from_padded(torch.ones(3, 2, dtype=torch.long), position_ids=torch.tensor([[1, 2]]))
    assert shared.position_ids.tolist() == [1, 2] * 3


def test_unpack_is_differentiable_and_takes_trailing_dimensions():
    batch = PackedBatch.from_sequences([[1, 2], [3]], labels=[[1, -100], [-100]], sentence_labels=[0, 1])
    values = torch.arange(6.0).reshape(3, 2).requires_grad_()
    padded = batch.unpack(values, padding_value=9)
    assert padded.tolist() == [[[0, 1], [2, 3]], [[4, 5], [9, 9]]]
    padded.sum().backward()
    assert torch.equal(values.grad, torch.ones(3, 2))
    assert batch.target_counts() == {"masked_lm": 1, "sentence": 2}


def test_to_moves_every_tensor():
    batch = PackedBatch.from_padded(torch.ones(1, 2, dtype=torch.long), labels=torch.ones(1, 2, dtype=torch.long))
    moved = batch.to("meta")
    assert all(t.device.type == "meta" for t in vars(moved).values() if isinstance(t, torch.Tensor))
    assert moved.num_tokens == 2 and moved.padded_length == 2
    assert batch.to("cpu") is batch and moved.to(torch.device("meta")) is moved


IDS = torch.ones(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PackedBatch.from_padded(IDS[0]), r"input_ids must have shape \(B, T\)"),
        (lambda: PackedBatch.from_padded(IDS, IDS[:, :2]), "attention_mask must have the shape"),
        (lambda: PackedBatch.from_padded(IDS, labels=IDS[:1]), "labels must have the shape"),
        (lambda: PackedBatch.from_padded(IDS, torch.tensor([[1, 1, 1], [0, 0, 0]])), r"these rows have none: \[1\]"),
        (
            lambda: PackedBatch.from_padded(IDS, sentence_labels=torch.ones(3)),
            r"sentence_labels must have shape \(2,\)",
        ),
        (lambda: PackedBatch.from_sequences([]), "at least one token"),
        (lambda: PackedBatch.from_sequences([[1], []]), "at least one token"),
        (lambda: PackedBatch.from_sequences([[1], [1.7, 2.9]]), "sequences must hold whole numbers, got float64"),
        (lambda: PackedBatch.from_sequences([[1, 2]], labels=[[1]]), "labels must have the lengths"),
        (lambda: PackedBatch.from_sequences([[1, 2]]).unpack(torch.ones(3)), "one row per token"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_inconsistent_fields_are_refused():
    good = vars(PackedBatch.from_sequences([[1, 2], [3]]))
    for change, message in [
        ({"cu_seqlens": torch.tensor([0, 2, 4], dtype=torch.int32)}, "end at 3"),
        ({"cu_seqlens": torch.tensor([0, 2, 3])}, "int32"),
        ({"position_ids": torch.ones(2)}, "position_ids"),
        ({"masked_positions": torch.tensor([1])}, "belong together"),
    ]:
        with pytest.raises(ValueError, match=message):
            PackedBatch(**{**good, **change})


def test_targets_are_counted_before_a_batch_leaves_the_host():
    ids = torch.arange(12).view(2, 6)
    batch = PackedBatch.from_padded(ids, causal_labels=ids.masked_fill(ids % 4 == 1, -100))
    # Nothing can be read of a meta tensor, as nothing should be of a GPU's.
    assert batch.to("meta").target_counts() == batch.target_counts() == {"causal_lm": 7}
    fewer = replace(batch.to("cpu"), next_tokens=torch.full_like(batch.next_tokens, -100))
    assert fewer.target_counts() == {"causal_lm": 0}
