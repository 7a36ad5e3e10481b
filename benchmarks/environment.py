"""Where and on what a measurement was taken: the machine, the versions, the commit, the date."""

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

import torch

from fastssl import extension
from fastssl.ops.machine import measured_copy_bandwidth, measured_matmul_flops

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "numpy", "tokenizers")


BUSY = 0.7
"""Load from which a machine of two cores does not give its full rate."""


class Origin(Protocol):
    """What a report reads of the machine that its rows come from."""

    system: str
    versions: Mapping[str, str]
    commit: str
    date: str

    @property
    def machine(self) -> str:
        """Name of the folder for results of this machine."""

    @property
    def title(self) -> str:
        """The machine in a few words."""

    @property
    def ceilings(self) -> str:
        """What it was measured to give before the rows, in a sentence."""

    def as_dict(self) -> dict[str, object]:
        """Return the facts for JSON."""


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Facts that every result carries."""

    processor: str
    """Model of the processor, and its instruction set as our kernels use it."""
    num_threads: int
    """Threads that PyTorch uses."""
    memory_gib: float
    """Installed memory."""
    system: str
    """Operating system and Python."""
    versions: Mapping[str, str]
    """Package -> version."""
    commit: str
    """Commit of this project; "+" where files differ from it."""
    date: str
    """Day and minute, UTC."""
    load: float
    """Processes that wanted to run in the minute before; times are to be trusted only where this is near 0."""
    sgemm_gflops: float
    """Rate of a square fp32 product, GFLOP/s."""
    copy_gbytes: float
    """Bytes read and written per second by a copy far larger than the caches, GB/s."""

    @property
    def machine(self) -> str:
        """Name of the folder for results of this machine."""
        return f"{folder_name(self.processor)}-{self.num_threads}-threads"

    @property
    def title(self) -> str:
        """The machine in a few words."""
        return f"{self.processor}, {self.num_threads} threads"

    @property
    def ceilings(self) -> str:
        """What it was measured to give before the rows, in a sentence."""
        return (
            f"Measured before the rows: sgemm {self.sgemm_gflops:.0f} GFLOP/s, copy {self.copy_gbytes:.1f} "
            f"GB/s (read + written); {self.memory_gib:.0f} GiB of memory; {self.load_text}."
        )

    @property
    def load_text(self) -> str:
        """How busy the machine was with other work, and what that means for the numbers."""
        if self.load < BUSY:
            return "the machine was quiet"
        return f"{self.load:g} other processes were running: ratios are rough, and times are of no use"

    def as_dict(self) -> dict[str, object]:
        """Return the facts for JSON."""
        return asdict(self)


def folder_name(processor: str) -> str:
    """Return the name of a processor as a folder can have it."""
    return re.sub(r"[^a-z0-9]+", "-", processor.lower()).strip("-")


def system() -> str:
    """Return operating system, architecture and Python."""
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the version of each package that is installed."""
    return {name: found for name in packages if (found := _version(name))}


def now() -> str:
    """Return day and minute, UTC."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def describe() -> Environment:
    """Look at this machine; measures for about a second."""
    return Environment(
        processor=f"{_processor()} {extension.cpu_capability() or 'no native code'}",
        num_threads=torch.get_num_threads(),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=system(),
        versions=versions(PACKAGES),
        commit=commit(),
        load=round(os.getloadavg()[0], 1),
        date=now(),
        sgemm_gflops=round(measured_matmul_flops() / 1e9, 1),
        copy_gbytes=round(measured_copy_bandwidth() / 1e9, 1),
    )


def commit() -> str:
    """Return the short commit of the checkout, with "+" where tracked files differ; "unknown" outside of git."""
    found = _git("rev-parse", "--short=12", "HEAD")
    if found is None:
        return "unknown"
    return found + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()
