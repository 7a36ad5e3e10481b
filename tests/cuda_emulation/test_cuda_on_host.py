"""The emulation itself: CUDA's instructions do what they say, and mistakes are found."""

import pytest
import torch

from fastssl.ops.philox import philox_4x32

WORKING = ["conversions", "shuffles", "copies", "copies of nothing", "matrices"]
WORKING += ["products of bfloat16", "products of float16"]
WORKING += ["boxes", "phases", "copies of bytes", "named barriers", "turns of blocks", "turns of attention"]
WORKING += ["products of groups in bfloat16", "products of groups in float16"]


@pytest.fixture(autouse=True)
def in_order(cuda_emulation):
    yield
    cuda_emulation.set_thread_order(0)


@pytest.mark.parametrize("name", WORKING)
def test_what_works_on_a_gpu_works(cuda_emulation, name):
    for order in (0, 1, 2):
        cuda_emulation.set_thread_order(order)
        assert cuda_emulation.self_test(name) == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missed barrier", "wait for others that never come"),
        ("missed shuffle", "wait for others that never come"),
        ("outside the mask", "a lane that does not take part"),
        ("different instructions", "meet in different instructions"),
        ("behind shared memory", "a write outside the dynamic shared memory"),
        ("misaligned copy", "misaligned address"),
        ("misaligned vector", "misaligned address"),
        ("too much shared memory", "more shared memory than the device has"),
        ("misaligned box", "no multiple of 1024"),
        ("no fence", "a product without a fence"),
        ("product under way", "products that nobody waited for"),
        ("operand written too early", "an operand that was written before its product was waited for"),
        ("product of writes without a fence", "wrong result"),
        ("copy over writes without a fence", "a copy over what was written without a fence"),
        ("different matrices", "lanes multiply different matrices"),
        ("copy under way", "a copy that nobody waited for"),
        ("unknown barrier", "a barrier that was not initialised"),
        ("missing bytes", "wait for others that never come"),
        ("turn that never comes", "wait for others that never come"),
        ("turns of blocks apart", "wait for others that never come"),
        ("too many blocks", "more blocks than run at the same time"),
    ],
)
def test_mistakes_are_found(cuda_emulation, name, message):
    assert message in cuda_emulation.self_test(name)
    assert cuda_emulation.self_test("shuffles") == ""  # and the next kernel runs


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**61) - 7])
def test_philox_words_are_those_of_the_definition(cuda_emulation, seed):
    counters = torch.randint(0, 2**32, (40, 4), generator=torch.Generator().manual_seed(1)).tolist()
    for counter in ([0] * 4, [2**32 - 1] * 4, *counters):
        expected = philox_4x32(tuple(map(torch.tensor, counter)), seed)
        assert cuda_emulation.philox_words(counter, seed) == [int(word) for word in expected]


def test_another_order_of_the_threads_finds_a_missing_barrier(cuda_emulation):
    assert cuda_emulation.self_test("race") == ""
    cuda_emulation.set_thread_order(1)
    assert "wrong result" in cuda_emulation.self_test("race")
