import io
import math
import time

import pytest
from rich.console import Console

from fastssl.training.progress import Reporter, Stopwatch, format_duration

ROW = {"step": 20, "loss_average": 2.34567, "tokens_per_second": 12345.6, "mfu": 0.2512}


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "00:00"), (67, "01:07"), (3600, "01:00:00"), (15007.4, "04:10:07"), (90000, "1 d 01:00:00"), (math.inf, "?")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


def reporter(terminal, total=100):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=160)
    return Reporter(total, 10, console), console.file


def test_plain_lines_without_a_terminal():
    report, out = reporter(terminal=False)
    report.advance(20)
    report.train_row(ROW, 67)
    report.evaluation_row({"step": 20, "eval_loss": 2.0, "eval_masked_lm_accuracy": 0.25})
    report.say("[bold] is not markup here")
    report.close()
    assert out.getvalue().splitlines() == [
        "step 20/100 · loss 2.3457 · 12,346 tokens/s · MFU 25.1% · 01:07 left",
        "step 20 · held out: loss 2.0000 · masked lm accuracy 0.2500",
        "[bold] is not markup here",
    ]


def test_a_bar_on_a_terminal():
    report, out = reporter(terminal=True)
    report.advance(20)
    report.train_row({name: value for name, value in ROW.items() if name != "mfu"}, 67)
    report.close()
    shown = out.getvalue()
    assert "20/100" in shown and "loss 2.3457" in shown and "01:07 left" in shown and "MFU" not in shown


def test_unknown_end():
    report, out = reporter(terminal=False, total=None)
    report.train_row(ROW, 5)
    assert out.getvalue().startswith("step 20 · loss")


def test_stopwatch_leaves_pauses_out(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = Stopwatch()
    now[0] += 10
    watch.leave_out(4)
    assert watch.read() == 6
    now[0] += 3
    assert watch.read() == 3
