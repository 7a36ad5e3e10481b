"""The picture of a task learnt from two starts: training loss over epochs, held-out score per epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fastssl.tasks.comparison.run_curve import RunCurve
from fastssl.tasks.figure_file import write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"pretrained": "#0072B2", "from-scratch": "#D55E00"}
"""Blue and vermilion of Okabe and Ito, which colour-blind people tell apart."""
LINES = {"pretrained": "-", "from-scratch": "--"}
"""Told apart in print too."""


def draw_comparison(
    curves: Mapping[str, RunCurve],
    path: Path,
    *,
    title: str,
    metric: str,
    threshold: tuple[str, float],
    arrivals: Mapping[str, float | None],
) -> None:
    """Draw both starts.

    Args:
        curves: start -> its run.
        path: the PNG file to write.
        title: above the picture.
        metric: name of the held-out score.
        threshold: "training_loss" or "score", and the value.
        arrivals: start -> epochs until the threshold; None for never.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    losses, scores = figure.subplots(1, 2)
    for start, curve in curves.items():
        name, style = start.replace("-", " "), {"color": COLOURS[start], "linestyle": LINES[start]}
        losses.plot(curve.epochs, curve.losses, color=COLOURS[start], linewidth=0.8, alpha=0.3)
        losses.plot(curve.epochs, curve.smoothed, linewidth=2, label=name, **style)
        scores.plot(curve.score_epochs, curve.scores, linewidth=2, marker="o", markersize=5, label=name, **style)
    losses.set(title="training loss (bold: mean over the last quarter epoch)", ylabel="loss")
    losses.set_ylim(bottom=0)
    scores.set(title=f"held-out {metric.replace('_', ' ')}", ylabel=metric.replace("_", " "))
    _mark_threshold(losses if threshold[0] == "training_loss" else scores, threshold[1], arrivals)
    for axes in (losses, scores):
        _finish(axes, max(curve.epochs[-1] for curve in curves.values()))
    write_figure(figure, path)


def _mark_threshold(axes: Axes, threshold: float, arrivals: Mapping[str, float | None]) -> None:
    """Draw the threshold as a thin line, and a ring where each start arrives at it."""
    axes.axhline(threshold, color="0.35", linewidth=1, linestyle=":", label=f"threshold {threshold:.3g}")
    for start, epochs in arrivals.items():
        if epochs is not None:
            axes.plot(
                [epochs],
                [threshold],
                "o",
                markersize=9,
                markerfacecolor="white",
                markeredgewidth=2,
                color=COLOURS[start],
                label=f"{start.replace('-', ' ')} arrives: epoch {epochs:.2f}",
            )


def _finish(axes: Axes, last_epoch: float) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0, last_epoch * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=last_epoch >= 2))
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9, frameon=True, framealpha=0.9)
