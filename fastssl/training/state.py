"""Everything a run remembers beside weights: in memory, and in the files of a checkpoint."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fastssl.data.files import write_with_usual_mode
from fastssl.training.metrics import ExponentialAverage, MetricSums, PlateauDetector

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "training_state.json"


@dataclass(kw_only=True)
class TrainingState:
    """The plain numbers of a run. The next batch follows from `step`, and dropout seeds from (seed, step)."""

    step: int = 0
    """Optimizer steps done."""
    elapsed_seconds: float = 0.0
    """Time spent in training, evaluation and saving, over all interruptions."""
    tokens_seen: int = 0
    """Tokens in all batches so far."""
    window: MetricSums = field(default_factory=MetricSums)
    """Sums since the last line of metrics."""
    average: ExponentialAverage = field(default_factory=ExponentialAverage)
    """The smoothed loss."""
    plateau: PlateauDetector = field(default_factory=PlateauDetector)
    """The plateau report."""
    epoch_sizes: list[int] = field(default_factory=list)
    """Numbers of batches of the epochs from 0 to the present one, over all processes."""
    evaluated_step: int | None = None
    """Step of the last evaluation."""
    evaluation: dict[str, float] = field(default_factory=dict)
    """Its figures."""
    best_metric: str | None = None
    """By which figure evaluations are compared, where the run has a metric_for_best_model."""
    best_step: int | None = None
    """Step of the best evaluation, where the run has a metric_for_best_model."""
    best_value: float | None = None
    """What that metric was there."""
    evaluations_since_best: int = 0
    """Evaluations since then."""

    def note_best(self, metric: str, value: float, *, greater_is_better: bool) -> None:
        """Compare the evaluation of this step with the best one by the same figure; NaN is never the best."""
        if metric != self.best_metric:
            self.best_metric, self.best_step, self.best_value, self.evaluations_since_best = metric, None, None, 0
        best = self.best_value
        better = best is None or (value > best if greater_is_better else value < best)
        if better and not math.isnan(value):
            self.best_step, self.best_value, self.evaluations_since_best = self.step, value, 0
        else:
            self.evaluations_since_best += 1

    def save(self, directory: Path) -> None:
        """Write the numbers; JSON keeps every bit of a double."""
        (directory / STATE_FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> "TrainingState":
        """Read the numbers."""
        fields = json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))
        for name, kind in (("window", MetricSums), ("average", ExponentialAverage), ("plateau", PlateauDetector)):
            fields[name] = kind(**fields[name])
        return cls(**fields)


def save_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, directory: Path) -> None:
    """Write the optimizer's tensors under "<parameter's name>/<what>", such as "norm.weight/exp_avg"."""
    tensors = {
        f"{name}/{key}": value.detach().contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    write_with_usual_mode(directory / OPTIMIZER_FILE, lambda path: save_file(tensors, path))


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, directory: Path) -> None:
    """Read what `save_optimizer` wrote into an optimizer over the same parameters."""
    by_name: dict[str, dict[str, torch.Tensor]] = {}
    for full_name, tensor in load_file(directory / OPTIMIZER_FILE).items():
        name, key = full_name.rsplit("/", 1)
        by_name.setdefault(name, {})[key] = tensor
    names = {parameter: name for name, parameter in model.named_parameters()}
    ordered = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    state = {number: by_name[name] for number, name in enumerate(ordered) if name in by_name}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def load_weights(model: nn.Module, directory: Path) -> None:
    """Read a model directory's weights into a model of the same class and sizes."""
    model.load_state_dict(type(model).from_pretrained(directory).state_dict())
