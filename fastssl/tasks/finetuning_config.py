"""What a fine-tuning run is asked to do; the command line shows the fields as flat flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from fastssl.models.bert_config import ProblemType
from fastssl.tasks.embedding.contrastive_config import ContrastiveConfig
from fastssl.tasks.labelled_texts import ColumnConfig
from fastssl.tasks.question_answering.windows import WindowConfig
from fastssl.training import TrainingConfig

TaskName = Literal["classification", "tagging", "question_answering", "embedding"]


@dataclass(frozen=True, kw_only=True)
class ExamplesConfig:
    """The labelled examples."""

    train_file: Path
    """File to train on: .tsv, .csv or .jsonl, with a header or keys; for tagging .conllu, .conll or .jsonl; for
    question_answering .json or .jsonl, in SQuAD's format."""
    eval_file: Path | None = None
    """File to measure on; the weights that do best on it are kept."""
    columns: ColumnConfig = field(default_factory=ColumnConfig)
    """Which columns are meant."""
    max_seq_length: int | None = None
    """Longer texts are cut (the longer one of a pair first), in tokens; None: at the model's positions. For tagging and
    question_answering they are split into windows of that length that overlap; None, for question_answering: 384."""


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """What to start from."""

    model: str
    """Directory of a pretrained model, or the name of a preset such as bert-mini, which starts from random weights."""
    tokenizer: Path | None = None
    """Tokenizer for a preset, not for a directory; None trains one on the training texts."""
    from_scratch: bool = False
    """Take the shape and the tokenizer of the directory, but random weights: what was pretraining worth?"""
    fresh_head: bool = False
    """Start a new head, where the model has one that was trained for other labels."""
    problem_type: ProblemType | None = None
    """What labels are; None tells it from the file: lists are several classes at once (names, or a 0 or 1 for each
    class), decimal numbers regression but for 0.0, 1.0, ..., which count classes."""
    dropout: float | None = None
    """Dropout of hidden states, attention and head; None keeps the model's."""


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """What is trained, and how fast."""

    per_device_train_batch_size: int = 32
    """Sequences per batch; pairs, in the task "embedding", where the others of the batch are what a pair is told apart
    from (accumulated batches are not)."""
    frozen_layers: int = 0
    """Keep the embeddings and so many of the lowest blocks as they are."""
    layerwise_lr_decay: float = 1.0
    """Factor of the learning rate from each layer to the one below it; the head has the full one."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: classes count alike in the loss, however rare they are."""

    def __post_init__(self) -> None:
        if self.per_device_train_batch_size < 1:
            raise ValueError(f"per_device_train_batch_size must be at least 1, got {self.per_device_train_batch_size}")
        if self.frozen_layers < 0:
            raise ValueError(f"frozen_layers must be at least 0, got {self.frozen_layers}")
        if not 0 < self.layerwise_lr_decay <= 1:
            raise ValueError(f"layerwise_lr_decay must be above 0 and at most 1, got {self.layerwise_lr_decay}")


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringConfig:
    """What is trained and measured where answers are to be found in documents."""

    windows: WindowConfig = field(default_factory=WindowConfig)
    """How long documents are cut."""
    no_answer: Literal["auto", "always", "never"] = "auto"
    """Of question_answering: whether "there is no answer" may be the answer; auto: if the training file has questions
    that their documents do not answer (is_impossible); never: leave such questions out."""
    max_answer_length: int = 30
    """Of question_answering: longest answer that is found in the evaluation, in tokens."""

    def __post_init__(self) -> None:
        if self.max_answer_length < 1:
            raise ValueError(f"max_answer_length must be at least 1, got {self.max_answer_length}")


@dataclass(frozen=True, kw_only=True)
class FinetuningTrainingConfig(TrainingConfig):
    """Settings of training with the defaults of fine-tuning: an evaluation per epoch, the best checkpoint kept."""

    has_usual_metric: ClassVar[bool] = True
    """The main one of its task."""

    learning_rate: float = 5e-5
    """Peak learning rate."""
    eval_steps: int | None = None
    """Steps between two evaluations on the eval_file; None: at the end of each epoch."""
    metric_for_best_model: str | None = None
    """Keep the weights of the best evaluation by this figure, such as accuracy or loss; None: by the task's own."""
    adam_epsilon: float = 1e-8
    """Term added to AdamW's denominator."""
    logging_steps: int = 50
    """Steps between two lines of metrics."""
    save_total_limit: int | None = 1
    """Number of checkpoints to keep beside the best one, the newest; None keeps all."""


@dataclass(frozen=True, kw_only=True)
class FinetuningConfig:
    """A fine-tuning run."""

    task: TaskName = "classification"
    """classification: a class, several of them, or a number for a text or a pair; tagging: a class for each word;
    question_answering: the part of a document that answers a question; embedding: a vector for a text, near those of
    texts that belong to it."""
    examples: ExamplesConfig
    """The labelled examples."""
    start: StartConfig
    """What to start from."""
    tuning: TuningConfig = field(default_factory=TuningConfig)
    """What is trained, and how fast."""
    question_answering: QuestionAnsweringConfig = field(default_factory=QuestionAnsweringConfig)
    """What is trained and measured where answers are to be found in documents."""
    contrastive: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    """What is particular to the task "embedding"."""
    training: FinetuningTrainingConfig
    """Length, optimizer, schedule, checkpoints, reports."""

    def __post_init__(self) -> None:
        training = self.training
        if training.early_stopping_patience is not None and training.save_strategy == "no":
            raise ValueError("early_stopping_patience ends with the best checkpoint, but save_strategy='no' keeps none")
        if self.examples.eval_file is None and training.early_stopping_patience is not None:
            raise ValueError("early_stopping_patience needs held-out examples; give an eval_file")
        if self.examples.eval_file is None and (training.metric_for_best_model or training.eval_strategy != "auto"):
            raise ValueError("metric_for_best_model and eval_strategy need held-out examples; give an eval_file")
