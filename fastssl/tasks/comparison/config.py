"""What comparing a pretrained start with a random one is asked to do; all settings of fine-tuning are among them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from fastssl.tasks.finetuning_config import FinetuningConfig

StartName = Literal["pretrained", "from-scratch"]
STARTS: tuple[StartName, ...] = StartName.__args__
"""The two starts, in the order in which they run; also the names of their directories."""


@dataclass(frozen=True, kw_only=True)
class ThresholdConfig:
    """What counts as having arrived."""

    threshold: float | None = None
    """Count the epochs until this value is reached; None: what the run from scratch reaches (its training loss at the
    end, its best score)."""
    threshold_of: Literal["training_loss", "score"] = "training_loss"
    """training_loss: when the smoothed training loss is first at most so high; score: at which evaluation the held-out
    score is first at least so high (at most, where less is better)."""


@dataclass(frozen=True, kw_only=True)
class LabelBudgetConfig:
    """Instead of two curves: the score against the number of labelled examples."""

    label_budget: tuple[str, ...] = ()
    """Numbers of examples to train on, such as 10 100 1000 all; each is part of the next, and where an example has one
    class, every class occurs in each."""
    num_seeds: int = 3
    """Runs for each number and start, with other examples, order, head and dropout; seeds count up from --seed."""
    min_steps: int = 100
    """Train for num_train_epochs, but at least so many steps: three epochs of ten examples would be three steps.
    --max-steps makes all runs equally long."""

    def __post_init__(self) -> None:
        self.sizes(None)
        for name in ("num_seeds", "min_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def sizes(self, num_examples: int | None) -> tuple[int, ...]:
        """Return the budgets as numbers, ascending, "all" being `num_examples`; left out where that is None.

        Raises:
            ValueError: for what is no number above zero.
        """
        words = [word for text in self.label_budget for word in text.split(",") if word]
        wrong = [word for word in words if word != "all" and not (word.isdecimal() and int(word))]
        if wrong or (self.label_budget and not words):
            got = repr(wrong[0]) if wrong else "none"
            raise ValueError(f"label_budget takes numbers above zero and 'all', such as 10 100 all; got {got}")
        numbers = {num_examples if word == "all" else int(word) for word in words}
        return tuple(sorted(number for number in numbers if number is not None))


@dataclass(frozen=True, kw_only=True)
class CompareInitConfig(FinetuningConfig):
    """A task that is learnt twice: from a pretrained model, and from random weights of the same shape."""

    arrival: ThresholdConfig = field(default_factory=ThresholdConfig)
    """What counts as having arrived."""
    budget: LabelBudgetConfig = field(default_factory=LabelBudgetConfig)
    """Scores against numbers of labels instead."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.examples.eval_file is None:
            raise ValueError("comparing needs held-out examples to measure on; give an eval_file")
        if self.start.from_scratch:
            raise ValueError("from_scratch is one of the two starts that are compared; leave it out")
        if not Path(self.start.model).is_dir():
            raise ValueError(
                f"model={self.start.model!r} is not a directory; comparing needs a pretrained model's directory (a "
                "preset has no weights to compare with random ones)"
            )
        if self.training.resume_from_checkpoint not in (None, "last"):
            raise ValueError(
                f"resume_from_checkpoint={self.training.resume_from_checkpoint!r}; here it can only be 'last', which "
                "holds for both starts"
            )

    def finetuning(self, start: StartName, output_dir: Path, **training: object) -> FinetuningConfig:
        """Return the run of one start.

        Args:
            start: which one.
            output_dir: of the run.
            **training: settings of training that differ from those of the comparison.
        """
        shared = {one.name: getattr(self, one.name) for one in fields(FinetuningConfig)}
        own = {
            "start": replace(self.start, from_scratch=start == "from-scratch"),
            "training": replace(self.training, output_dir=str(output_dir), **training),
        }
        return FinetuningConfig(**shared | own)
