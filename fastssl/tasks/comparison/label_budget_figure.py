"""The picture of score against labelled examples, from two starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fastssl.tasks.comparison.compare_init_figure import COLOURS, LINES
from fastssl.tasks.figure_file import write_figure


class Point(Protocol):
    """What is drawn of one start and budget."""

    num_labels: int
    scores: Sequence[float]
    mean: float
    deviation: float


def draw_label_budget(points: Mapping[str, Sequence[Point]], path: Path, *, title: str, metric: str) -> None:
    """Draw the mean score of each start over numbers of labels, a band of one standard deviation, and every run.

    Args:
        points: start -> budgets, ascending.
        path: the PNG file to write.
        title: above the picture.
        metric: name of the held-out score.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, NullLocator

    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for start, own in points.items():
        sizes, means = [p.num_labels for p in own], [p.mean for p in own]
        low, high = ([p.mean + sign * p.deviation for p in own] for sign in (-1, 1))
        colour = COLOURS[start]
        axes.fill_between(sizes, low, high, color=colour, alpha=0.15, linewidth=0)
        label = start.replace("-", " ")
        axes.plot(sizes, means, LINES[start], color=colour, linewidth=2, marker="o", markersize=6, label=label)
        every = [(p.num_labels, score) for p in own for score in p.scores]
        axes.plot(*zip(*every, strict=True), "o", color=colour, markersize=3.5, alpha=0.45, markeredgewidth=0)
    sizes = sorted({p.num_labels for own in points.values() for p in own})
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    num_seeds = max(len(p.scores) for own in points.values() for p in own)
    spread = f"mean, standard deviation and each of {num_seeds} seeds" if num_seeds > 1 else "one seed"
    figure.suptitle(title, fontsize=12)
    axes.set_title(spread, fontsize=9, color="0.35")
    axes.set(xlabel="labelled examples (log scale)", ylabel=f"held-out {metric.replace('_', ' ')}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=True, framealpha=0.9)
    write_figure(figure, path)
