"""Fine-tuned models as they are read to be used: weights, tokenizer, and where texts were cut."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TypeVar

from torch import nn

from fastssl.data.tokenizer import Tokenizer
from fastssl.models.pretrained import read_config
from fastssl.tasks.finetuning_config import TaskName
from fastssl.tasks.inference import dtype_of_parameters, ready

Model = TypeVar("Model", bound=nn.Module)


def load_fine_tuned(
    model_class: type[Model], directory: str | Path, task: TaskName, dtype: str, device: str
) -> tuple[Model, Tokenizer]:
    """Return the model and the tokenizer of one directory.

    Args:
        model_class: with `from_pretrained(directory, dtype=...)`.
        directory: of a model that was fine-tuned for the task.
        task: for the error.
        dtype: a key of `DTYPES`: what the model computes in.
        device: where, as `choose_device` takes it.

    Raises:
        FileNotFoundError: where a part is missing.
        ValueError: where the model's head is none for the task, or a part is damaged.
    """
    parameters_in = dtype_of_parameters(dtype)
    read_config(directory)  # says first of all that there is no such directory
    tokenizer = Tokenizer.load(directory)
    with warnings.catch_warnings():
        # The warning of a fresh head says what the error says.
        warnings.simplefilter("ignore", UserWarning)
        model = model_class.from_pretrained(directory, dtype=parameters_in)
    if model.load_report.fresh:
        raise ValueError(
            f"{directory} holds a model that was not fine-tuned for {task} and could only guess at random; "
            f"train it first (fastssl finetune --task {task} --model {directory} --train-file ...)"
        )
    return ready(model, dtype, device), tokenizer


def check_vocabulary(model: nn.Module, tokenizer: Tokenizer) -> None:
    """Raise ValueError where the tokenizer has ids that the model does not."""
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {model.config.vocab_size}; "
            "give the tokenizer that the model was trained with"
        )


def checked_length(wanted: int | None, positions: int) -> int:
    """Return where texts are cut: as wanted, or at the model's positions; ValueError where these do not reach."""
    if wanted is not None and not 4 <= wanted <= positions:
        raise ValueError(f"max_seq_length must be between 4 and the model's {positions} positions, got {wanted}")
    return wanted or positions


def trained_length(directory: str | Path, positions: int) -> int:
    """Return the length at which texts were cut in training, as `finetune` and Hugging Face note it, if they did.

    Args:
        directory: of model and tokenizer.
        positions: of the model: the most it may be, and what it is where nothing is noted.
    """
    path = Path(directory) / "tokenizer_config.json"
    length = json.loads(path.read_text(encoding="utf-8")).get("model_max_length") if path.is_file() else None
    return min(length, positions) if isinstance(length, int) else positions
