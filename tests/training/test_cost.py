import pytest

from fastssl.training import ModelCost, estimate_run_cost

MODEL = ModelCost(parameters=4_385_920, flops_per_token=6e6, memory_bytes=3 << 30)


def test_steps_set_the_cost():
    cost = estimate_run_cost(MODEL, tokens_per_step=1000, flops_per_second=1e9, steps=3600)
    assert (cost.steps, cost.tokens, cost.flops) == pytest.approx((3600, 3.6e6, 2.16e13))
    assert cost.hours == pytest.approx(6.0)
    assert cost.lines() == [
        "parameters  4,385,920",
        "steps       3,600",
        "tokens      3,600,000",
        "FLOPs       2.16e+13",
        "memory      3.00 GiB",
        "time        06:00:00 at 1.0 GFLOP/s",
    ]


def test_time_sets_the_cost():
    cost = estimate_run_cost(MODEL, tokens_per_step=1000, flops_per_second=1e9, hours=1.0)
    assert cost.steps is None and cost.hours == 1.0
    assert cost.tokens == pytest.approx(600_000) and cost.flops == pytest.approx(3.6e12)
    assert "until the time is used" in cost.lines()[1]


def test_what_ends_first_counts():
    short = estimate_run_cost(MODEL, tokens_per_step=1000, flops_per_second=1e9, steps=3600, hours=1.0)
    assert short.hours == 1.0 and short.tokens == pytest.approx(600_000)
    long = estimate_run_cost(MODEL, tokens_per_step=1000, flops_per_second=1e9, steps=10, hours=1.0)
    assert long.tokens == pytest.approx(10_000)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"tokens_per_step": 1, "flops_per_second": 1.0}, "steps and hours are both None"),
        ({"tokens_per_step": 0, "flops_per_second": 1.0, "steps": 1}, "tokens_per_step=0"),
        ({"tokens_per_step": 1, "flops_per_second": 0.0, "steps": 1}, "flops_per_second=0.0"),
    ],
)
def test_bad_numbers_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        estimate_run_cost(MODEL, **arguments)
