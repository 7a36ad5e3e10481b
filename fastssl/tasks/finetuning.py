"""Fine-tuning, assembled: labelled examples -> a pretrained body with a small head -> a Hugging Face directory.

A task makes its parts (`TaskParts`): model, batches, what measures. All that is the same for every task is here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from fastssl.data.files import sha256_of_file
from fastssl.device import choose_device
from fastssl.models.cost import flops_per_token, num_parameters, training_memory
from fastssl.tasks.classification.parts import classification_parts
from fastssl.tasks.embedding.parts import embedding_parts
from fastssl.tasks.finetuning_config import FinetuningConfig, TaskName
from fastssl.tasks.question_answering.parts import question_answering_parts
from fastssl.tasks.tagging.parts import tagging_parts
from fastssl.tasks.task_parts import TaskParts
from fastssl.training import ModelCost, Trainer, TrainingResult
from fastssl.training.distributed import World
from fastssl.training.run_directory import check_output_directory
from fastssl.training.state import load_weights

TASKS: dict[TaskName, Callable[[FinetuningConfig, Callable[[str], None]], TaskParts]] = {
    "classification": classification_parts,
    "tagging": tagging_parts,
    "question_answering": question_answering_parts,
    "embedding": embedding_parts,
}
"""Task -> what makes its parts."""


def _say_nothing(_: str) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class FinetuningRun:
    """A run that is ready to start; `prepare_finetuning` makes it."""

    config: FinetuningConfig
    """What was asked for."""
    parts: TaskParts
    """Model and data."""
    is_main: bool
    """Whether this process writes and speaks; of several that train together one does."""

    @cached_property
    def trainer(self) -> Trainer:
        """Trains the model; measures once an epoch unless told otherwise, and keeps the best checkpoint."""
        parts, training = self.parts, self.config.training
        if parts.evaluation is not None:
            chosen_by = training.metric_for_best_model or parts.main_metric
            training = replace(
                training,
                eval_strategy="epoch" if training.eval_steps is None else "steps",
                metric_for_best_model=None if training.save_strategy == "no" else chosen_by,
            )
        return Trainer(
            parts.model,
            training,
            parts.train_data,
            evaluation=parts.evaluation,
            cost=_cost(parts),
            data_identity=_identity(self.config, parts),
            lr_scales=layerwise_lr_scales(parts.model, self.config.tuning.layerwise_lr_decay),
            write_companions=self._save_tokenizer,
        )

    def run(self) -> TrainingResult:
        """Train, and leave the best weights with their tokenizer in the output directory unless a signal came."""
        result = self.trainer.train()
        if result.exit_code == 0 and self.is_main:
            if result.best_checkpoint is not None:
                load_weights(self.parts.model, result.best_checkpoint)
            if self.parts.settle is not None:
                self.parts.settle()
            self.parts.model.save_pretrained(self.config.training.output_dir)
            self._save_tokenizer(Path(self.config.training.output_dir))
        return result

    def _save_tokenizer(self, directory: Path) -> None:
        self.parts.tokenizer.save(directory, model_max_length=self.parts.max_seq_length)


def prepare_finetuning(config: FinetuningConfig, *, say: Callable[[str], None] = _say_nothing) -> FinetuningRun:
    """Read and encode the examples, make the model, and return the run, not yet started.

    Args:
        config: what to do.
        say: takes remarks on the way.

    Raises:
        FileNotFoundError: for a missing file or model.
        ValueError: for settings that do not fit each other, the examples, or the model.
        RunDirectoryError: when the output directory holds checkpoints and the run is not to be resumed.
    """
    check_output_directory(config.training)
    choose_device(config.training.device)  # says at once that there is none
    torch.manual_seed(config.training.seed)
    world = World.join()
    parts = TASKS[config.task](config, say if world.is_main else _say_nothing)
    freeze(parts.model, config.tuning.frozen_layers)
    if world.size == 1 and choose_device(config.training.device).type == "cpu":
        parts.model.use_sparse_word_gradients()
    return FinetuningRun(config=config, parts=parts, is_main=world.is_main)


def freeze(model: nn.Module, num_layers: int) -> None:
    """Take the embeddings and the lowest blocks of a model's body out of training; 0 leaves all in.

    Raises:
        ValueError: for more blocks than there are.
    """
    blocks = model.bert.encoder.blocks
    if num_layers > len(blocks):
        raise ValueError(f"frozen_layers={num_layers}, but the model has {len(blocks)} layers")
    for part in [model.bert.embeddings, *blocks[:num_layers]] if num_layers else []:
        part.requires_grad_(False)


def layerwise_lr_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """Return each parameter's factor of the learning rate: decay^(layers above it), embeddings lowest, heads highest.

    Source: Howard and Ruder 2018 (arXiv 1801.06146) §3.2; with BERT: Sun et al. 2019 (arXiv 1905.05583) §5.3.3.
    """
    if decay == 1.0:
        return {}
    top = len(model.bert.encoder.blocks) + 1

    def depth(name: str) -> int:
        block = re.match(r"bert\.encoder\.blocks\.(\d+)\.", name)
        return int(block[1]) + 1 if block else 0 if name.startswith("bert.embeddings.") else top

    return {name: decay ** (top - depth(name)) for name, _ in model.named_parameters()}


def _cost(parts: TaskParts) -> ModelCost:
    batch, config = parts.train_data.batch(0, 0), parts.model.config
    parameters = num_parameters(parts.model)
    activations = training_memory(config, num_tokens=batch.num_tokens, num_predicted=0).activations
    return ModelCost(
        parameters=parameters,
        flops_per_token=flops_per_token(config, batch.num_tokens / batch.num_sequences, predicted_fraction=0.0),
        memory_bytes=16 * parameters + activations,
    )


def _identity(config: FinetuningConfig, parts: TaskParts) -> dict[str, object]:
    examples = config.examples
    return {
        "task": config.task,
        "train_file": sha256_of_file(examples.train_file),
        "eval_file": examples.eval_file and sha256_of_file(examples.eval_file),
        "columns": asdict(examples.columns),
        "max_seq_length": parts.max_seq_length,
        "tokenizer": parts.tokenizer.fingerprint,
        **asdict(config.start),
        **asdict(config.tuning),
        **({"question_answering": asdict(config.question_answering)} if config.task == "question_answering" else {}),
        **(asdict(config.contrastive) if config.task == "embedding" else {}),
    }
