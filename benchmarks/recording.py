"""The folder that a run leaves behind."""

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.comparison import Row
from benchmarks.environment import Origin
from benchmarks.figure import write_speedups
from benchmarks.table import csv_text, markdown


def write_results(rows: Sequence[Row], environment: Origin, folder: Path) -> None:
    """Write results.csv, summary.md, environment.json and speedups.png into `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.csv").write_text(csv_text(rows, environment))
    (folder / "summary.md").write_text(markdown(rows, environment))
    (folder / "environment.json").write_text(json.dumps(environment.as_dict(), indent=2) + "\n")
    write_speedups(rows, environment, folder / "speedups.png")
