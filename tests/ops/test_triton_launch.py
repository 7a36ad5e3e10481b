"""Launches that find the compiled kernel by themselves: what makes a launch another one, and what does not."""

import pytest
import torch

from fastssl.ops import triton_launch
from fastssl.ops.triton_launch import launch


class Compiled:
    def __init__(self, ran: list) -> None:
        self.ran = ran

    def __getitem__(self, grid):
        return lambda *values: self.ran.append((grid, values))


class Kernel:
    """Stands for a `@triton.jit` function: takes down what goes Triton's own way, and what goes past it."""

    def __init__(self, interpreted: bool = False) -> None:
        self.compiled, self.known = [], []
        self._interpreted = interpreted

    def __getitem__(self, grid):
        def run(*values, **others):
            self.compiled.append((grid, values, others))
            return None if self._interpreted else Compiled(self.known)

        return run


@pytest.fixture
def kernel(monkeypatch) -> Kernel:
    monkeypatch.setattr(triton_launch, "_compiled", {})
    return Kernel()


X = torch.zeros(64)
USUAL = {"grid": (3,), "tensors": (X, None, (X, 8, 4)), "numbers": (5, 0.5), "options": {"num_warps": 4}, "WIDTH": 16}


def test_the_second_launch_goes_past_triton(kernel):
    for _ in range(3):
        launch(kernel, **USUAL)
    assert kernel.compiled == [((3,), (*USUAL["tensors"], 5, 0.5), {"num_warps": 4, "WIDTH": 16})]
    assert kernel.known == 2 * [((3, 1, 1), (*USUAL["tensors"], 5, 0.5, 16))]


@pytest.mark.parametrize(
    "other",
    [
        {"tensors": (X.int(), None, (X, 8, 4))},
        {"tensors": (X, X, (X, 8, 4))},
        {"tensors": (None, None, (X, 8, 4))},
        {"tensors": (X, None, (X, 8, 5))},
        {"tensors": (X, None, (X.double(), 8, 4))},
        {"numbers": (1, 0.5)},
        {"numbers": (5.0, 0.5)},
        {"numbers": (2**31, 0.5)},
        {"numbers": (None, 0.5)},
        {"options": {"num_warps": 8}},
        {"WIDTH": 32},
    ],
    ids=str,
)
def test_another_kind_of_launch_goes_through_triton(kernel, other):
    launch(kernel, **USUAL)
    launch(kernel, **USUAL | other)
    assert len(kernel.compiled) == 2
    assert not kernel.known


def test_other_tensors_and_another_grid_are_the_same_kind(kernel):
    launch(kernel, **USUAL)
    other = torch.ones(128)
    launch(kernel, **USUAL | {"tensors": (other[64:], None, (other, 8, 4)), "grid": (7, 2)})
    assert len(kernel.compiled) == 1
    assert kernel.known == [((7, 2, 1), (*kernel.known[0][1][:3], 5, 0.5, 16))]
    assert kernel.known[0][1][0].data_ptr() == other[64:].data_ptr()


def test_a_pointer_that_is_not_aligned_is_another_kind(kernel):
    kinds = [(X, None, (X, 8, 4)), (X[1:], None, (X, 8, 4)), (X, None, (X[3:], 8, 4)), (X[2:], None, (X[1:], 8, 4))]
    for _ in range(2):
        for tensors in kinds:
            launch(kernel, **USUAL | {"tensors": tensors})
    assert len(kernel.compiled) == len(kernel.known) == 4


def test_the_interpreter_keeps_nothing(kernel):
    interpreted = Kernel(interpreted=True)
    for _ in range(2):
        launch(interpreted, **USUAL)
    assert len(interpreted.compiled) == 2
    assert not triton_launch._compiled


def test_two_kernels_are_two_kinds(kernel):
    other = Kernel()
    for _ in range(2):
        launch(kernel, **USUAL)
        launch(other, **USUAL)
    assert len(kernel.compiled) == len(other.compiled) == len(kernel.known) == len(other.known) == 1


def test_no_more_is_kept_than_is_allowed(kernel, monkeypatch):
    monkeypatch.setattr(triton_launch, "MOST_KEPT", 4)
    for number in range(3, 13):
        launch(kernel, **USUAL | {"numbers": (number, 0.5)})
        assert len(triton_launch._compiled) <= 4
    launch(kernel, **USUAL | {"numbers": (12, 0.5)})
    assert len(kernel.known) == 1


def test_on_amd_every_launch_goes_through_triton(kernel, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.0")
    for _ in range(2):
        launch(kernel, **USUAL)
    assert len(kernel.compiled) == 2
