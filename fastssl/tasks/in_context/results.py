"""What models made of tasks: every run, and what runs of several seeds say together."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal

from fastssl.tasks.in_context.proportion import wilson_interval

Answers = Literal["true", "shuffled"]


@dataclass(frozen=True, kw_only=True)
class AskedModel:
    """A model that was asked."""

    name: str
    """The name of its directory."""
    directory: str
    """Where it is."""
    parameters: int
    """Number of its weights."""
    sha256_before: str
    """Of its weights before the first question."""
    sha256_after: str
    """And after the last."""
    seconds: float
    """Time of all its questions."""

    @property
    def is_unchanged(self) -> bool:
        """Whether its weights are the same to the last bit."""
        return self.sha256_before == self.sha256_after


@dataclass(frozen=True, kw_only=True)
class AskedTask:
    """A task that was put to the models."""

    name: str
    """The name of its file."""
    scoring: str
    """likelihood or generation."""
    num_examples: int
    """Questions that were asked."""
    chance: float | None
    """Accuracy of a blind choice; None where there are no choices."""
    majority: float
    """Accuracy of always giving the most frequent answer of the examples that prompts are made of."""


@dataclass(frozen=True, kw_only=True)
class InContextRun:
    """One model, task, number of shots and draw of examples."""

    model: str
    """Name of the model."""
    parameters: int
    """Number of its weights."""
    task: str
    """Name of the task."""
    shots: int
    """Examples in each prompt."""
    answers: Answers
    """Whether the examples have their own answers, or those of others."""
    seed: int
    """Of the draw."""
    num_examples: int
    """Questions."""
    num_right: int
    """Right answers."""
    num_right_per_token: int | None
    """The same where the mean log-probability of a choice's tokens decides; None for generation."""
    shots_shown: float
    """Examples that a prompt showed on average, after those that found no room were left out."""
    dropped: int
    """Examples that found no room, of all prompts together."""

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.num_right / self.num_examples


@dataclass(frozen=True, kw_only=True)
class InContextPoint:
    """What all draws of one model, task and number of shots say together."""

    model: str
    """Name of the model."""
    parameters: int
    """Number of its weights."""
    task: str
    """Name of the task."""
    shots: int
    """Examples in each prompt."""
    answers: Answers
    """Whether the examples have their own answers, or those of others."""
    num_seeds: int
    """Draws."""
    num_examples: int
    """Questions of each."""
    accuracy: float
    """Mean over the draws."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of it: Wilson's, of the mean, as of one draw, since all draws ask the same questions."""
    deviation: float
    """Standard deviation between draws (n - 1); 0 for one."""
    accuracy_per_token: float | None
    """Mean where the mean log-probability of a choice's tokens decides; None for generation."""
    dropped: int
    """Examples that found no room, of all prompts together."""


def points_of(runs: Sequence[InContextRun]) -> list[InContextPoint]:
    """Return the points of some runs, in the order in which they first occur."""
    groups: dict[tuple, list[InContextRun]] = {}
    for run in runs:
        groups.setdefault((run.model, run.task, run.shots, run.answers), []).append(run)
    return [_point(group) for group in groups.values()]


def _point(runs: Sequence[InContextRun]) -> InContextPoint:
    first, scores = runs[0], [run.accuracy for run in runs]
    accuracy = statistics.fmean(scores)
    low, high = wilson_interval(accuracy, first.num_examples)
    per_token = [run.num_right_per_token / run.num_examples for run in runs if run.num_right_per_token is not None]
    return InContextPoint(
        model=first.model,
        parameters=first.parameters,
        task=first.task,
        shots=first.shots,
        answers=first.answers,
        num_seeds=len(runs),
        num_examples=first.num_examples,
        accuracy=accuracy,
        low=low,
        high=high,
        deviation=statistics.stdev(scores) if len(scores) > 1 else 0.0,
        accuracy_per_token=statistics.fmean(per_token) if per_token else None,
        dropped=sum(run.dropped for run in runs),
    )


@dataclass(frozen=True, kw_only=True)
class InContextReport:
    """All that was found."""

    models: tuple[AskedModel, ...]
    """By size, the smallest first."""
    tasks: tuple[AskedTask, ...]
    """In the order in which they were named."""
    runs: tuple[InContextRun, ...]
    """In the order in which they ran."""
    prompts: dict[str, str]
    """"task, shots" -> the first prompt of that kind, as the model read it."""

    @property
    def points(self) -> list[InContextPoint]:
        """What the draws say together."""
        return points_of(self.runs)

    def summary(self) -> dict[str, object]:
        """Return everything as JSON values."""
        return {
            "models": [{**asdict(model), "is_unchanged": model.is_unchanged} for model in self.models],
            "tasks": [asdict(task) for task in self.tasks],
            "points": [asdict(point) for point in self.points],
            "prompts": self.prompts,
        }

    def table(self) -> str:
        """Return every run as CSV."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        names = [field.name for field in fields(InContextRun)]
        table.writerow([*names, "accuracy", "low", "high"])
        for run in self.runs:
            shares = (run.accuracy, *wilson_interval(run.accuracy, run.num_examples))
            values = ("" if value is None else value for value in asdict(run).values())
            table.writerow([*values, *(f"{share:.6g}" for share in shares)])
        return text.getvalue()
