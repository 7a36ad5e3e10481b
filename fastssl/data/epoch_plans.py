"""The plans of epochs, made when they are first asked for; the last ones used are kept."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import numpy as np

_PLANS_KEPT = 2
_MAX_EPOCHS = 1 << 32


class Plan(Protocol):
    """An epoch's examples in batches."""

    num_batches: int

    def examples_of_batch(self, index: int) -> np.ndarray:
        """Return the example numbers of a batch, (B) int64."""


AnyPlan = TypeVar("AnyPlan", bound=Plan)


class EpochPlans(Generic[AnyPlan]):
    """Epoch -> plan; safe to use from several threads.

    Args:
        make: plans an epoch.
    """

    def __init__(self, make: Callable[[int], AnyPlan]) -> None:
        self._make = make
        self._plans: OrderedDict[int, AnyPlan] = OrderedDict()
        self._num_batches: dict[int, int] = {}
        self._lock = threading.Lock()

    def __getitem__(self, epoch: int) -> AnyPlan:
        """Return the plan of an epoch; ValueError for one below 0, or of 2^32 and more."""
        if not 0 <= epoch < _MAX_EPOCHS:
            raise ValueError(f"epoch must be between 0 and 2^32 - 1, got {epoch}")
        with self._lock:
            if epoch not in self._plans:
                self._plans[epoch] = self._make(epoch)
                self._num_batches[epoch] = self._plans[epoch].num_batches
            self._plans.move_to_end(epoch)
            while len(self._plans) > _PLANS_KEPT:
                self._plans.popitem(last=False)
            return self._plans[epoch]

    def num_batches(self, epoch: int) -> int:
        """Return the number of batches of an epoch, which is remembered for all."""
        if epoch not in self._num_batches:
            self[epoch]
        return self._num_batches[epoch]

    def examples_of_batch(self, epoch: int, index: int) -> np.ndarray:
        """Return the example numbers of a batch, (B) int64; ValueError if the epoch has no such batch."""
        plan = self[epoch]
        if not 0 <= index < plan.num_batches:
            raise ValueError(f"epoch {epoch} has batches 0 to {plan.num_batches - 1}, got index {index}")
        return plan.examples_of_batch(index)
