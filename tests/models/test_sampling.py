"""From scores to a token: the cuts against `transformers`, and the draw against its probabilities."""

import numpy as np
import pytest
import torch

from fastssl.models.generation.sampling import Draws, SamplingConfig, next_token_probabilities

LOGITS = torch.randn(5, 50, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.6},
        {"top_k": 7},
        {"top_k": 500},
        {"top_p": 0.9},
        {"top_p": 0.05},
        {"min_p": 0.1},
        {"temperature": 1.8, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
    ],
)
def test_cuts_are_those_of_transformers(options):
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers = {
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    expected = LOGITS
    for name, value in options.items():
        expected = warpers[name](value)(None, expected)
    got = next_token_probabilities(LOGITS, SamplingConfig(**options))
    got = got / got.sum(-1, keepdim=True)
    torch.testing.assert_close(got, expected.softmax(-1))


def test_draws_follow_the_probabilities():
    probabilities = np.array([0.0, 0.5, 0.0, 0.3, 0.2, 0.0], dtype=np.float32)
    draws = Draws(seed=1, sample=0)
    counts = np.bincount([draws.choose(probabilities) for _ in range(20_000)], minlength=6)
    assert counts[[0, 2, 5]].sum() == 0
    np.testing.assert_allclose(counts / 20_000, probabilities, atol=0.015)


def test_draws_depend_on_seed_and_sample_alone():
    uniform = np.ones(1000)
    drawn = {
        (seed, sample): [Draws(seed, sample).choose(uniform) for _ in range(2)] for seed in (0, -1) for sample in (0, 1)
    }
    assert all(one == two for one, two in drawn.values())
    assert len({tuple(pair) for pair in drawn.values()}) == 4


def test_the_smallest_temperature_takes_the_likeliest():
    logits = torch.tensor([[3.0, 80.0, -5.0], [-900.0, -901.0, -902.0]])
    found = next_token_probabilities(logits, SamplingConfig(temperature=1e-45))
    assert found.tolist() == [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
