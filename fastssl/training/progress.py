"""How a run speaks: a progress bar on a terminal, plain lines elsewhere."""

import math
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


def format_duration(seconds: float) -> str:
    """Return a length of time as "3 d 04:10:07", "04:10:07" or "10:07"."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{minutes:02}:{rest:02}" if not (days or hours) else f"{hours:02}:{minutes:02}:{rest:02}"
    return f"{days} d {clock}" if days else clock


def describe(row: Mapping[str, float]) -> str:
    """Return the figures of a row of training metrics in one line."""
    parts = [f"loss {row['loss_average']:.4f}", f"{row['tokens_per_second']:,.0f} tokens/s"]
    if "mfu" in row:
        parts.append(f"MFU {row['mfu']:.1%}")
    return " · ".join(parts)


class Reporter:
    """The voice of a run on the console.

    Args:
        total_steps: all steps, or None where time alone ends the run.
        start_step: steps done before.
        console: where to write.
    """

    def __init__(self, total_steps: int | None, start_step: int, console: Console) -> None:
        self._console, self._total = console, total_steps
        self._bar: Progress | None = None
        if console.is_terminal and not console.quiet:
            columns = (MofNCompleteColumn(), BarColumn(bar_width=8), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=console, transient=True, refresh_per_second=2)
            self._task = self._bar.add_task("", total=total_steps, completed=start_step)
            self._bar.start()

    def say(self, message: str) -> None:
        """Print one message above the bar."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def train_row(self, row: Mapping[str, float], seconds_left: float) -> None:
        """Show a row of training metrics."""
        text = f"{describe(row)} · {format_duration(seconds_left)} left"
        if self._bar is not None:
            self._bar.update(self._task, description=text)
        else:
            total = "" if self._total is None else f"/{self._total}"
            self.say(f"step {row['step']}{total} · {text}")

    def evaluation_row(self, row: Mapping[str, float]) -> None:
        """Show a row of held-out metrics."""
        figures = " · ".join(
            f"{name.removeprefix('eval_').replace('_', ' ')} {value:.4f}"
            for name, value in row.items()
            if name.startswith("eval_")
        )
        self.say(f"step {row['step']} · held out: {figures}")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()


class Stopwatch:
    """Seconds of work since the last reading, with pauses left out."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._paused = 0.0

    def read(self) -> float:
        """Return the seconds since the last reading, and begin anew."""
        now = time.monotonic()
        worked = now - self._start - self._paused
        self._start, self._paused = now, 0.0
        return max(worked, 1e-9)

    def leave_out(self, seconds: float) -> None:
        """Leave some of the time since the last reading out."""
        self._paused += seconds
