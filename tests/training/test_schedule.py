import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import optimization

from fastssl.training import TrainingConfig
from fastssl.training.schedule import Schedule, time_budget_factor, warmup_stable_decay_factor


def rates(total, **settings):
    schedule = Schedule(
        config=TrainingConfig(output_dir="run", max_steps=total, learning_rate=2.0, **settings), total_steps=total
    )
    return [schedule.learning_rate(step) for step in range(total + 3)]


def published(make, total, **arguments):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = make(optimizer, **arguments)
    values = []
    for _ in range(total + 3):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return values


@settings(deadline=None)
@given(total=st.integers(1, 60), data=st.data())
def test_same_values_as_transformers(total, data):
    warmup = data.draw(st.integers(0, total))
    steps = {"num_warmup_steps": warmup, "num_training_steps": total}
    for name, make, arguments in (
        ("linear", optimization.get_linear_schedule_with_warmup, steps),
        ("cosine", optimization.get_cosine_schedule_with_warmup, steps),
        ("constant", optimization.get_constant_schedule_with_warmup, {"num_warmup_steps": warmup}),
    ):
        mine = rates(total, lr_scheduler_type=name, warmup_steps=warmup)[: total + 1]
        assert mine == pytest.approx(published(make, total, **arguments)[: total + 1], abs=1e-12), name


def test_warmup_stable_decay():
    values = [warmup_stable_decay_factor(step, 4, 5, 20) for step in range(22)]
    assert values[:5] == [0, 0.25, 0.5, 0.75, 1]
    assert values[5:16] == [1] * 11
    assert values[16:] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0, 0])
    assert rates(20, lr_scheduler_type="wsd", warmup_ratio=0.2, decay_ratio=0.25)[:22] == pytest.approx(
        [2 * value for value in values]
    )
    assert warmup_stable_decay_factor(7, 0, 0, 20) == 1


def test_warmup_ratio_counts_in_steps():
    assert rates(50, warmup_ratio=0.1) == rates(50, warmup_steps=5)


def test_time_budget_follows_the_clock():
    config = TrainingConfig(output_dir="run", time_budget_minutes=10, learning_rate=2.0, warmup_ratio=0.1)
    schedule = Schedule(config=config, total_steps=None)
    minutes = [0, 0.5, 1, 5.5, 10, 11]
    assert [schedule.learning_rate(7, 60 * m) for m in minutes] == pytest.approx([0, 1, 2, 1, 0, 0])


def test_time_budget_warms_up_in_steps_where_asked():
    config = TrainingConfig(output_dir="run", time_budget_minutes=10, learning_rate=2.0, warmup_steps=4)
    schedule = Schedule(config=config, total_steps=None)
    assert schedule.learning_rate(1, 0.0) == 0.5
    assert schedule.learning_rate(100, 300.0) == pytest.approx(1.0)


@settings(deadline=None)
@given(fraction=st.floats(0, 2), warmup=st.floats(0, 1))
def test_time_budget_stays_in_bounds(fraction, warmup):
    assert 0 <= time_budget_factor(fraction, warmup) <= 1


def test_falls_to_the_lowest_rate():
    # nanoGPT's: min + (1 + cos(pi p)) / 2 (peak - min), from the end of warm-up to the last step
    found = rates(20, lr_scheduler_type="cosine", warmup_steps=4, min_learning_rate=0.2)
    assert found[:5] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert found[12] == pytest.approx(0.2 + 0.5 * 1.8)
    assert found[20] == pytest.approx(0.2)
    assert rates(20, lr_scheduler_type="linear", min_learning_rate=0.2)[10] == pytest.approx(1.1)
    budget = TrainingConfig(
        output_dir="run", time_budget_minutes=10, warmup_ratio=0.1, learning_rate=2.0, min_learning_rate=1.0
    )
    schedule = Schedule(config=budget, total_steps=None)
    assert [schedule.learning_rate(9, s) for s in (30, 60, 330, 600)] == pytest.approx([1.0, 2.0, 1.5, 1.0])
    with pytest.raises(ValueError, match=r"min_learning_rate=3\.0 is above learning_rate=2\.0"):
        rates(20, min_learning_rate=3.0)
