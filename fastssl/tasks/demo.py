"""The demonstration: a BERT pretrained in minutes on text that every Python carries, filling masks before and after."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastssl.data.files import make_directory
from fastssl.data.objectives import ObjectiveConfig
from fastssl.data.python_documentation import python_documentation
from fastssl.tasks.fill_mask import FilledText, FillMask
from fastssl.tasks.pretraining_config import (
    BatchConfig,
    CorpusConfig,
    ModelConfig,
    PretrainingConfig,
    VocabularyConfig,
)
from fastssl.training import TrainingConfig
from fastssl.training.checkpoint import list_checkpoints

SENTENCES = (
    "Return the number of [MASK] in the list.",
    "If the [MASK] does not exist, an exception is raised.",
    "This method returns a new [MASK] object.",
    "The default [MASK] is None.",
    "An instance of this [MASK] is created when the module is imported.",
)
"""Shown before and after; written for the demonstration, in the language of the corpus."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The demonstration's few choices."""

    output_dir: Path = Path("runs/demo")
    """Where the corpus, the run and the trained model go."""
    time_budget_minutes: float = 4.0
    """Minutes of training."""
    max_steps: int | None = None
    """Stop after as many steps, should they come first."""
    num_threads: int | None = None
    """Threads; None keeps PyTorch's choice."""
    seed: int = 42
    """Of everything random."""


def write_corpus(path: Path) -> Path:
    """Write the embedded corpus as a text file, a blank line between documents, and return its path.

    Raises:
        ValueError: Its directory, where the demonstration is to run, is a file, or holds one that has run.
    """
    make_directory(path.parent)
    if list_checkpoints(path.parent):
        raise ValueError(f"{path.parent} holds a demonstration already; delete it, or name another --output-dir")
    path.write_text("\n\n".join(python_documentation()) + "\n", encoding="utf-8")
    return path


def demo_pretraining(config: DemoConfig, corpus: Path) -> PretrainingConfig:
    """Return the run of the demonstration: BERT-tiny, whole-word masking and sentence order, by a time budget.

    Short sequences and larger first weights were chosen by trial, to leave the plateau of word frequencies early.
    """
    return PretrainingConfig(
        corpus=CorpusConfig(train_files=(corpus,), eval_fraction=0.03),
        vocabulary=VocabularyConfig(vocab_size=4096),
        model=ModelConfig(preset="bert-tiny", dropout=0.0, initializer_range=0.1, max_position_embeddings=128),
        objective=ObjectiveConfig(mask_strategy="word", sentence_objective="sop", max_seq_length=32),
        batches=BatchConfig(tokens_per_batch=2048),
        training=TrainingConfig(**training_settings(config), learning_rate=3e-3, warmup_ratio=0.05, adam_beta2=0.98),
    )


def training_settings(config: DemoConfig) -> dict[str, object]:
    """Return the settings of training that pretraining demonstrations share: the user's, and those of a short run."""
    return {
        "output_dir": str(config.output_dir),
        "time_budget_minutes": config.time_budget_minutes,
        "max_steps": config.max_steps,
        "lr_scheduler_type": "time_budget",
        "logging_steps": 50,
        "eval_steps": 500,
        "save_steps": 1000,
        "save_total_limit": 1,
        "num_threads": config.num_threads,
        "seed": config.seed,
    }


def fill_sentences(fill_mask: FillMask, sentences: Sequence[str] = SENTENCES) -> list[FilledText]:
    """Fill the masks of the demonstration's sentences, three candidates each, and leave the model in its mode."""
    was_training = fill_mask.model.training
    filled = fill_mask(sentences, top_k=3)
    fill_mask.model.train(was_training)
    return filled
