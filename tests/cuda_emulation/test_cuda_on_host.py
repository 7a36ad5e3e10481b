"""The emulation itself: CUDA's instructions do what they say, and mistakes are found."""

import pytest

from tests.cuda_emulation import emulation

WORKING = ["conversions", "shuffles", "copies", "copies of nothing", "matrices"]
WORKING += ["products of bfloat16", "products of float16"]


@pytest.fixture
def run():
    loaded = emulation.load()
    yield loaded.self_test
    loaded.set_thread_order(0)


@pytest.mark.parametrize("name", WORKING)
def test_what_works_on_a_gpu_works(run, name):
    for order in (0, 1, 2):
        emulation.load().set_thread_order(order)
        assert run(name) == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missed barrier", "wait for others that never come"),
        ("missed shuffle", "wait for others that never come"),
        ("outside the mask", "a lane that does not take part"),
        ("different instructions", "meet in different instructions"),
        ("behind shared memory", "a write outside the dynamic shared memory"),
        ("misaligned", "misaligned address"),
        ("too much shared memory", "more shared memory than the device has"),
    ],
)
def test_mistakes_are_found(run, name, message):
    assert message in run(name)
    assert run("shuffles") == ""  # and the next kernel runs


def test_another_order_of_the_threads_finds_a_missing_barrier(run):
    assert run("race") == ""
    emulation.load().set_thread_order(1)
    assert "wrong result" in run("race")
