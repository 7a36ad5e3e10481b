"""What a run writes for its readers: metrics.jsonl, TensorBoard events, and curves.png.

A row is a flat dict of numbers with a "step". Rows of training and of evaluation are told apart by their names: those
of evaluation begin with "eval_".
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fastssl.training.curves import draw_curves
from fastssl.training.durable import write_whole

METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"
_SECONDS_BETWEEN_PICTURES = 60.0
Row = Mapping[str, float]


class Sink(Protocol):
    """Something that takes rows of metrics."""

    def write(self, row: Row) -> None:
        """Take one row."""

    def flush(self) -> None:
        """Bring what was taken to disk; called before each checkpoint."""

    def finish(self) -> None:
        """Do what is due when training has ended in order, or at a NaN."""

    def close(self) -> None:
        """Let go of files, whatever has happened."""


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the rows of a metrics.jsonl; a last line that a kill cut short is left out."""
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            rows += [json.loads(line)] if line else []
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}; delete that line") from error
    return rows


class MetricsFile:
    """metrics.jsonl, one row a line, appended.

    Args:
        path: the file; rows after `start_step` are dropped, so that a resumed run repeats none.
        start_step: optimizer steps done before this run begins.
    """

    def __init__(self, path: Path, start_step: int) -> None:
        kept = [row for row in read_metrics(path) if row["step"] <= start_step] if start_step else []
        write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Row) -> None:
        """Append one row; a reader sees it at once."""
        self._file.write(json.dumps(dict(row)) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Nothing is held back."""

    def finish(self) -> None:
        """Nothing is due."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardEvents:
    """TensorBoard scalars, "train/<name>" and "eval/<name>", over steps.

    Args:
        directory: where the event file goes.
        start_step: optimizer steps done before this run begins; TensorBoard hides older events of later steps.
    """

    def __init__(self, directory: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=start_step + 1 if start_step else None)

    def write(self, row: Row) -> None:
        """Add every number of a row but the step."""
        for name, value in row.items():
            if name != "step":
                tag = f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
                self._writer.add_scalar(tag, value, row["step"])

    def flush(self) -> None:
        """Write buffered events."""
        self._writer.flush()

    def finish(self) -> None:
        """Nothing is due."""

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class Curves:
    """curves.png, drawn from metrics.jsonl: at the end of a run, and at a checkpoint when a minute has passed.

    Args:
        directory: of the run.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._drawn = directory, time.monotonic()

    def write(self, row: Row) -> None:
        """Rows are read from metrics.jsonl when the picture is drawn."""

    def flush(self) -> None:
        """Draw the picture, at most once a minute."""
        if time.monotonic() - self._drawn > _SECONDS_BETWEEN_PICTURES:
            self.finish()

    def finish(self) -> None:
        """Draw the picture."""
        if rows := read_metrics(self._directory / METRICS_FILE):
            draw_curves(rows, self._directory / CURVES_FILE)
        self._drawn = time.monotonic()

    def close(self) -> None:
        """Nothing is open."""


def default_sinks(directory: Path, start_step: int) -> Sequence[Sink]:
    """Return the three sinks of every run."""
    return (
        MetricsFile(directory / METRICS_FILE, start_step),
        TensorBoardEvents(directory / "tensorboard", start_step),
        Curves(directory),
    )
