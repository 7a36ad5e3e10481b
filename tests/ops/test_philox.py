"""Philox against the published test vectors, and the statistics of the masks."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fastssl.ops.philox import (
    attention_keep_mask,
    dropout_scale,
    dropout_threshold,
    keep_mask,
    layer_norm_keep_mask,
    philox_4x32,
    resolve_seed,
)

README = Path(__file__).resolve().parents[2] / "fastssl" / "ops" / "README.md"

# Known-answer vectors of the authors' Random123 distribution (kat_vectors, philox4x32, 10 rounds).
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    words = philox_4x32(tuple(torch.tensor(c) for c in counter), key[0] | key[1] << 32)
    assert tuple(int(w) for w in words) == expected


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_keep_rate_is_the_quantised_one(p):
    mask = layer_norm_keep_mask(512, 768, p, seed=3)
    expected = 1 - dropout_threshold(p) / 65536
    deviation = (p * (1 - p) / mask.numel()) ** 0.5
    assert abs(mask.double().mean().item() - expected) < 5 * deviation
    assert dropout_scale(p) == pytest.approx(1 / expected)


def test_masks_depend_on_coordinates_alone():
    small, large = attention_keep_mask(5, 13, 2, 1, 0.3, seed=9), attention_keep_mask(11, 40, 4, 1, 0.3, seed=9)
    assert torch.equal(small, large[:2, :5, :13])
    assert not torch.equal(large, attention_keep_mask(11, 40, 4, 2, 0.3, seed=9))
    assert not torch.equal(large, attention_keep_mask(11, 40, 4, 1, 0.3, seed=10))


def test_seed_forms():
    assert resolve_seed(2**64 - 1).item() == -1
    assert resolve_seed(torch.tensor(5)).item() == 5
    assert resolve_seed(np.int64(5)).item() == resolve_seed(np.uint8(5)).item() == 5
    for wrong in (1.0, "1", np.float32(1)):
        with pytest.raises(ValueError, match="an int or a 0-d int64 tensor"):
            resolve_seed(wrong)
        with pytest.raises(ValueError, match="an int or a 0-d int64 tensor"):
            layer_norm_keep_mask(1, 8, 0.5, wrong)
    assert torch.equal(layer_norm_keep_mask(3, 8, 0.5, np.int64(5)), layer_norm_keep_mask(3, 8, 0.5, 5))
    torch.manual_seed(0)
    first = resolve_seed(None)
    torch.manual_seed(0)
    assert torch.equal(first, resolve_seed(None))
    with pytest.raises(ValueError, match="0-d int64"):
        resolve_seed(torch.tensor([1.0]))


def test_probability_outside_range_is_refused():
    with pytest.raises(ValueError, match="below 1"):
        dropout_threshold(1.0)


def test_vectors_of_the_readme():
    """The table that other implementations are written from."""
    rows = re.findall(
        r"^\| (-?\d+) \| ([\d ]+) \| ([0-9a-f ]+) \| ([01 ]+) \|$", README.read_text(), flags=re.MULTILINE
    )
    assert len(rows) == 4
    for seed, counter, words, kept in rows:
        counter = tuple(torch.tensor([int(word)]) for word in counter.split())
        assert [f"{int(word):08x}" for word in philox_4x32(counter, int(seed))] == words.split()
        assert keep_mask(counter, 8, 0.3, int(seed)).tolist() == [bool(int(bit)) for bit in kept.split()]
