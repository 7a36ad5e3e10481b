"""Hugging Face transformers: GPT-2, its training inputs and its `generate`."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fastssl.data.batch import PackedBatch


def load(directory: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return `transformers.GPT2LMHeadModel` with the weights and the config of a directory, in training mode."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers.GPT2LMHeadModel.from_pretrained(directory, dtype=dtype).train()


def inputs(batch: PackedBatch) -> dict[str, Tensor]:
    """Return sequences of one length as the model takes them; it shifts the labels itself."""
    ids = batch.unpack(batch.input_ids)
    return {"input_ids": ids, "labels": ids}


def greedy(model: nn.Module, prompts: Tensor, new_tokens: int) -> tuple[Tensor, list[float]]:
    """Return what `generate` adds to prompts (B, T), (B, new_tokens), and the clock's reading after each token."""
    readings: list[float] = []

    def read_clock(ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        readings.append(time.perf_counter())
        return torch.zeros(ids.shape[0], dtype=torch.bool)

    whole = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=new_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
        stopping_criteria=[read_clock],
    )
    return whole[:, prompts.shape[1] :], readings


@torch.inference_mode()
def next_token_logits(model: nn.Module, prompts: Tensor) -> Tensor:
    """Return the scores (B, V) of what follows prompts (B, T), as `generate` reads a prompt: into a cache."""
    return model(prompts, use_cache=True, logits_to_keep=1).logits[:, -1]


@torch.inference_mode()
def loglikelihoods(
    model: nn.Module, requests: Sequence[tuple[list[int], list[int]]], batch_size: int
) -> list[tuple[float, bool]]:
    """Return (log-probability, whether it is greedy) of continuations behind contexts: longest first, padded rows."""
    order = sorted(range(len(requests)), key=lambda number: -sum(map(len, requests[number])))
    answers = {}
    for begin in range(0, len(order), batch_size):
        numbers = order[begin : begin + batch_size]
        rows = [torch.tensor(requests[n][0] + requests[n][1][:-1]) for n in numbers]
        logits = model(nn.utils.rnn.pad_sequence(rows, batch_first=True)).logits.log_softmax(-1)
        for number, row, own in zip(numbers, rows, logits, strict=True):
            targets = torch.tensor(requests[number][1])
            scores = own[len(row) - len(targets) : len(row)]
            total = scores.gather(1, targets[:, None]).sum()
            answers[number] = (float(total), bool((scores.argmax(-1) == targets).all()))
    return [answers[number] for number in range(len(requests))]
