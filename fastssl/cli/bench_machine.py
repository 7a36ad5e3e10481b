"""``fastssl bench machine``: what this machine gives."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch

from fastssl import extension
from fastssl.cli.flags import parse_flags
from fastssl.cli.threads import use_threads
from fastssl.ops.machine import measured_copy_bandwidth, measured_matmul_flops, measured_read_bandwidth


@dataclass(frozen=True, kw_only=True)
class BenchMachineFlags:
    """Measure the rate of a matrix product in fp32 and in bf16, and of a copy in memory, for a third of a second each.

    Examples:
      fastssl bench machine
      fastssl bench machine --json
    """

    num_threads: int | None = None
    """Threads to use; PyTorch's choice when left out."""
    json: bool = False
    """Print JSON instead of lines."""


def main(arguments: list[str]) -> int:
    """Print what the machine gives."""
    flags = parse_flags(BenchMachineFlags, arguments, program="fastssl bench machine")
    use_threads(flags.num_threads)
    found = {
        "num_threads": torch.get_num_threads(),
        "instruction_set": extension.cpu_capability(),
        "fp32_matmul_flops_per_second": measured_matmul_flops(torch.float32),
        "bf16_matmul_flops_per_second": measured_matmul_flops(torch.bfloat16),
        "copy_bytes_per_second": measured_copy_bandwidth(),
        "read_bytes_per_second": measured_read_bandwidth(),
    }
    if flags.json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"{found['num_threads']} threads; compiled operators for {found['instruction_set'] or 'none: not built'}")
    print(f"matrix product: {found['fp32_matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s in fp32, ", end="")
    print(f"{found['bf16_matmul_flops_per_second'] / 1e9:,.0f} in bf16")
    print(f"copy: {found['copy_bytes_per_second'] / 1e9:,.1f} GB/s, read and written together; ", end="")
    print(f"reading: {found['read_bytes_per_second'] / 1e9:,.1f} GB/s")
    return 0
