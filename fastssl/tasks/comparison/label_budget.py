"""What is pretraining worth when labels are few? Score against labelled examples, from both starts, several seeds.

Source: Howard and Ruder 2018 (arXiv 1801.06146) §5, figure 3: error against the number of training examples.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from fastssl.data.files import sha256_of_file
from fastssl.device import choose_device
from fastssl.tasks.comparison.config import STARTS, CompareInitConfig, StartName
from fastssl.tasks.comparison.label_budget_figure import draw_label_budget
from fastssl.tasks.example_batches import ExampleBatches
from fastssl.tasks.finetuning import TASKS, freeze, layerwise_lr_scales
from fastssl.tasks.labelled_subsets import nested_order
from fastssl.tasks.task_parts import TaskParts
from fastssl.training import RunDirectoryError, Trainer
from fastssl.training.config import identity_of
from fastssl.training.distributed import expect_one_process
from fastssl.training.durable import write_whole
from fastssl.training.run_directory import differences, tell_differences

FIGURE_FILE, TABLE_FILE, SUMMARY_FILE = "label_budget.png", "label_budget.csv", "label_budget.json"


@dataclass(frozen=True, kw_only=True)
class BudgetRun:
    """One short run."""

    start: StartName
    """What it started from."""
    num_labels: int
    """Number of labelled examples."""
    seed: int
    """Of the choice of examples, their order, the head and dropout."""
    steps: int
    """Optimizer steps."""
    score: float
    """The held-out score at the end."""
    seconds: float
    """Time that it took."""


@dataclass(frozen=True, kw_only=True)
class BudgetPoint:
    """What the seeds of one start and one budget give together."""

    start: StartName
    """What the runs started from."""
    num_labels: int
    """Number of labelled examples."""
    scores: tuple[float, ...]
    """One a seed."""

    @property
    def mean(self) -> float:
        """The mean score."""
        return statistics.fmean(self.scores)

    @property
    def deviation(self) -> float:
        """The standard deviation between seeds (n - 1); 0 for one seed."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else 0.0


@dataclass(frozen=True, kw_only=True)
class LabelBudgets:
    """All runs of a comparison."""

    metric: str
    """Name of the held-out score."""
    runs: tuple[BudgetRun, ...]
    """In the order in which they ran."""
    exit_code: int = 0
    """0, or the process's exit code after a signal, with the runs that were finished before it."""

    @property
    def points(self) -> list[BudgetPoint]:
        """Mean and spread of each start and budget, budgets ascending, pretrained first."""
        keys = sorted({(STARTS.index(run.start), run.num_labels) for run in self.runs})
        return [
            BudgetPoint(
                start=STARTS[start],
                num_labels=size,
                scores=tuple(r.score for r in self.runs if (r.start, r.num_labels) == (STARTS[start], size)),
            )
            for start, size in keys
        ]


class LabelBudgetExperiment:
    """The runs of a comparison over label budgets, over examples that are encoded once.

    Args:
        config: what to do.
        say: takes remarks.

    Raises:
        ValueError: for a task whose examples are not in `ExampleBatches`, a budget below the number of classes or
            above the number of examples, and as `prepare_finetuning`.
        RunDirectoryError: where the output directory holds runs, and they are others, were measured by another figure,
            or are not to be resumed.
    """

    def __init__(self, config: CompareInitConfig, *, say: Callable[[str], None]) -> None:
        expect_one_process("compare-init")
        self.config, self._say = config, say
        self._directory = Path(config.training.output_dir)
        self._identity = _identity(config)
        self.finished = self._read_finished()
        """The runs that are done."""
        parts = TASKS[config.task](config.finetuning("pretrained", self._directory), say)
        data = parts.train_data
        if not isinstance(data, ExampleBatches):
            raise ValueError(f"label_budget cannot choose among the examples of task={config.task!r}; leave it out")
        one_class_each = parts.model.config.problem_type == "single_label_classification"
        # Of words, or of several classes at once, no choice could promise that every class occurs.
        labels = data.labels.numpy() if config.task == "classification" and one_class_each else None
        self._parts: TaskParts = parts
        self._labels = labels
        self.budgets = config.budget.sizes(len(data.examples))
        """Numbers of examples, ascending."""
        _check_budgets(self.budgets, len(data.examples), 0 if labels is None else len(set(labels.tolist())))
        say(f"budgets of {', '.join(f'{size:,}' for size in self.budgets)} out of {len(data.examples):,} examples")
        self.metric = (config.training.metric_for_best_model or parts.main_metric).removeprefix("eval_")
        """Name of the held-out score."""
        self._check_metric()

    def run(self) -> LabelBudgets:
        """Do what is not done yet, smallest budgets first, noting each run on disk as it ends; draw the figure."""
        seeds = range(self.config.training.seed, self.config.training.seed + self.config.budget.num_seeds)
        for num_labels in self.budgets:
            for seed in seeds:
                for start in STARTS:
                    if (start, num_labels, seed) in self.finished:
                        continue
                    run = self._train(start, num_labels, seed)
                    if isinstance(run, int):
                        return LabelBudgets(metric=self.metric, runs=tuple(self.finished.values()), exit_code=run)
                    self.finished[start, num_labels, seed] = run
                    self._save()
                    name = f"{num_labels:,} labels, seed {seed}, {start.replace('-', ' ')}"
                    self._say(f"{name}: {self.metric} {run.score:.4f} ({run.steps} steps, {run.seconds:.0f} s)")
        found = LabelBudgets(metric=self.metric, runs=tuple(self.finished.values()))
        self._save()
        draw_label_budget(
            {start: [p for p in found.points if p.start == start] for start in STARTS},
            self._directory / FIGURE_FILE,
            title=f"{Path(self.config.start.model).absolute().name}, {self.config.task} of "
            f"{self.config.examples.train_file.name}: how few labels will do",
            metric=self.metric,
        )
        return found

    def data(self, num_labels: int, seed: int) -> ExampleBatches:
        """Return the batches of a budget: for each seed, the examples of a smaller one are among a larger one's."""
        whole = self._parts.train_data
        order = nested_order(self._labels, len(whole.examples), seed)
        return ExampleBatches(
            whole.examples, whole.labels, seed=seed, batch_size=whole.batch_size, rows=order[:num_labels]
        )

    def num_steps(self, data: ExampleBatches) -> int:
        """Return the length of a run: the epochs asked for, but at least so many steps; or max_steps."""
        training = self.config.training
        if training.max_steps is not None:
            return training.max_steps
        batches = math.ceil(training.num_train_epochs * data.num_batches(0))
        return max(self.config.budget.min_steps, math.ceil(batches / training.gradient_accumulation_steps))

    def model(self, start: StartName, seed: int) -> nn.Module:
        """Return a model with the first weights of a run: what is not from pretraining is drawn with the seed."""
        first = self._parts.model
        torch.manual_seed(seed)
        model = type(first)(first.config)
        if getattr(first, "class_weights", None) is not None:
            model.set_class_weights(first.class_weights)
        if start == "pretrained":
            drawn = set(first.load_report.fresh)
            known = {name: value for name, value in first.state_dict().items() if name not in drawn}
            model.load_state_dict(known, strict=False)
        freeze(model, self.config.tuning.frozen_layers)
        if choose_device(self.config.training.device).type == "cpu":
            model.use_sparse_word_gradients()
        return model

    def _train(self, start: StartName, num_labels: int, seed: int) -> BudgetRun | int:
        data, began = self.data(num_labels, seed), time.monotonic()
        steps = self.num_steps(data)
        finetuning = self.config.finetuning(
            start,
            self._directory / "runs" / f"{start}-{num_labels}-seed{seed}",
            max_steps=steps,
            seed=seed,
            save_strategy="no",
            metric_for_best_model=None,
            early_stopping_patience=None,
            eval_strategy="auto",
            eval_steps=None,
            resume_from_checkpoint=None,
        )
        model = self.model(start, seed)
        result = Trainer(
            model,
            finetuning.training,
            data,
            evaluation=self._parts.evaluation,
            lr_scales=layerwise_lr_scales(model, self.config.tuning.layerwise_lr_decay),
            console=Console(stderr=True, quiet=True),
        ).train()
        if result.exit_code:
            return result.exit_code
        return BudgetRun(
            start=start,
            num_labels=num_labels,
            seed=seed,
            steps=result.step,
            score=result.evaluation[f"eval_{self.metric}"],
            seconds=time.monotonic() - began,
        )

    def _read_finished(self) -> dict[tuple[StartName, int, int], BudgetRun]:
        if not (self._directory / SUMMARY_FILE).is_file():
            return {}
        if self.config.training.resume_from_checkpoint is None:
            raise RunDirectoryError(
                f"{self._directory} already holds runs over label budgets; go on with --resume-from-checkpoint last, "
                "which does only those that are missing, or choose another output_dir"
            )
        content = self._read_summary()
        if differing := differences(content["identity"], self._identity):
            raise RunDirectoryError(
                f"{self._directory} holds other runs: {tell_differences(differing)}. Choose another output_dir"
            )
        runs = [BudgetRun(**run) for run in content["runs"]]
        return {(run.start, run.num_labels, run.seed): run for run in runs}

    def _check_metric(self) -> None:
        """Refuse to go on by another figure: the runs that are done have noted theirs alone."""
        if self.finished and (noted := self._read_summary()["metric"]) != self.metric:
            raise RunDirectoryError(
                f"{self._directory} holds runs that were measured by {noted}, and here it is {self.metric}; give "
                f"--metric-for-best-model {noted}, or choose another output_dir"
            )

    def _read_summary(self) -> dict[str, Any]:
        return json.loads((self._directory / SUMMARY_FILE).read_text(encoding="utf-8"))

    def _save(self) -> None:
        found = LabelBudgets(metric=self.metric, runs=tuple(self.finished.values()))
        points = [asdict(point) | {"mean": point.mean, "deviation": point.deviation} for point in found.points]
        content = {
            "identity": self._identity,
            "metric": self.metric,
            "points": points,
            "runs": [asdict(run) for run in found.runs],
        }
        write_whole(self._directory / SUMMARY_FILE, json.dumps(content, indent=1) + "\n")
        text = io.StringIO()
        table = csv.DictWriter(text, [*BudgetRun.__dataclass_fields__], lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(run) for run in found.runs)
        write_whole(self._directory / TABLE_FILE, text.getvalue())


def _check_budgets(budgets: Sequence[int], num_examples: int, num_classes: int) -> None:
    if budgets[0] < num_classes:
        raise ValueError(
            f"label_budget={budgets[0]} is below the number of classes, {num_classes}, of which each must occur; "
            f"give at least {num_classes}"
        )
    if budgets[-1] > num_examples:
        raise ValueError(
            f"label_budget={budgets[-1]} is above the number of training examples, {num_examples}; give 'all' for all"
        )


def _identity(config: CompareInitConfig) -> dict[str, object]:
    """Return what decides the score of a run, beside its start, budget and seed, as JSON values."""
    settings = asdict(config.finetuning("pretrained", Path(config.training.output_dir)))
    for name in ("train_file", "eval_file"):
        settings["examples"][name] = sha256_of_file(getattr(config.examples, name))
    settings["training"] = {name: value for name, value in identity_of(config.training).items() if name != "seed"}
    return json.loads(json.dumps(settings | {"min_steps": config.budget.min_steps}, default=str))
