"""What is particular to pretraining one architecture, as `pretraining` asks for it."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from torch import nn

from fastssl.data.corpus import TextForm
from fastssl.data.held_out import ShardsView
from fastssl.data.shards import TokenShards
from fastssl.data.tokenizer import Tokenizer
from fastssl.training import BatchSource, ModelCost
from fastssl.training.evaluation import Evaluation

Shards = TokenShards | ShardsView


class PretrainingParts(Protocol):
    """The parts of a run that depend on its architecture; each of them follows from the run's settings."""

    form: TextForm
    """What becomes of the text's white space."""
    extends_vocabulary: bool
    """Whether the tokenizer that is given learns new tokens from the text."""
    figures: tuple[str, ...]
    """What an evaluation measures beside the loss."""

    def published_model(self) -> nn.Module | None:
        """Return the model to go on from, or None where a new one is wanted."""

    def fit(self, model: nn.Module, tokenizer: Tokenizer) -> None:
        """Make a published model, in place, one of a tokenizer."""

    def new_model(self, tokenizer: Tokenizer) -> nn.Module:
        """Return a model with random weights for a tokenizer."""

    def learn_tokenizer(self, given: Path | None, texts: Iterable[str], say: Callable[[str], None]) -> Tokenizer:
        """Train a tokenizer, or extend the given one."""

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise ValueError for a tokenizer that lacks the special tokens of the objective."""

    def hold_out(
        self, shards: TokenShards, fraction: float, *, seed: int, say: Callable[[str], None]
    ) -> tuple[Shards, Shards] | None:
        """Split a corpus into what is trained on and what is measured on; None where it cannot be split."""

    def data(self, shards: Shards, tokenizer: Tokenizer, *, held_out: bool) -> BatchSource:
        """Return the batches of a corpus."""

    def evaluation(self, data: BatchSource, shards: Shards, tokenizer: Tokenizer) -> Evaluation:
        """Return what measures the model on held-out batches."""

    def cost(self, model: nn.Module, data: BatchSource) -> ModelCost:
        """Return the numbers of a model on data, measured on the data's first batch."""

    def next_commands(self, directory: Path, tokenizer: Tokenizer) -> list[list[str]]:
        """Return commands that a user may want to call on the finished model, each as its words."""
