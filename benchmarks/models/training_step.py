"""One optimizer step of any model, and the check that two models take the same one."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from benchmarks.peers import hugging_face
from fastssl.data.batch import PackedBatch
from fastssl.models.bert import BertForMaskedLM
from fastssl.models.bert_files import file_layout
from fastssl.training.optimizer import FusedAdamW, parameter_groups
from fastssl.training.precision import autocast
from tests.oracle import assert_within_budget

WEIGHT_DECAY = 0.01
Batch = TypeVar("Batch")


class TrainingStep(Generic[Batch]):
    """Forward, backward, clipping, optimizer, gradients forgotten; each call takes the next batch."""

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, Batch], Tensor],
        batch_of: Callable[[int], Batch],
        optimizer: torch.optim.Optimizer,
        *,
        max_grad_norm: float | None = None,
    ) -> None:
        """Begin before the first step.

        Args:
            model: to be trained.
            loss: of the model on a batch.
            batch_of: step, from 0 -> its batch, in the form that `loss` takes.
            optimizer: of the model's parameters.
            max_grad_norm: clip the gradient to this 2-norm; None leaves it as it is.
        """
        self.model = model
        self.steps = 0
        self._loss, self._batch_of, self._optimizer, self._max_grad_norm = loss, batch_of, optimizer, max_grad_norm

    def __call__(self) -> None:
        """Train on the next batch."""
        self._loss(self.model, self._batch_of(self.steps)).backward()
        if self._max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.steps += 1


def our_adamw(model: nn.Module, *, learning_rate: float = 1e-4) -> FusedAdamW:
    """Return the AdamW of our trainer, with weight decay on matrices alone."""
    return FusedAdamW(parameter_groups(model, WEIGHT_DECAY), lr=learning_rate)


def adamw(model: nn.Module, *, fused: bool, learning_rate: float = 1e-4) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices alone: as one kernel, or as torch's default on this device."""
    return torch.optim.AdamW(parameter_groups(model, WEIGHT_DECAY), lr=learning_rate, fused=True if fused else None)


def in_turn(batches: Sequence[Batch]) -> Callable[[int], Batch]:
    """Return the batch of any step: these, round and round."""
    return lambda step: batches[step % len(batches)]


def loss_of_fastssl(model: nn.Module, batch: PackedBatch) -> Tensor:
    """Return our loss; the seed of the step's dropout comes from torch's generator."""
    return model(batch).loss


@contextmanager
def saved(model: nn.Module) -> Iterator[Path]:
    """Hold a model in a Hugging Face directory, from which peers take the same weights."""
    with tempfile.TemporaryDirectory(prefix="fastssl-benchmark-") as name:
        model.save_pretrained(name)
        yield Path(name)


def assert_same_step(
    directory: Path, batch: PackedBatch, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> None:
    """Hold our loss and gradients to the error budget of the tests, against Hugging Face in `dtype` and float64.

    Both models are read anew from `directory` and run without dropout; a `dtype` below float32 is that of autocast.

    Raises:
        AssertionError: naming the weight whose gradient differs.
    """
    padded, batch = hugging_face.inputs(batch.to(device)), batch.to(device)
    precision = autocast(torch.device(device), dtype)
    with precision:
        same = loss_and_gradients(hugging_face.load(directory).to(device), padded)
    exact = loss_and_gradients(hugging_face.load(directory, torch.float64).to(device), padded)
    model = BertForMaskedLM.from_pretrained(directory).to(device).eval()
    with precision:
        loss = loss_of_fastssl(model, batch)
    loss.backward()
    parameters = dict(model.named_parameters())
    found = {"loss": loss.detach()}
    for name, spellings in file_layout(model).tensors.items():
        found |= dict(zip(spellings, parameters[name].grad.chunk(len(spellings)), strict=True))
    for name, value in found.items():
        assert_within_budget(name, value, same[name], exact[name], dtype)


def loss_and_gradients(model: nn.Module, padded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return "loss" and each weight's gradient, by name, of a Hugging Face model without dropout."""
    loss = hugging_face.loss(model.eval(), padded)
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
