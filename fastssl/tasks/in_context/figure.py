"""The pictures of in-context learning: accuracy against shots, and against the size of the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastssl.tasks.figure_file import write_figure
from fastssl.tasks.in_context.results import AskedTask, InContextPoint, InContextReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Those of Okabe and Ito, which colour-blind people tell apart."""
MARKERS = "os^Dv<>"
"""Told apart in print too."""
_SHOTS_WORDS = {0: "zero-shot", 1: "one-shot"}


def draw_shots(report: InContextReport, path: Path) -> None:
    """Draw the accuracy of each model over the number of examples, one panel a task.

    Args:
        report: what was found.
        path: the PNG file to write.
    """
    figure, panels = _panels(len(report.tasks))
    for axes, task in zip(panels, report.tasks, strict=True):
        for number, model in enumerate(report.models):
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            for answers, style, label in (("true", "-", model.name), ("shuffled", ":", None)):
                own = _points(report, task, model=model.name, answers=answers)
                _line(axes, [p.shots for p in own], own, style=style, colour=colour, marker=marker, label=label)
        _baselines(axes, task)
        axes.set_xticks(sorted({point.shots for point in report.points}))
        axes.set(title=task.name, xlabel="examples in the prompt", ylabel="accuracy")
        _finish(axes)
    has_control = any(point.answers == "shuffled" for point in report.points)
    _title(figure, "In-context learning" + ("; dotted: examples with shuffled answers" if has_control else ""))
    write_figure(figure, path)


def draw_sizes(report: InContextReport, path: Path) -> None:
    """Draw the accuracy of each number of shots over the size of the model: a panel a task, and their mean.

    Args:
        report: what was found, of at least two models.
        path: the PNG file to write.

    Source: Brown et al. 2020 (arXiv 2005.14165) figure 1.3.
    """
    tasks = report.tasks
    figure, panels = _panels(len(tasks) + (len(tasks) > 1))
    all_shots = sorted({point.shots for point in report.points}, reverse=True)
    for axes, task in zip(panels, tasks, strict=False):
        for number, shots in enumerate(all_shots):
            own = sorted(_points(report, task, shots=shots), key=lambda point: point.parameters)
            _line(axes, [p.parameters for p in own], own, **_of_shots(shots, number))
        _baselines(axes, task)
        axes.set_title(task.name)
    if len(tasks) > 1:
        for number, shots in enumerate(all_shots):
            _mean_line(panels[-1], report, shots, _of_shots(shots, number))
        panels[-1].set_title(f"mean of {len(tasks)} tasks")
    for axes in panels:
        axes.set_xscale("log")
        axes.set(xlabel="parameters (log scale)", ylabel="accuracy")
        _finish(axes)
    _title(figure, "In-context learning and the size of the model")
    write_figure(figure, path)


def shots_word(shots: int) -> str:
    """Return how a number of shots is called."""
    return _SHOTS_WORDS.get(shots, f"few-shot ({shots})")


def mean_accuracy(report: InContextReport, model: str, shots: int) -> float:
    """Return the mean over all tasks of a model's accuracy with so many shots."""
    own = [p for task in report.tasks for p in _points(report, task, model=model, shots=shots)]
    return sum(point.accuracy for point in own) / len(own)


def _points(
    report: InContextReport,
    task: AskedTask,
    *,
    model: str | None = None,
    shots: int | None = None,
    answers: str = "true",
) -> list[InContextPoint]:
    return [
        point
        for point in report.points
        if point.task == task.name
        and point.answers == answers
        and model in (None, point.model)
        and shots in (None, point.shots)
    ]


def _of_shots(shots: int, number: int) -> dict[str, str]:
    marker = MARKERS[number % len(MARKERS)]
    return {"style": "-", "colour": COLOURS[number % len(COLOURS)], "marker": marker, "label": shots_word(shots)}


def _line(
    axes: Axes,
    places: Sequence[float],
    points: Sequence[InContextPoint],
    *,
    style: str,
    colour: str,
    marker: str,
    label: str | None,
) -> None:
    """Draw points with a band of their 95 % intervals."""
    if points:
        accuracies = [point.accuracy for point in points]
        axes.plot(places, accuracies, style, color=colour, marker=marker, markersize=6, linewidth=2, label=label)
        if style == "-":
            low, high = [point.low for point in points], [point.high for point in points]
            axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)


def _mean_line(axes: Axes, report: InContextReport, shots: int, look: dict[str, str]) -> None:
    models = report.models
    places, means = [m.parameters for m in models], [mean_accuracy(report, m.name, shots) for m in models]
    axes.plot(
        places,
        means,
        look["style"],
        color=look["colour"],
        marker=look["marker"],
        markersize=6,
        linewidth=2,
        label=look["label"],
    )


def _baselines(axes: Axes, task: AskedTask) -> None:
    axes.axhline(task.majority, color="0.35", linewidth=1, linestyle="--", label="most frequent answer")
    if task.chance is not None:
        axes.axhline(task.chance, color="0.6", linewidth=1, linestyle="-.", label="chance")


def _panels(number: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(number, 3)
    rows = -(-number // columns)
    figure = Figure(figsize=(max(6.5, 4.6 * columns), 4.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in panels[number:]:
        spare.set_axis_off()
    return figure, panels[:number]


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(f"{text} (bands: 95 % intervals)", fontsize=12)


def _finish(axes: Axes) -> None:
    axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8.5, frameon=True, framealpha=0.9)
