"""Whether kernels that no recorded run has verified come to an end: a trial in a process that may be ended for it."""

import functools
import os
import subprocess
import sys
from itertools import accumulate, product

import torch

from benchmarks.environment import ROOT
from fastssl.ops import attention

VERDICT = "FASTSSL_TRIAL_OF_HOPPER"
"""Environment variable with what `why_not("hopper")` says, for the processes of one run."""
SECONDS = 60
"""For Python, CUDA and the kernels."""
LENGTHS = ((512,) * 40 + (3, 130), (200, 3, 700), (20_000,))
"""Short sequences, enough that tiles of one share its keys, some that no ring holds, and more tiles than blocks run."""


@functools.cache
def why_not(backend: str) -> str:
    """Return why a backend of attention cannot be measured or tested on this GPU; "" where its kernels end well."""
    if backend == "hopper" and VERDICT in os.environ:
        return os.environ[VERDICT]
    command = [sys.executable, "-m", "benchmarks.gpu.trial", backend]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"attention by {backend!r} did not end within {SECONDS} s"
    lines = done.stderr.strip().splitlines() or ["no message"]
    return "" if done.returncode == 0 else f"attention by {backend!r} failed: {lines[-1]}"


def left_out(backend: str) -> str:
    """Return what a report says of a backend that was made for this GPU and does not work on it; "" of any other."""
    reason = why_not(backend)
    return f"own {backend} left out: {reason}" if reason and torch.cuda.get_device_capability() == (9, 0) else ""


def main(backend: str) -> None:
    """Run forward and backward of packed sequences, of each head width of the kernels, with and without dropout."""
    for lengths, width in product(LENGTHS, (64, 128)):
        offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device="cuda")
        for options in ({}, {"dropout_p": 0.1}, {"causal": True}, {"window": (70, 20)}):
            bounds = {"max_seqlen_q": max(lengths), "max_seqlen_k": max(lengths)} if options else {}
            for key_heads in (4, 2):
                q, k, v = (
                    torch.randn(sum(lengths), heads, width, device="cuda").bfloat16().requires_grad_()
                    for heads in (4, key_heads, key_heads)
                )
                out = attention(q, k, v, cu_seqlens_q=offsets, backend=backend, **bounds, **options)
                grads = torch.autograd.grad(out.float().square().sum(), (q, k, v))
                if not all(tensor.isfinite().all() for tensor in (out, *grads)):
                    sys.exit(f"attention by {backend!r} gives what is not finite")


if __name__ == "__main__":
    main(*sys.argv[1:])
