import pytest
import torch

from fastssl.training import TrainingConfig
from fastssl.training.optimizer import clip_factor, clip_factor_on_device, clip_gradients, gradient_norm, make_optimizer
from tests.training.stand_in import StandInModel

CONFIG = TrainingConfig(output_dir="run", learning_rate=0.1, weight_decay=0.5)


def test_biases_and_norms_do_not_decay():
    model = StandInModel()
    optimizer = make_optimizer(model, CONFIG)
    names = {parameter: name for name, parameter in model.named_parameters()}
    decay = {names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {
        "embedding.weight": 0.5,
        "decoder.weight": 0.5,
        "decoder.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
    }


def test_frozen_parameters_are_left_out():
    model = StandInModel()
    model.embedding.requires_grad_(False)
    optimizer = make_optimizer(model, CONFIG)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4
    with pytest.raises(ValueError, match="no trainable parameter"):
        make_optimizer(StandInModel().requires_grad_(False), CONFIG)


def test_an_update_is_adamw():
    weight = torch.nn.Parameter(torch.tensor([[1.0, -2.0]]))
    module = torch.nn.ParameterList([weight])
    optimizer = make_optimizer(module, CONFIG)
    weight.grad = torch.tensor([[0.5, 0.25]])
    optimizer.step()
    # After one step Adam's direction is the sign of the gradient, up to epsilon; the decay is decoupled.
    expected = torch.tensor([[1.0, -2.0]]) * (1 - 0.1 * 0.5) - 0.1
    torch.testing.assert_close(weight.data, expected, atol=1e-5, rtol=0)


def test_clipping():
    model = StandInModel()
    optimizer = make_optimizer(model, CONFIG)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    size = sum(parameter.numel() for parameter in model.parameters())
    assert clip_gradients(optimizer, 0.0).item() == pytest.approx(2 * size**0.5)
    assert clip_gradients(optimizer, 1.0).item() == pytest.approx(2 * size**0.5)
    assert clip_gradients(optimizer, 1.0).item() == pytest.approx(1.0, abs=1e-4)


def with_gradients(seed: int = 0):
    model, generator = StandInModel(), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return model, make_optimizer(model, CONFIG)


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6])
def test_a_factor_that_the_host_never_reads_clips_as_one_that_it_reads(max_norm: float):
    model, optimizer = with_gradients()
    optimizer.step(gradient_factor=clip_factor(gradient_norm(optimizer), max_norm))
    other, unread = with_gradients()
    unread.step(gradient_factor=clip_factor_on_device(gradient_norm(unread), max_norm, [torch.tensor(1.0)]))
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
        assert optimizer.state[one]["step"] == unread.state[two]["step"] == 1


@pytest.mark.parametrize(("norm", "loss"), [(torch.nan, 1.0), (torch.inf, 1.0), (1.0, torch.nan)])
def test_a_step_that_must_not_be_taken_changes_nothing(norm: float, loss: float):
    model, optimizer = with_gradients()
    optimizer.step(gradient_factor=clip_factor_on_device(torch.tensor(1.0), 1.0, [torch.tensor(1.0)]))
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    states = [{name: value.clone() for name, value in optimizer.state[p].items()} for p in model.parameters()]
    optimizer.step(gradient_factor=clip_factor_on_device(torch.tensor(norm), 1.0, [torch.tensor(loss)]))
    for parameter, weight, state in zip(model.parameters(), weights, states, strict=True):
        assert torch.equal(parameter, weight)
        assert all(torch.equal(optimizer.state[parameter][name], value) for name, value in state.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_norm_is_that_of_all_gradients_in_double_precision(dtype):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 700_001), (5,), (2, 3), (1,)]
    parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=dtype)
    parameters[0].grad = parameters[0].grad.t().contiguous().t()
    optimizer = torch.optim.SGD(parameters)
    expected = torch.cat([p.grad.double().flatten() for p in parameters]).norm().item()
    assert clip_gradients(optimizer, 0.0).item() == pytest.approx(expected, rel=1e-6)
    parameters[1].grad[2] = float("nan")
    assert clip_gradients(optimizer, 1.0).isnan()
