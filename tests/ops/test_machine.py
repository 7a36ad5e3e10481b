import time

import torch

from fastssl.ops.machine import measured_copy_bandwidth, measured_matmul_flops


def test_probes_are_kept_for_the_process():
    for probe in (measured_matmul_flops, measured_copy_bandwidth):
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
