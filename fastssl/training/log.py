"""What a run writes for its readers: metrics.jsonl, TensorBoard events, and curves.png.

A row is a flat dict of numbers with a "step". Rows of training and of evaluation are told apart by their names: those
of evaluation begin with "eval_".
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fastssl.training.curves import draw_curves
from fastssl.training.durable import write_whole

METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"
Row = Mapping[str, float]


class Sink(Protocol):
    """Something that takes rows of metrics."""

    def write(self, row: Row) -> None:
        """Take one row."""

    def flush(self) -> None:
        """Bring what was taken to disk."""

    def close(self) -> None:
        """Finish."""


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the rows of a metrics.jsonl; a last line that a kill cut short is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


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

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class Curves:
    """curves.png, drawn from metrics.jsonl when a run ends.

    Args:
        directory: of the run.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, row: Row) -> None:
        """Rows are read from metrics.jsonl when the picture is drawn."""

    def flush(self) -> None:
        """A picture is drawn at the end only."""

    def close(self) -> None:
        """Draw the picture."""
        if rows := read_metrics(self._directory / METRICS_FILE):
            draw_curves(rows, self._directory / CURVES_FILE)


def default_sinks(directory: Path, start_step: int) -> Sequence[Sink]:
    """Return the three sinks of every run; metrics.jsonl comes first because the curves are drawn from it."""
    return (
        MetricsFile(directory / METRICS_FILE, start_step),
        TensorBoardEvents(directory / "tensorboard", start_step),
        Curves(directory),
    )
