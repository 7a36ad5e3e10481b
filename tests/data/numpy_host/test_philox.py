"""Random numbers of the data code: the published vectors, the documented counters."""

import numpy as np
import pytest

from fastssl.data.numpy_host.philox import MASKING, Stream, draws, philox_4x32

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
    assert philox_4x32(counter, key[0] | key[1] << 32).tolist() == list(expected)


def test_stream_hands_out_the_documented_counters():
    seed, epoch, item = 2**63 + 9, 7, 2**33 + 5
    stream = Stream(seed, MASKING, epoch, item)
    for block in range(70):
        words = [int(w) for w in philox_4x32((block, 5, 7, MASKING + 256 * 2), seed)]
        assert stream.next() == words[0] | words[1] << 32
        assert stream.next() == words[2] | words[3] << 32


def test_draws_of_items_are_those_of_their_streams():
    first = draws(3, MASKING, 1, np.array([0, 6, 2**32]), 0)[:, 0]
    assert first.tolist() == [Stream(3, MASKING, 1, item).next() for item in (0, 6, 2**32)]


def test_below_is_uniform():
    stream = Stream(0, 1, 0, 0)
    counts = np.bincount([stream.below(7) for _ in range(7000)], minlength=7)
    assert len(counts) == 7
    assert abs(counts - 1000).max() < 5 * (1000 * 6 / 7) ** 0.5


def test_happens_with_its_probability():
    stream = Stream(1, 1, 0, 0)
    assert not any(stream.happens(0) for _ in range(100))
    assert all(stream.happens(2**32) for _ in range(100))
    assert abs(sum(stream.happens(2**30) for _ in range(4000)) - 1000) < 5 * 750**0.5
