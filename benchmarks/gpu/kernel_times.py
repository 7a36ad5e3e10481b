"""Device time of calls and of training steps, kernel by kernel: `python -m benchmarks.gpu.kernel_times`.

By torch's profiler: durations of kernels without the gaps between them. Beside it the host's time, until it has
handed a call over. Where that is longer, the device waits for the host. `--rehearse` runs tiny sizes on the CPU.
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.environment import cuda_ops_loaded
from benchmarks.gpu.trial import why_not
from benchmarks.models import batches
from benchmarks.models.gpt_pretraining_step import random_batch
from benchmarks.models.training_step import our_adamw
from fastssl.data.batch import PackedBatch
from fastssl.models.bert import BertForMaskedLM
from fastssl.models.gpt_causal_lm import GPTForCausalLM
from fastssl.models.presets import preset
from fastssl.ops.attention.api import attention
from fastssl.ops.attention.cases import offsets
from fastssl.ops.bias_gelu.api import bias_gelu
from fastssl.ops.linear_cross_entropy.api import linear_cross_entropy
from fastssl.training.precision import autocast

WARMUPS, CALLS, KERNELS = 3, 5, 8
DTYPE = torch.bfloat16


def calls(device: torch.device, sequences: int, length: int, vocab_sizes: Mapping[int, int]) -> dict[str, Callable]:
    """Return name -> forward and backward of an operator, or a training step.

    Args:
        device: where they run.
        sequences, length: of attention and of the step, packed.
        vocab_sizes: V -> labelled rows of linear cross-entropy.
    """
    rows, found = sequences * length, {}

    def leaf(*shape: int, dtype: torch.dtype = DTYPE) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype).requires_grad_()

    def both(out: torch.Tensor, leaves: Sequence[torch.Tensor]) -> None:
        torch.autograd.grad(out, leaves, out.detach())  # the output stands for its gradient: no kernel more

    qkv, lengths = [leaf(rows, 12, 64) for _ in range(3)], offsets((length,) * sequences).to(device)
    backends = ["auto", "native"] if device.type == "cpu" or cuda_ops_loaded() else ["auto"]
    if device.type == "cuda" and not why_not("hopper"):
        backends.append("hopper")
    for p, backend in product((0.0, 0.1), backends):
        options = {"cu_seqlens_q": lengths, "max_seqlen_q": length, "dropout_p": p, "seed": 3 if p else None}
        options["backend"] = backend
        found[f"attention, dropout {p}, {backend}"] = lambda options=options: both(attention(*qkv, **options), qkv)
    x, bias = leaf(rows, 3072), leaf(3072, dtype=torch.float32)
    for backend in ("auto", "stock"):
        found[f"bias + GELU, {backend}"] = lambda backend=backend: both(bias_gelu(x, bias, backend=backend), (x, bias))
    for vocab_size, labelled in vocab_sizes.items():
        operands = leaf(labelled, 768), leaf(vocab_size, 768)
        targets = torch.randint(vocab_size, (labelled,), device=device)
        found[f"linear cross-entropy, V = {vocab_size}"] = lambda operands=operands, targets=targets: both(
            linear_cross_entropy(*operands, targets, ignore_index=None), operands
        )
    bert = preset("bert-base" if device.type == "cuda" else "bert-tiny")
    gpt = replace(preset("gpt2"), num_hidden_layers=12 if device.type == "cuda" else 1)
    packed = batches.of_lengths(1, (length,) * sequences, vocab_size=bert.vocab_size, mask_rate=0.3)[0]
    found["BERT's training step"] = training_step(BertForMaskedLM(bert), packed, device)
    shape = (max(sequences // 2, 1), min(2 * length, gpt.max_position_embeddings))
    found["GPT-2's training step"] = training_step(GPTForCausalLM(gpt), random_batch(gpt, shape), device)
    return found


def training_step(model: nn.Module, batch: PackedBatch, device: torch.device) -> Callable[[], None]:
    """Return a step of our training, the same batch each time, operator by operator."""
    model, batch = model.to(device).train(), batch.to(device)
    optimizer = our_adamw(model)

    def step() -> None:
        with autocast(device, DTYPE):
            loss = model(batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def report(name: str, call: Callable[[], object], device: torch.device) -> str:
    """Return a line of a call's time on device and host and its longest kernels, in microseconds."""
    for _ in range(WARMUPS):
        call()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        for _ in range(CALLS):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize()
    kind = torch.autograd.DeviceType.CUDA if device.type == "cuda" else torch.autograd.DeviceType.CPU
    events = [event for event in profiled.key_averages() if event.device_type == kind]

    def microseconds(event) -> float:
        return (event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total) / CALLS

    events.sort(key=microseconds, reverse=True)
    longest = "; ".join(f"{event.key[:48]} {microseconds(event):.1f}" for event in events[:KERNELS])
    return f"{name}: {sum(map(microseconds, events)):.1f} us, host {host_us(call, device):.1f} us: {longest}"


def host_us(call: Callable[[], object], device: torch.device) -> float:
    """Return the median of the microseconds until a call returns, which does not wait for the device."""
    taken = []
    for _ in range(CALLS):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        taken.append(1e6 * (time.perf_counter() - start))
    return statistics.median(taken)


def main(rehearse: bool) -> None:
    """Print a line a call."""
    device = torch.device("cpu" if rehearse else "cuda")
    sizes = (2, 16, {101: 12}) if rehearse else (32, 512, {30522: 2457, 50257: 8192})
    for name, call in calls(device, *sizes).items():
        print(report(name, call, device), flush=True)


if __name__ == "__main__":
    main("--rehearse" in sys.argv[1:])
