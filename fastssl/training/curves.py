"""The picture of a run."""

from collections.abc import Sequence
from pathlib import Path

_PANELS = (
    ("loss", ("loss", "loss_average", "eval_loss")),
    ("accuracy", ("accuracy",)),
    ("learning rate", ("learning_rate",)),
)


def draw_curves(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Draw loss, accuracy and learning rate over steps, those of training and of held-out data.

    Args:
        rows: of metrics.jsonl.
        path: the PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, wanted) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        for name, points in _series(rows, wanted).items():
            marker = "o" if name.startswith("eval_") else ""
            axes.plot(
                *zip(*points, strict=True), label=name.replace("_", " "), marker=marker, markersize=3, linewidth=1
            )
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def _series(rows: Sequence[dict[str, float]], wanted: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    """Return name -> (step, value) points for every name that equals one of `wanted` or ends with "_<wanted>"."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name in wanted or ("accuracy" in wanted and name.endswith("_accuracy")):
                series.setdefault(name, []).append((row["step"], value))
    return series
