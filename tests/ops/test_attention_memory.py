"""Attention's memory grows with the length, not with its square."""

import subprocess
import sys

import pytest

# The peak of the process itself: ru_maxrss would begin at the peak of the process that forked this one.
_PEAK = """
import re, sys, torch
from fastssl.ops.attention.api import attention
def peak_bytes():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
def run(length):
    q, k, v = (torch.randn(1, length, 1, 32, requires_grad=True) for _ in range(3))
    attention(q, k, v, dropout_p=0.1, seed=1, backend=sys.argv[1]).sum().backward()
run(64)
before = peak_bytes()
run(4096)
print((peak_bytes() - before) / (4 * 4096 * 4096))
"""


def _peak_in_score_matrices(backend: str) -> float:
    done = subprocess.run([sys.executable, "-c", _PEAK, backend], capture_output=True, check=True, text=True)
    return float(done.stdout)


@pytest.mark.native
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
def test_no_score_matrix_is_held():
    """In units of one (T, S) matrix of scores at length 4096: forward and backward, dropout included."""
    assert _peak_in_score_matrices("native") < 0.25
    assert _peak_in_score_matrices("reference") > 2
