import pytest
import torch

from fastssl.training.distributed import World
from fastssl.training.step import (
    NonFiniteError,
    NumberedBatch,
    SentNumbers,
    accumulate_gradients,
    seed_generators,
    step_seed,
    total_target_counts,
)
from tests.training.stand_in import StandInBatch, StandInConfig, StandInModel, StandInSource


def numbered(source, count):
    return [NumberedBatch(epoch=0, index=index, batch=source.batch(0, index)) for index in range(count)]


def gradients(batches):
    model = StandInModel(StandInConfig(dropout=0.0)).double()
    losses, metrics = accumulate_gradients(model, batches, dtype=torch.float32, world=World())
    return sum(losses), metrics, [parameter.grad for parameter in model.parameters()]


def test_accumulated_batches_equal_one_big_batch():
    small = numbered(StandInSource(), 5)
    assert len({n.batch.targets.numel() for n in small}) > 1, "equal counts would not tell means of means apart"
    joined = StandInBatch(
        tokens=torch.cat([n.batch.tokens for n in small]), targets=torch.cat([n.batch.targets for n in small])
    )
    loss, metrics, grads = gradients(small)
    big_loss, big_metrics, big_grads = gradients([NumberedBatch(epoch=0, index=0, batch=joined)])
    torch.testing.assert_close(loss, big_loss)
    torch.testing.assert_close(metrics, big_metrics)
    torch.testing.assert_close(grads, big_grads)


def test_counts_are_over_the_whole_step_and_never_zero():
    batches = numbered(StandInSource(), 3)
    assert total_target_counts(batches, World()) == {"masked_lm": sum(n.batch.targets.numel() for n in batches)}
    nothing = StandInBatch(tokens=torch.zeros(2, dtype=torch.int64), targets=torch.zeros(0, dtype=torch.int64))
    assert total_target_counts([NumberedBatch(epoch=0, index=0, batch=nothing)], World()) == {"masked_lm": 1}


def test_a_bad_loss_names_its_batch():
    batches = numbered(StandInSource(poison=(0, 2)), 4)
    losses, metrics, _ = accumulate_gradients_of(batches)
    with pytest.raises(NonFiniteError, match=r"loss is nan at batch \(epoch 0, index 2\)$"):
        SentNumbers.send(1, losses, torch.tensor(1.0), metrics, batches).report(World())


def test_a_bad_gradient_names_all_batches():
    batches = numbered(StandInSource(), 2)
    losses, metrics, _ = accumulate_gradients_of(batches)
    with pytest.raises(NonFiniteError, match=r"gradient norm is inf over .*index 0\), batch \(epoch 0, index 1\)"):
        SentNumbers.send(1, losses, torch.tensor(torch.inf), metrics, batches).report(World())


def accumulate_gradients_of(batches):
    model = StandInModel()
    return *accumulate_gradients(model, batches, dtype=torch.float32, world=World()), model


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_generators_are_seeded_as_torch_does_it(device: str):
    torch.manual_seed(2**63 - 1)
    expected = torch.rand(3)
    seed_generators(5, torch.device(device))
    assert not torch.equal(torch.rand(3), expected)
    seed_generators(2**63 - 1, torch.device(device))
    assert torch.equal(torch.rand(3), expected)


def test_seeds_differ_by_step_seed_and_rank():
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(3)}
    assert len(seeds) == 450
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert step_seed(42, 7) == step_seed(42, 7)
