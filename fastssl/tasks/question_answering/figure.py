"""The picture of an answer: where it is likely to begin, and where to end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastssl.tasks.figure_file import write_figure

if TYPE_CHECKING:
    from fastssl.tasks.question_answering.answerer import AnswerProbabilities

_MOST_TOKENS = 60
_COLORS = ("tab:orange", "tab:blue")


def draw_probabilities(row: AnswerProbabilities, path: Path, *, title: str) -> None:
    """Draw the two softmax rows as bars over the tokens; of a long document the part around the likeliest ones.

    Args:
        row: the probabilities.
        path: the file to write, .png or another format of matplotlib.
        title: stands above, such as the question.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = shown_tokens(np.maximum(row.start.numpy(), row.end.numpy()))
    places = np.arange(shown.start, shown.stop)
    figure = Figure(figsize=(max(4.0, 0.24 * len(places) + 1.5), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    rows = {"P(start)": row.start, "P(end)": row.end}
    for axes, color, (name, values) in zip((upper, lower), _COLORS, rows.items(), strict=True):
        axes.bar(places, values[shown].numpy(), color=color)
        axes.set(ylabel=name, ylim=(0, 1))
        axes.grid(axis="y", alpha=0.3)
    upper.set_title(title, fontsize="medium", wrap=True)
    lower.set_xticks(places, row.tokens[shown], rotation=90, fontsize="x-small")
    lower.set_xlim(shown.start - 0.6, shown.stop - 0.4)
    write_figure(figure, path, dpi=120)


def shown_tokens(probabilities: np.ndarray) -> slice:
    """Return which tokens to draw: all, or as many neighbours as there is room for that have the largest sum."""
    if len(probabilities) <= _MOST_TOKENS:
        return slice(0, len(probabilities))
    sums = np.convolve(probabilities, np.ones(_MOST_TOKENS), mode="valid")
    # Of places that are as good the middle one: what is likely then does not stand at the edge.
    best = np.flatnonzero(sums >= sums.max() - 1e-3)
    first = int(best[len(best) // 2])
    return slice(first, first + _MOST_TOKENS)
