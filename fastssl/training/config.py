"""The settings of a training run, named as in the Hugging Face Trainer where a name exists there."""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

SchedulerName = Literal["auto", "linear", "cosine", "constant", "wsd", "time_budget"]
PrecisionName = Literal["auto", "fp32", "bf16"]
EvalStrategy = Literal["auto", "steps", "epoch"]
SaveStrategy = Literal["steps", "no"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained: length, optimizer, schedule, checkpoints, reports.

    Raises:
        ValueError: for a value out of range or two settings that contradict each other.
    """

    has_usual_metric: ClassVar[bool] = False
    """Whether a run without metric_for_best_model has one all the same."""

    output_dir: str
    """Directory of the run: checkpoints, metrics.jsonl, TensorBoard events, curves.png, run.json."""
    max_steps: int | None = None
    """Optimizer steps in all; it wins over num_train_epochs."""
    num_train_epochs: float = 3.0
    """Passes over the data, used when neither max_steps nor a time budget is given."""
    time_budget_minutes: float | None = None
    """Stop after this many minutes of training; time used before an interruption counts."""
    learning_rate: float = 5e-4
    """Peak learning rate."""
    min_learning_rate: float = 0.0
    """Learning rate at the end of a schedule that falls: it falls from the peak to this, and not to zero."""
    lr_scheduler_type: SchedulerName = "auto"
    """linear, cosine, constant, wsd (stable, then decay), time_budget (by the clock); auto suits how the run ends."""
    warmup_steps: int = 0
    """Steps of linear warm-up from zero; it wins over warmup_ratio."""
    warmup_ratio: float = 0.0
    """Warm-up as a share of all steps (of the minutes, with time_budget)."""
    decay_ratio: float = 0.1
    """Share of all steps at the end over which wsd decays to zero."""
    weight_decay: float = 0.01
    """Decoupled weight decay; never applied to biases and norms (parameters with one dimension)."""
    adam_beta1: float = 0.9
    """Decay rate of AdamW's average of gradients."""
    adam_beta2: float = 0.999
    """Decay rate of AdamW's average of squared gradients."""
    adam_epsilon: float = 1e-6
    """Term added to AdamW's denominator."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 turns clipping off."""
    gradient_accumulation_steps: int = 1
    """Batches whose gradients make one optimizer step, weighted by their numbers of predicted tokens."""
    gradient_checkpointing: bool = False
    """Recompute the activations of each block in the backward pass: less memory, about a third more time."""
    cuda_graphs: bool = False
    """Send a step of an LM to a CUDA GPU as graphs: for small models, which the host cannot keep up with."""
    search_tiles: bool = False
    """Measure which tiles of the Triton kernels are fastest on this GPU, and keep that in ~/.cache/fastssl/tiles."""
    precision: PrecisionName = "auto"
    """Arithmetic: fp32, or bf16 (autocast; weights stay fp32); auto is fp32 on a CPU, bf16 on a GPU that has it."""
    device: str = "auto"
    """Where it trains: auto (a GPU where there is one; a model that is on one stays there), cpu, cuda or cuda:1."""
    seed: int = 42
    """Seed of everything random in training; dropout at step k is a function of (seed, k) alone."""
    num_threads: int | None = None
    """Threads of PyTorch's operators; None keeps PyTorch's choice. Resuming is bit-identical at an equal count."""
    logging_steps: int = 10
    """Steps between two lines of metrics."""
    eval_steps: int | None = None
    """Steps between two evaluations on held-out data; None: at the end only, or, in pretraining, every save_steps."""
    eval_strategy: EvalStrategy = "auto"
    """Evaluate every eval_steps, or at the end of each epoch; auto: by steps where eval_steps is given."""
    metric_for_best_model: str | None = None
    """Keep the checkpoint of the best evaluation by this figure, such as loss; None keeps none for it. The model in the
    output directory is the last one all the same."""
    greater_is_better: bool | None = None
    """Whether more of that figure is better; None: not of a loss, perplexity or bits_per_byte, of all others."""
    early_stopping_patience: int | None = None
    """Stop after this many evaluations in a row that were not the best."""
    save_strategy: SaveStrategy = "steps"
    """Write a checkpoint every save_steps and at the end, or none at all (no): such a run cannot be resumed."""
    save_steps: int = 500
    """Steps between two checkpoints; the last step is always saved."""
    save_total_limit: int | None = None
    """Number of checkpoints to keep, the newest; None keeps all."""
    resume_from_checkpoint: str | None = None
    """A checkpoint directory, or "last": the newest good one of output_dir (from the start where there is none)."""
    plateau_steps: int = 2000
    """Report, once, when the smoothed loss has not fallen by half a per cent for this many steps; it never stops."""

    def __post_init__(self) -> None:
        if self.resume_from_checkpoint is True:
            object.__setattr__(self, "resume_from_checkpoint", "last")
        if not self.output_dir:
            raise ValueError("output_dir is empty; expected the directory of the run")
        self._check_choices()
        self._check_ranges()
        self._check_evaluation()
        if self.lr_scheduler_type == "time_budget" and self.time_budget_minutes is None:
            raise ValueError("lr_scheduler_type='time_budget' needs time_budget_minutes; give it, or choose 'linear'")
        if self.scheduler in ("linear", "cosine", "wsd") and self.ends_by_time_alone:
            raise ValueError(
                f"lr_scheduler_type={self.lr_scheduler_type!r} needs to know the last step, but only "
                "time_budget_minutes is given; add max_steps, or choose 'time_budget' or 'constant'"
            )

    @property
    def ends_by_time_alone(self) -> bool:
        """Whether no number of steps is known before the run."""
        return self.time_budget_minutes is not None and self.max_steps is None

    @property
    def scheduler(self) -> str:
        """The schedule's name with "auto" resolved."""
        if self.lr_scheduler_type != "auto":
            return self.lr_scheduler_type
        return "time_budget" if self.ends_by_time_alone else "linear"

    def _check_choices(self) -> None:
        for name, choices in (
            ("lr_scheduler_type", SchedulerName),
            ("precision", PrecisionName),
            ("eval_strategy", EvalStrategy),
            ("save_strategy", SaveStrategy),
        ):
            value = getattr(self, name)
            if value not in choices.__args__:
                raise ValueError(f"{name}={value!r}; expected one of {', '.join(choices.__args__)}")

    @property
    def best_is_greater(self) -> bool:
        """Whether more of metric_for_best_model is better."""
        if self.greater_is_better is not None:
            return self.greater_is_better
        return not (self.metric_for_best_model or "").endswith(("loss", "perplexity", "bits_per_byte"))

    def _check_evaluation(self) -> None:
        if self.eval_strategy == "steps" and self.eval_steps is None:
            raise ValueError("eval_strategy='steps' needs eval_steps; give it, or choose 'epoch'")
        if self.eval_strategy == "epoch" and self.eval_steps is not None:
            raise ValueError("eval_strategy='epoch' and eval_steps are both given; leave one out")
        metric = self.metric_for_best_model is not None or self.has_usual_metric
        if self.early_stopping_patience is not None and not metric:
            raise ValueError("early_stopping_patience needs metric_for_best_model; name a figure, such as 'loss'")
        if self.save_strategy == "no" and self.metric_for_best_model is not None:
            raise ValueError("metric_for_best_model keeps a checkpoint, but save_strategy='no'; leave one out")

    def _check_ranges(self) -> None:
        for name, (words, holds) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise ValueError(f"{name}={value!r}; expected {words}")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate={self.min_learning_rate} is above learning_rate={self.learning_rate}; lower it"
            )


_POSITIVE = ("a number above zero", lambda value: value > 0)
_NOT_NEGATIVE = ("zero or more", lambda value: value >= 0)
_FINITE = ("a finite number, zero or more", lambda value: 0 <= value < math.inf)
_SHARE = ("a share from 0 to 1", lambda value: 0 <= value <= 1)
_BETA = ("a number from 0 to below 1", lambda value: 0 <= value < 1)
_RANGES = {
    "max_steps": _POSITIVE,
    "num_train_epochs": _POSITIVE,
    "time_budget_minutes": _POSITIVE,
    "seed": ("a whole number from 0 to below 2**63", lambda value: 0 <= value < 2**63),
    "learning_rate": _FINITE,
    "min_learning_rate": _FINITE,
    "warmup_steps": _NOT_NEGATIVE,
    "warmup_ratio": _SHARE,
    "decay_ratio": _SHARE,
    "weight_decay": _NOT_NEGATIVE,
    "adam_beta1": _BETA,
    "adam_beta2": _BETA,
    "adam_epsilon": _POSITIVE,
    "max_grad_norm": _NOT_NEGATIVE,
    "gradient_accumulation_steps": _POSITIVE,
    "num_threads": _POSITIVE,
    "logging_steps": _POSITIVE,
    "eval_steps": _POSITIVE,
    "early_stopping_patience": _POSITIVE,
    "save_steps": _POSITIVE,
    "save_total_limit": _POSITIVE,
    "plateau_steps": _POSITIVE,
}

LENGTH_FIELDS = ("max_steps", "num_train_epochs", "time_budget_minutes")
"""Settings that may change when a run is resumed, with a remark."""
_FREE_FIELDS = (
    "output_dir",
    "gradient_checkpointing",
    "cuda_graphs",
    "search_tiles",
    "device",
    "num_threads",
    "logging_steps",
    "eval_steps",
    "eval_strategy",
    "metric_for_best_model",
    "greater_is_better",
    "early_stopping_patience",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "resume_from_checkpoint",
    "plateau_steps",
)


def identity_of(config: TrainingConfig) -> dict[str, object]:
    """Return the settings that decide what is computed: two runs that differ in one of them are different runs."""
    settings = dataclasses.asdict(config) | {"lr_scheduler_type": config.scheduler}
    return {name: value for name, value in settings.items() if name not in _FREE_FIELDS}
