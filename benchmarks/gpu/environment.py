"""The GPU and the software around it, as every result names them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from benchmarks.environment import commit, folder_name, now, system, versions
from fastssl import extension

PACKAGES = (
    *("torch", "triton", "transformers", "flash-attn", "liger-kernel", "quack-kernels"),
    *("nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
)
REHEARSAL = "Rehearsal on a CPU"
"""Title of results that are none."""


@dataclass(frozen=True, kw_only=True)
class GpuEnvironment:
    """Facts that every result carries."""

    title: str
    """Name of the GPU."""
    multiprocessors: int
    """Their number."""
    memory_gib: float
    """Of the GPU."""
    l2_mib: float
    """Size of its L2 cache."""
    capability: str
    """Compute capability."""
    native: bool
    """Whether our CUDA operators are built and loaded."""
    system: str
    """Operating system and Python."""
    versions: Mapping[str, str]
    """Package -> version; CUDA and cuDNN as torch runs them."""
    commit: str
    """Commit of this project; "+" where files differ from it."""
    date: str
    """Day and minute, UTC."""
    measured: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Ceiling -> value and unit."""

    @property
    def machine(self) -> str:
        """Name of the folder for results of this GPU."""
        return folder_name(self.title)

    @property
    def ceilings(self) -> str:
        """What it was measured to give before the rows, in a sentence."""
        facts = [f"{name} {_readable(entry['value'], entry['unit'])}" for name, entry in self.measured.items()]
        size = f"{self.multiprocessors} multiprocessors, {self.memory_gib:.0f} GiB, L2 {self.l2_mib:.0f} MiB"
        built = "with" if self.native else "without"
        return (
            f"Compute capability {self.capability}, {size}; {built} our compiled CUDA operators. Measured before the "
            f"rows: {', '.join(facts) or 'nothing yet'}. The L2 cache is cold: other memory is read before each launch."
        )

    def as_dict(self) -> dict[str, object]:
        """Return the facts for JSON."""
        return asdict(self)


def describe(measured: Mapping[str, Mapping[str, Any]], rehearse: bool) -> GpuEnvironment:
    """Look at the current GPU, or at none in a rehearsal."""
    found = versions(PACKAGES)
    if rehearse:
        sizes = {"title": REHEARSAL, "multiprocessors": 0, "memory_gib": 0.0, "l2_mib": 0.0, "capability": "none"}
    else:
        device = torch.cuda.get_device_properties(0)
        found |= {"CUDA": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
        sizes = {
            "title": device.name,
            "multiprocessors": device.multi_processor_count,
            "memory_gib": round(device.total_memory / 2**30, 1),
            "l2_mib": device.L2_cache_size / 2**20,
            "capability": f"{device.major}.{device.minor}",
        }
    return GpuEnvironment(
        **sizes,
        native=cuda_ops_loaded(),
        system=system(),
        versions=found,
        commit=commit(),
        date=now(),
        measured=measured,
    )


def cuda_ops_loaded() -> bool:
    """Tell whether our CUDA operators are there."""
    loaded = getattr(extension, "cuda_ops_loaded", None)
    return bool(loaded and loaded())


def _readable(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value * 1e6:.2f} us"
    return f"{value / 1e12:.3g} T{unit}"
