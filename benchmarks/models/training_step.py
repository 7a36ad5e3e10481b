"""One optimizer step of any model, and the check that two models take the same one."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from benchmarks.peers import hugging_face
from fastssl.data.batch import PackedBatch
from fastssl.models.bert import BertForMaskedLM
from fastssl.models.bert_files import file_layout
from fastssl.training.optimizer import parameter_groups
from tests.oracle import assert_within_budget

LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.01
Batch = TypeVar("Batch")


class TrainingStep(Generic[Batch]):
    """Forward, backward, AdamW, gradients forgotten; each call takes the next batch, round and round."""

    def __init__(
        self, model: nn.Module, loss: Callable[[nn.Module, Batch], Tensor], batches: list[Batch], *, fused_adamw: bool
    ) -> None:
        """Make the optimizer.

        Args:
            model: to be trained.
            loss: of the model on a batch.
            batches: in the form that `loss` takes.
            fused_adamw: whether AdamW runs as one kernel, or as torch's default on this device.
        """
        self._model, self._loss, self._batches = model, loss, batches
        groups = parameter_groups(model, WEIGHT_DECAY)
        self._optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True if fused_adamw else None)
        self._next = 0

    def __call__(self) -> None:
        """Train on the next batch."""
        batch = self._batches[self._next % len(self._batches)]
        self._next += 1
        self._loss(self._model, batch).backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


def loss_of_fastssl(model: nn.Module, batch: PackedBatch) -> Tensor:
    """Return our loss; the seed of the step's dropout comes from torch's generator."""
    return model(batch).loss


@contextmanager
def saved(model: BertForMaskedLM) -> Iterator[Path]:
    """Hold a model in a Hugging Face directory, from which peers take the same weights."""
    with tempfile.TemporaryDirectory(prefix="fastssl-benchmark-") as name:
        model.save_pretrained(name)
        yield Path(name)


def assert_same_step(directory: Path, batch: PackedBatch) -> None:
    """Hold our loss and gradients to the error budget of the tests, against Hugging Face in float32 and float64.

    Both models are read anew from `directory` and run without dropout.

    Raises:
        AssertionError: naming the weight whose gradient differs.
    """
    padded = hugging_face.inputs(batch)
    same = _loss_and_gradients(hugging_face.load(directory), padded)
    exact = _loss_and_gradients(hugging_face.load(directory, torch.float64), padded)
    model = BertForMaskedLM.from_pretrained(directory).eval()
    loss = loss_of_fastssl(model, batch)
    loss.backward()
    parameters = dict(model.named_parameters())
    found = {"loss": loss.detach()}
    for name, spellings in file_layout(model).tensors.items():
        found |= dict(zip(spellings, parameters[name].grad.chunk(len(spellings)), strict=True))
    for name, value in found.items():
        assert_within_budget(name, value, same[name], exact[name])


def _loss_and_gradients(model: nn.Module, padded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    loss = hugging_face.loss(model.eval(), padded)
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
