"""The end of a step as a graph: the same weights, averages and norms as operator by operator."""

import copy
from functools import partial

import pytest
import torch

from fastssl.training import NonFiniteError, TrainingConfig, trainer
from fastssl.training.graphed_update import GraphedUpdate
from fastssl.training.graphs import GraphedPasses
from fastssl.training.optimizer import (
    clip_factor_on_device,
    gradient_norm,
    make_optimizer,
    set_learning_rate,
)
from tests.training.stand_in import StandInModel
from tests.training.test_graphs import Repeated, batch_of
from tests.training.test_step_on_gpu import models

SCALES = {"embedding.weight": 0.5}


def with_optimizer(device: str = "cpu"):
    model = StandInModel().to(device)
    config = TrainingConfig(output_dir="run", max_steps=3, weight_decay=0.1)
    return model, make_optimizer(model, config, SCALES)


def set_gradients(model, number: int, factor: float = 1.0) -> None:
    """Give a model the gradients of a step, added to what it has."""
    generator = torch.Generator().manual_seed(number)
    for parameter in model.parameters():
        gradient = (factor * torch.randn(parameter.shape, generator=generator)).to(parameter.device)
        parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def update_by_operators(optimizer, losses, learning_rate: float, max_norm: float) -> torch.Tensor:
    norm = gradient_norm(optimizer)
    set_learning_rate(optimizer, learning_rate)
    optimizer.step(gradient_factor=clip_factor_on_device(norm, max_norm, losses))
    optimizer.zero_grad(set_to_none=True)
    return norm


def compare(device: str, capture, max_norm: float) -> None:
    (model, optimizer), (other, others) = with_optimizer(device), with_optimizer(device)
    update = GraphedUpdate(optimizer, max_norm, capture)
    for number, learning_rate in enumerate([1e-2, 2e-2, 5e-3, 0.0, 1e-3]):
        losses = [torch.tensor(0.3, device=device), torch.tensor(-2.0, device=device)]
        if number == 2:
            losses[1] = torch.full_like(losses[1], torch.nan)
        for one in (model, other):
            set_gradients(one, number, factor=0.1 * number)
        norm = update(losses, learning_rate)
        torch.testing.assert_close(norm, update_by_operators(others, losses, learning_rate, max_norm))
        assert all((parameter.grad == 0).all() for parameter in model.parameters())
        for one, two in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)
            for name, value in others.state[two].items():
                torch.testing.assert_close(optimizer.state[one][name], value, rtol=1e-5, atol=1e-7)
    assert len({group["lr"] for group in optimizer.param_groups}) == 2
    assert [group["lr"] for group in optimizer.param_groups] == [group["lr"] for group in others.param_groups]


@pytest.mark.parametrize("max_norm", [0.0, 1.0])
def test_an_update_is_that_of_its_operators(max_norm):
    """With another learning rate each time, and a step that must not be taken."""
    Repeated.made = 0
    compare("cpu", Repeated, max_norm)
    assert Repeated.made == 1


def test_only_what_is_captured_calls_itself_so():
    """PyTorch refuses to capture an optimizer that does not, and warns of one that does and is not captured."""
    model, optimizer = with_optimizer()
    seen = set()
    optimizer.register_step_pre_hook(lambda *_: seen.update(group["capturable"] for group in optimizer.param_groups))
    update = GraphedUpdate(optimizer, 1.0, Repeated)
    for number, captured in enumerate([False, True, True]):
        seen.clear()
        set_gradients(model, number)
        update([torch.ones(())], 1e-3)
        assert seen == {captured}
    assert not any(group["capturable"] for group in optimizer.param_groups)
    assert all(type(group["lr"]) is float for group in optimizer.param_groups)


def load_its_own_state(optimizer) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


@pytest.mark.parametrize(
    "change", [lambda optimizer: optimizer.zero_grad(set_to_none=True), load_its_own_state], ids=["gradients", "state"]
)
def test_other_tensors_are_captured_anew(change):
    """A graph would go on with those that nobody has any more."""
    Repeated.made = 0
    model, optimizer = with_optimizer()
    update = GraphedUpdate(optimizer, 1.0, Repeated)
    for number, made in enumerate([0, 1, 1, 1, 2]):
        if number == 3:
            change(optimizer)
        set_gradients(model, number)
        update([torch.ones(())], 1e-3)
        assert Repeated.made == made


def test_sparse_gradients_are_refused():
    model, optimizer = with_optimizer()
    set_gradients(model, 0)
    model.embedding.weight.grad = model.embedding.weight.grad.to_sparse(1)
    with pytest.raises(ValueError, match=r"takes dense gradients, but that of a parameter of \(23, 16\) is sparse"):
        GraphedUpdate(optimizer, 1.0, Repeated)([torch.ones(())], 1e-3)


class Poisoned:
    """Batches of one shape; in the fifth a token is in a position that nobody else is in."""

    def num_batches(self, epoch):
        return 8

    def batch(self, epoch, index):
        batch = batch_of("gpt", (64, 7), index)
        if index == 4:
            batch.position_ids[5] = 127
        return batch


def test_a_bad_loss_stops_a_run_with_graphs(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "expect_graphs_to_work", lambda device, num_processes: None)
    monkeypatch.setattr(trainer, "GraphedPasses", partial(GraphedPasses, capture=Repeated))
    monkeypatch.setattr(trainer, "GraphedUpdate", partial(GraphedUpdate, capture=Repeated))
    model = models()["gpt"]
    with torch.no_grad():
        dict(model.named_parameters())["gpt.position.weight"][127] = torch.nan
    config = TrainingConfig(output_dir=str(tmp_path), max_steps=8, cuda_graphs=True, device="cpu")
    with pytest.raises(NonFiniteError, match=r"step 5: the loss is nan at batch \(epoch 0, index 4\)"):
        trainer.Trainer(model, config, Poisoned()).train()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("max_norm", [0.0, 1.0])
def test_a_captured_update_is_that_of_its_operators(max_norm):
    from fastssl.training.graphs import CudaGraph

    compare("cuda", CudaGraph, max_norm)
