"""The speed-ups of a run in one picture."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.comparison import Row
from benchmarks.environment import Origin
from benchmarks.table import by_suite

_BAR_INCHES, _PANEL_INCHES = 0.22, 0.55


def write_speedups(rows: Sequence[Row], environment: Origin, path: Path) -> None:
    """Draw one panel per suite: a bar per case and peer, its length the peer's time over fastssl's.

    Args:
        rows: measured rows; those without a peer are left out.
        environment: for the title.
        path: where the PNG goes.
    """
    from matplotlib.figure import Figure

    suites = [(suite, [row for row in group if row.peers]) for suite, group in by_suite(rows)]
    suites = [(suite, group) for suite, group in suites if group]
    if not suites:
        return
    bars = [sum(len(row.peers) for row in group) for _, group in suites]
    heights = [_PANEL_INCHES + _BAR_INCHES * count for count in bars]
    figure = Figure(figsize=(9, sum(heights) + 1.0), layout="constrained")
    axes = figure.subplots(len(suites), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axis, (suite, group) in zip(axes, suites, strict=True):
        _draw_suite(axis, suite, group)
    axes[-1].set_xlabel("peer's time / fastssl's time (median and quartiles of interleaved rounds)")
    figure.suptitle(f"{environment.title}, commit {environment.commit}", fontsize=10)
    figure.savefig(path, dpi=120)


def _draw_suite(axis, suite: str, rows: Sequence[Row]) -> None:
    peers = list(dict.fromkeys(peer for row in rows for peer in row.peers))
    labels, position = [], 0
    for row in rows:
        for peer in row.peers:
            ratio = row.speedup(peer)
            errors = [[ratio.median - ratio.low], [ratio.high - ratio.median]]
            axis.barh(position, ratio.median, xerr=errors, color=f"C{peers.index(peer) % 10}", height=0.8)
            axis.annotate(f" {ratio.median:.2f}", (ratio.high, position), va="center", fontsize=7)
            labels.append(f"{row.case} / {peer}")
            position += 1
    axis.set_yticks(range(position), labels, fontsize=7)
    axis.set_ylim(position - 0.5, -0.5)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.axvline(1.0, color="black", linewidth=0.8)
    axis.set_title(suite, fontsize=9, loc="left")
