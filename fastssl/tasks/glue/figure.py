"""The chart of GLUE: a bar for each task beside what people score."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path

from fastssl.tasks.figure_file import write_figure

_MODEL, _HUMAN, _BERT = "#0072B2", "#BBBBBB", "#D55E00"
_WIDTH = 0.38
_FOOT = 8.0
_WIDE = 8.5
_CAPTION_CHARACTERS = 90


def draw_glue(
    scores: Sequence[tuple[str, float, float, float]], path: Path, *, title: str, missing: Sequence[str]
) -> None:
    """Draw the score of each task and the averages.

    Args:
        scores: (task, the model's score, people's, BERT-base's), in per cent.
        path: the PNG file to write.
        title: above the chart.
        missing: tasks that did not run, told below it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    averages = [statistics.fmean(column) for column in list(zip(*scores, strict=True))[1:]]
    rows = [*scores, ("average", *averages)]
    width = max(7.0, 1.05 * len(rows) + 1.5)
    figure = Figure(figsize=(width, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    # The averages stand a little apart.
    places = [*range(len(scores)), len(scores) + 0.4]
    names, models, people, published = zip(*rows, strict=True)
    left, right = ([place + sign * _WIDTH / 2 for place in places] for sign in (-1, 1))
    bars = axes.bar(left, models, _WIDTH, color=_MODEL, label="this model, development set")
    human = axes.bar(right, people, _WIDTH, color=_HUMAN, label="people, test set")
    # At the foot of the bars, where no line of BERT-base can cross them.
    for bar, colour in [*((bar, "white") for bar in bars), *((bar, "black") for bar in human)]:
        place, inside = bar.get_x() + bar.get_width() / 2, bar.get_height() > _FOOT
        foot = max(bar.get_height(), 0) + 1.5 if not inside else 2
        axes.text(place, foot, f"{bar.get_height():.1f}", ha="center", fontsize=9, color=colour if inside else "black")
    axes.hlines(
        published,
        [place - _WIDTH / 2 for place in left],
        [place + _WIDTH / 2 for place in left],
        color=_BERT,
        linewidth=2.5,
        label="BERT-base, development set (published)",
    )
    axes.set_xticks(places, names)
    axes.set_ylim(min(0, *models), 108)
    axes.set_yticks(range(0, 101, 20))
    axes.set(title=title, ylabel="official score, %")
    axes.set_xlabel(_caption(missing), fontsize=8.5, color="0.35", labelpad=8)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3 if width > _WIDE else 1, fontsize=9, frameon=False)
    write_figure(figure, path)


def _caption(missing: Sequence[str]) -> str:
    if not missing:
        return "all nine tasks"
    return textwrap.fill(f"not run, and in none of the averages: {', '.join(missing)}", _CAPTION_CHARACTERS)
