"""What was pretraining worth? A task learnt twice, from a pretrained model and from random weights, and compared.

Source: Hao, Dong, Wei and Xu 2019 (arXiv 1908.05620), figure 1: training loss over epochs from both starts.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fastssl.device import choose_device
from fastssl.tasks.comparison.compare_init_figure import draw_comparison
from fastssl.tasks.comparison.config import STARTS, CompareInitConfig, StartName
from fastssl.tasks.comparison.run_curve import RunCurve
from fastssl.tasks.finetuning import FinetuningRun, prepare_finetuning
from fastssl.training.distributed import expect_one_process
from fastssl.training.durable import write_whole
from fastssl.training.run_directory import check_output_directory

FIGURE_FILE, TABLE_FILE, SUMMARY_FILE = "compare_init.png", "compare_init.csv", "compare_init.json"
_LINES_PER_EPOCH = 20


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs that differ in their first weights alone."""

    config: CompareInitConfig
    """What was asked for."""
    metric: str
    """Name of the held-out score."""
    greater_is_better: bool
    """Whether more of it is better."""
    curves: Mapping[StartName, RunCurve]
    """Start -> what its run tells."""

    @property
    def threshold(self) -> float:
        """The value to arrive at: as asked for, or what the run from scratch reaches."""
        scratch = self.curves["from-scratch"]
        if self.config.arrival.threshold is not None:
            return self.config.arrival.threshold
        if self.config.arrival.threshold_of == "score":
            return scratch.best_score(greater_is_better=self.greater_is_better)
        return float(scratch.smoothed[-1])

    @property
    def epochs_to_threshold(self) -> dict[StartName, float | None]:
        """Start -> epochs until the threshold is reached; None where it never is."""
        if self.config.arrival.threshold_of == "score":
            better = self.greater_is_better
            return {s: c.epochs_to_score(self.threshold, greater_is_better=better) for s, c in self.curves.items()}
        return {start: curve.epochs_to_loss(self.threshold) for start, curve in self.curves.items()}

    @property
    def pretrained_is_lower(self) -> dict[float, bool]:
        """End of each epoch that both runs have -> whether the pretrained one's mean training loss is the lower."""
        pretrained, scratch = (self.curves[start].epoch_losses for start in STARTS)
        return {end: pretrained[end] < scratch[end] for end in pretrained if end in scratch}

    def summary(self) -> dict[str, object]:
        """Return everything that was found, as JSON values; NaN is None."""
        config = self.config
        ends = sorted({end for curve in self.curves.values() for end in curve.epoch_losses})
        return {
            "task": config.task,
            "model": config.start.model,
            "train_file": str(config.examples.train_file),
            "eval_file": str(config.examples.eval_file),
            "seed": config.training.seed,
            "metric": self.metric,
            "greater_is_better": self.greater_is_better,
            "threshold_of": config.arrival.threshold_of,
            "threshold": _number(self.threshold),
            "epochs_to_threshold": self.epochs_to_threshold,
            "pretrained_lower_at_every_epoch": all(self.pretrained_is_lower.values()),
            "best_score": {
                start: _number(curve.best_score(greater_is_better=self.greater_is_better))
                for start, curve in self.curves.items()
            },
            "epochs": [
                {
                    "epoch": end,
                    "training_loss": {s: _number(c.epoch_losses.get(end)) for s, c in self.curves.items()},
                    "score": {s: _number(c.epoch_scores.get(end)) for s, c in self.curves.items()},
                }
                for end in ends
            ],
        }

    def save(self, directory: Path) -> None:
        """Write the figure, the curves as CSV, and the summary as JSON."""
        write_whole(directory / SUMMARY_FILE, json.dumps(self.summary(), indent=1) + "\n")
        write_whole(directory / TABLE_FILE, self._csv())
        draw_comparison(
            self.curves,
            directory / FIGURE_FILE,
            title=f"{Path(self.config.start.model).absolute().name}, {self.config.task} of "
            f"{self.config.examples.train_file.name}: pretrained or from scratch",
            metric=self.metric,
            threshold=(self.config.arrival.threshold_of, self.threshold),
            arrivals=self.epochs_to_threshold,
        )

    def _csv(self) -> str:
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["start", "epoch", "training_loss", "smoothed_training_loss", "held_out_" + self.metric])
        for start, curve in self.curves.items():
            lines = [(e, loss, s, "") for e, loss, s in zip(curve.epochs, curve.losses, curve.smoothed, strict=True)]
            scores = [(epoch, "", "", score) for epoch, score in zip(curve.score_epochs, curve.scores, strict=True)]
            for row in sorted(lines + scores, key=lambda row: row[0]):
                table.writerow([start, *(value if value == "" else f"{value:.6g}" for value in row)])
        return text.getvalue()


def compare_init(config: CompareInitConfig, *, say: Callable[[str], None]) -> Comparison | int:
    """Train from both starts, one after the other, and write what comes of it into the output directory.

    Both runs have the same seed, so the same examples in the same order and the same dropout. Each is an ordinary run
    in a directory of its own, ``pretrained`` and ``from-scratch``; resuming goes on with what is not complete.

    Args:
        config: what to do.
        say: takes remarks on the way.

    Returns:
        The comparison; the exit code where a signal ended a run.

    Raises:
        ValueError: as `prepare_finetuning`; under torchrun.
    """
    expect_one_process("compare-init")
    directory = Path(config.training.output_dir)
    arms = {start: config.finetuning(start, directory / start) for start in STARTS}
    for arm in arms.values():
        # Of both before the first: the second would otherwise be refused after minutes.
        check_output_directory(arm.training)
        choose_device(arm.training.device)  # says at once that there is none
    for start, arm in arms.items():
        say(f"[{start}] in {arm.training.output_dir}")
        run = with_lines_enough(prepare_finetuning(arm, say=say))
        metric = (arm.training.metric_for_best_model or run.parts.main_metric).removeprefix("eval_")
        if exit_code := run.run().exit_code:
            return exit_code
    comparison = Comparison(
        config=config,
        metric=metric,
        greater_is_better=replace(config.training, metric_for_best_model=metric, save_strategy="steps").best_is_greater,
        curves={start: RunCurve.read(directory / start, metric) for start in STARTS},
    )
    comparison.save(directory)
    return comparison


def with_lines_enough(run: FinetuningRun) -> FinetuningRun:
    """Have a run write at least twenty lines an epoch where it has as many steps, for a curve over epochs."""
    training = run.config.training
    steps = run.parts.train_data.num_batches(0) // training.gradient_accumulation_steps
    logging_steps = min(training.logging_steps, max(1, steps // _LINES_PER_EPOCH))
    return replace(run, config=replace(run.config, training=replace(training, logging_steps=logging_steps)))


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
