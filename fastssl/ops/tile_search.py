"""Tiles of Triton kernels that were measured on the GPU at hand: opt-in, and kept in files.

By itself a kernel's tiles are a function of the device and the call, so that nothing is measured while a model runs and
equal calls give equal bits on equal GPUs. Those for GPUs that nobody of us has had are guesses. Inside `search_tiles()`
a kernel that meets a new kind of call is timed with each tile that may be faster, on the tensors of the call, and the
fastest is used from then on, in later processes too.
"""

import contextlib
import hashlib
import json
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from fastssl import extension

T = TypeVar("T", bound=tuple)
"""A `NamedTuple` of numbers."""
Launch = Callable[[], object]
Measure = Callable[[Sequence[Launch], torch.device], list[float]]
"""(launches, device) -> the seconds of each."""

FASTER = 0.97
"""A tile takes the place of the one that would be taken without a search if it needs at most this share of its time."""
ROUNDS = 9
"""Each tile is timed so many times, in turn with the others."""
FILLS = 8
"""Writes of twice the L2 cache before each launch: the host gets ahead while the GPU is at them."""
FURTHEST_IN_FLOAT32, FURTHEST_IN_16_BITS = 1e-3, 0.02
"""Of what a tile computes from what the default one does: 2-norm of the difference, relative."""
COMPARED_AT_ONCE = 2**22
"""Numbers, so that a comparison takes little memory."""
MOST_VAIN_TRIALS = 3
"""Trials of a kind of call whose results say nothing, zeros or NaN; then the default tile stays in this process."""


class Trial(NamedTuple):
    """A call of a kernel that can be repeated with other tiles, and that does no harm to what follows."""

    launch: Callable[[tuple], object]
    """Launches the kernel with a tile, as often as one likes."""
    results: Callable[[tuple], Sequence[torch.Tensor | None]]
    """Does so from the call's own inputs, and returns what it has computed, which may be overwritten."""


class TileSearch:
    """Finds tiles by measuring them, and keeps what it has found: one small JSON file for each kind of call.

    Args:
        directory: where the files are; made when there is one to write.
        measure: times launches; another function than the GPU's in tests.
        device_type: of the devices that are measured; on others nothing changes.
    """

    def __init__(self, directory: Path, measure: Measure | None = None, device_type: str = "cuda") -> None:
        self._directory, self._measure, self._device_type = directory, measure or seconds_on_gpu, device_type
        self._found: dict[tuple, tuple] = {}
        self._vain: Counter[tuple] = Counter()
        self._lock = threading.Lock()
        self._can_write = True

    def tile(
        self,
        kernel: object,
        default: T,
        others: Callable[[], Iterable[T]],
        facts: Mapping[str, object],
        trial: Callable[[], Trial],
        device: torch.device,
    ) -> T:
        """Return the tile of a kernel for a call; see `tile_for`."""
        if device.type != self._device_type:
            return default
        key = (_name_of(kernel), device, *facts.items())
        if key in self._found:
            return self._found[key]
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return default
        with self._lock:
            if key not in self._found:
                tiles = list(dict.fromkeys([default, *others()]))
                found = default if len(tiles) == 1 else self._kept_or_measured(kernel, tiles, facts, trial, device)
                self._vain[key] += found is None
                if found is None and self._vain[key] < MOST_VAIN_TRIALS:
                    return default
                self._found[key] = found or default
        return self._found[key]

    def _kept_or_measured(self, kernel, tiles: list[T], facts, trial, device) -> T | None:
        """Return the tile; None where this call's results cannot tell right from wrong."""
        question = {"kernel": _name_of(kernel), "device": _device_name(device)}
        question |= {name: str(value) for name, value in facts.items()}
        question |= {"triton": _triton_version(), "source": str(getattr(kernel, "cache_key", ""))}
        digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
        file = self._directory / f"{_name_of(kernel)}-{digest[:16]}.json"
        try:
            call = trial()
            kept = _kept(file, question, tiles)
            if kept is not None and _works(lambda: call.launch(kept)):
                return kept
            return self._measured(tiles, question, file, call, device)
        except torch.OutOfMemoryError:
            self._say(f"{_name_of(kernel)}: there is no memory left to try other tiles")
            return tiles[0]

    def _measured(self, tiles: list[T], question: Mapping[str, str], file: Path, trial: Trial, device) -> T | None:
        began, default = time.monotonic(), tiles[0]
        _clear(trial.results(default))  # what the call leaves as it was is then the same to all
        expected = _copies(trial.results(default))
        if not all((one.isfinite() & (one != 0)).any() for _, one in expected):
            return None
        right = [default, *(tile for tile in tiles[1:] if _is_right(trial, tile, expected))]
        del expected
        seconds = dict(zip(right, self._measure([partial(trial.launch, tile) for tile in right], device), strict=True))
        best = min(seconds, key=seconds.__getitem__)
        if seconds[best] > FASTER * seconds[default]:
            best = default
        self._say(
            f"{question['kernel']}: {len(right)} tiles measured in {time.monotonic() - began:.0f} s; "
            + (f"{best} in place of {default}: " if best != default else f"{best} stays, ")
            + f"{1e6 * seconds[best]:.1f} us"
            + (f" in place of {1e6 * seconds[default]:.1f}" if best != default else "")
        )
        self._keep(file, question, best, seconds)
        return best

    def _keep(self, file: Path, question: Mapping[str, str], best: T, seconds: Mapping[T, float]) -> None:
        """Write a file as a whole; where that fails, say so once and go on."""
        measured = [{**tile._asdict(), "microseconds": round(1e6 * one, 2)} for tile, one in seconds.items()]
        text = json.dumps({"call": question, "tile": best._asdict(), "measured": measured}, indent=1)
        unfinished = None
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=self._directory, delete=False) as unfinished:
                unfinished.write(text)
            Path(unfinished.name).replace(file)
        except OSError as error:
            if unfinished is not None:
                Path(unfinished.name).unlink(missing_ok=True)
            if self._can_write:
                self._say(f"tiles that are found are not kept: {error}")
            self._can_write = False

    @staticmethod
    def _say(text: str) -> None:
        print(f"fastssl: {text}", file=sys.stderr, flush=True)


_search: TileSearch | None = None
"""The one that is on. A backward pass runs in threads of PyTorch's, which know no context of their caller's."""


def tile_for(
    kernel: object,
    default: T,
    others: Callable[[], Iterable[T]],
    facts: Callable[[], Mapping[str, object]],
    trial: Callable[[], Trial],
    device: torch.device,
) -> T:
    """Return the tile to launch a kernel with: `default`, but where a search is on and knows or finds a faster one.

    Args:
        kernel: the `@triton.jit` function.
        default: the tile that is taken without a search.
        others: makes those that may be faster.
        facts: makes what the choice depends on, sizes rounded by `rounded_size`; values are told apart by their `str`.
        trial: makes a trial of the call, whose outputs are to be written yet.
        device: of the call.
    """
    return default if _search is None else _search.tile(kernel, default, others, facts(), trial, device)


@contextlib.contextmanager
def search_tiles(directory: str | Path | None = None) -> Iterator[None]:
    """Search for the tiles of Triton kernels inside the context, in all threads.

    A kind of call that is met for the first time on this GPU costs the compilation of up to 18 kernels, and says so on
    standard error. Results may differ in the last bits from those of other tiles.

    Args:
        directory: of what is kept; None for `default_directory()`.
    """
    with using(TileSearch(Path(directory) if directory is not None else default_directory())):
        yield


def expect_search_to_work(device: torch.device) -> None:
    """Raise where `search_tiles()` would change nothing.

    Raises:
        ValueError: for a device that is no CUDA GPU, and without Triton.
    """
    if device.type != "cuda":
        raise ValueError(f"search_tiles=True needs a CUDA GPU, but the model is on {device}; leave it out there")
    if not extension.triton_installed():
        raise ValueError("search_tiles=True measures Triton's kernels, but Triton is not installed; leave it out")


@contextlib.contextmanager
def using(search: TileSearch | None) -> Iterator[None]:
    """Let a search choose the tiles inside the context; None: no search."""
    global _search
    before, _search = _search, search
    try:
        yield
    finally:
        _search = before


def default_directory() -> Path:
    """Return where tiles are kept: `~/.cache/fastssl/tiles`; without a home, among the temporary files."""
    try:
        return Path.home() / ".cache" / "fastssl" / "tiles"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / "fastssl-tiles"


def rounded_size(size: int) -> int:
    """Return the next power of two: calls whose sizes are alike share what was measured."""
    return 1 << max(size - 1, 0).bit_length()


def seconds_on_gpu(launches: Sequence[Launch], device: torch.device) -> list[float]:
    """Return the median seconds of each launch, in turn with the others, after the L2 cache was overwritten."""
    times: list[list[float]] = [[] for _ in launches]
    with torch.cuda.device(device):
        size = 2 * getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 2**26)
        other = torch.empty(size, dtype=torch.uint8, device=device)
        for _ in range(ROUNDS):
            pairs = [_timed(launch, other) for launch in launches]
            torch.cuda.synchronize()
            for own, (start, end) in zip(times, pairs, strict=True):
                own.append(1e-3 * start.elapsed_time(end))
    return [statistics.median(own) for own in times]


def _timed(launch: Launch, other: torch.Tensor) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    """Launch between two events, behind a write of other memory: while the GPU is at it, the host gets ahead."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for _ in range(FILLS):
        other.zero_()
    start.record()
    launch()
    end.record()
    return start, end


def _floating(tensors: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    """Return the floating tensors that there are; integers, dropout's decisions, hold what nobody reads in places."""
    return [one for one in tensors if one is not None and one.is_floating_point() and one.numel()]


def _copies(tensors: Sequence[torch.Tensor | None]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the floating ones, each with a copy."""
    return [(one, one.clone()) for one in _floating(tensors)]


def _clear(tensors: Sequence[torch.Tensor | None]) -> None:
    for one in _floating(tensors):
        one.fill_(torch.nan)


def _is_right(trial: Trial, tile: tuple, expected: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    """Tell whether a tile computes what the default one does: a compiler may fail, and may be wrong."""
    _clear([there for there, _ in expected])
    found = []
    if not _works(lambda: found.extend(_floating(trial.results(tile)))):
        return False
    return all(_is_close(one, other) for one, (_, other) in zip(found, expected, strict=True))


def _works(launch: Launch) -> bool:
    """Launch a kernel and tell whether it can be compiled and run."""
    from triton.runtime.errors import TritonError

    try:
        launch()
    except torch.OutOfMemoryError:
        raise
    except (TritonError, RuntimeError):
        return False
    return True


def _is_close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Compare 2-norms over what is finite; what is not must be the same."""
    rows = max(1, COMPARED_AT_ONCE * len(expected) // expected.numel())
    error, size, others = (torch.zeros((), dtype=torch.float64, device=expected.device) for _ in range(3))
    for one, other in zip(found.split(rows), expected.split(rows), strict=True):
        one, other = one.double(), other.double()
        finite = other.isfinite()
        same = (one == other) | (one.isnan() & other.isnan())
        others += torch.where(finite, ~one.isfinite(), ~same).sum()
        error += torch.where(finite, one - other, 0.0).square().sum()
        size += torch.where(finite, other, 0.0).square().sum()
    furthest = FURTHEST_IN_FLOAT32 if expected.dtype == torch.float32 else FURTHEST_IN_16_BITS
    return not others and bool(error <= furthest**2 * size)


def _kept(file: Path, question: Mapping[str, str], tiles: Sequence[T]) -> T | None:
    """Return the tile that a file holds; None where it is missing, damaged, or about something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        tile = content["tile"] if content["call"] == question else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return next((one for one in tiles if one._asdict() == tile), None)


def _name_of(kernel: object) -> str:
    """Return "layer_norm.forward_kernel" for the kernel of that name in that folder."""
    return f"{kernel.fn.__module__.split('.')[-2]}.{kernel.fn.__name__}"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _triton_version() -> str:
    import triton

    return triton.__version__
