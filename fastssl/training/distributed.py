"""Several processes started by torchrun: who am I, sums over all, and the wrapped model."""

import atexit
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

_PATIENCE = timedelta(days=1)
"""How long a process waits for another: the first one encodes the text, and a corpus may take it hours."""


def expect_one_process(verb: str) -> None:
    """Refuse to go on under torchrun with several processes.

    Raises:
        ValueError: naming the verb, which makes several runs one after the other.
    """
    if World.join().size > 1:
        raise ValueError(f"{verb} makes several runs, one after the other, in one process; start it without torchrun")


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes that train one model together. With one process every method returns what it was given."""

    rank: int = 0
    """Number of this process."""
    size: int = 1
    """Number of processes."""

    @classmethod
    def join(cls) -> "World":
        """Return the world that torchrun started, joining its process group; a world of one without torchrun."""
        if not dist.is_available() or not (dist.is_initialized() or dist.is_torchelastic_launched()):
            return cls()
        if not dist.is_initialized():
            # NCCL exchanges the gradients on GPUs; numbers for reports and decisions are summed on the CPU.
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=_PATIENCE)
            # A group that outlives the interpreter can abort the process: its threads are still running then.
            atexit.register(dist.destroy_process_group)
        return cls(rank=dist.get_rank(), size=dist.get_world_size())

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model, with gradients averaged over the processes where there are several."""
        return model if self.size == 1 else DistributedDataParallel(model)

    def exchanging_gradients(self, model: nn.Module, now: bool) -> AbstractContextManager:
        """Return the context of a forward and backward pass after which gradients are exchanged, or not yet."""
        return nullcontext() if self.size == 1 or now else model.no_sync()

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the sums over all processes; every process gives the same keys."""
        return dict(zip(values, self._reduce(list(values.values()), dist.ReduceOp.SUM), strict=True))

    def maximum(self, values: Sequence[float]) -> list[float]:
        """Return the largest of each value over all processes."""
        return self._reduce(values, dist.ReduceOp.MAX)

    def broadcast(self, value: object) -> object:
        """Return the first process's value."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def barrier(self) -> None:
        """Wait for all processes.

        Raises:
            ConnectionError: where they cannot meet, as when one of them has ended.
        """
        if self.size == 1:
            return
        try:
            dist.barrier()
        except RuntimeError as error:
            raise ConnectionError(
                f"process {self.rank} waited in vain for the others; what another said when it ended tells why "
                f"({str(error).splitlines()[0]:.200})"
            ) from error

    def _reduce(self, values: Sequence[float], operation: dist.ReduceOp) -> list[float]:
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, operation)
        return tensor.tolist()
