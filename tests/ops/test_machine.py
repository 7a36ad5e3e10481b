import time

import pytest
import torch

from fastssl.ops.machine import measured_copy_bandwidth, measured_matmul_flops, measured_read_bandwidth


def test_probes_are_kept_for_the_process():
    for probe in (measured_matmul_flops, measured_copy_bandwidth, measured_read_bandwidth):
        first = probe()
        assert first > 1e6
        start = time.perf_counter()
        assert probe() == first
        assert time.perf_counter() - start < 0.05, "the second call measured again"


def test_probes_are_plausible_against_a_plain_timing():
    x = torch.ones(1536, 1536)
    torch.mm(x, x)
    start = time.perf_counter()
    torch.mm(x, x)
    plain = 2 * 1536**3 / (time.perf_counter() - start)
    assert measured_matmul_flops() > plain / 3


@pytest.mark.native
@pytest.mark.parametrize("count", [0, 1, 127, 100_003])
def test_the_compiled_reading_misses_nothing(capability, with_threads, count):
    words = torch.randint(-(2**31), 2**31, (count,), generator=torch.Generator().manual_seed(3), dtype=torch.int64)
    expected = int(words.sum()) % 2**32
    for num_threads in (1, 3):
        assert with_threads(num_threads, lambda: torch.ops.fastssl.sum_of_words(words.int())) == expected
