"""A model and data of a few thousand numbers with the contracts of the real ones."""

import json
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastssl.training import Trainer, TrainingConfig, trainer
from fastssl.training.log import METRICS_FILE, MetricsFile, Sink

VOCABULARY = 23


@dataclass(frozen=True, kw_only=True)
class StandInConfig:
    width: int = 16
    dropout: float = 0.1


@dataclass(frozen=True, kw_only=True)
class StandInBatch:
    tokens: Tensor
    targets: Tensor

    @property
    def num_tokens(self) -> int:
        return self.tokens.numel()

    def target_counts(self) -> dict[str, int]:
        return {"masked_lm": self.targets.numel()}

    def to(self, device) -> "StandInBatch":
        return StandInBatch(tokens=self.tokens.to(device), targets=self.targets.to(device))


class StandInSource:
    """Batches of 3 to 12 tokens; the target is a fixed function of the token, so that it can be learnt."""

    def __init__(self, batches_per_epoch: int = 7, seed: int = 0, poison: tuple[int, int] | None = None):
        self.batches_per_epoch, self.seed, self.poison = batches_per_epoch, seed, poison

    def num_batches(self, epoch: int) -> int:
        return self.batches_per_epoch + epoch % 2 if self.batches_per_epoch else 0

    def batch(self, epoch: int, index: int) -> StandInBatch:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + 1009 * epoch + index)
        length = int(torch.randint(3, 13, (), generator=generator))
        tokens = torch.randint(VOCABULARY, (length,), generator=generator)
        if (epoch, index) == self.poison:
            tokens = torch.full_like(tokens, VOCABULARY)
        return StandInBatch(tokens=tokens, targets=(7 * tokens + 3) % VOCABULARY)


@dataclass
class StandInOutput:
    loss: Tensor
    metrics: dict[str, Tensor]


class StandInModel(nn.Module):
    """Embedding, norm, dropout, linear map. The row after the vocabulary is NaN, for batches that are poisoned."""

    def __init__(self, config: StandInConfig | None = None, seed: int = 0):
        super().__init__()
        self.config = config or StandInConfig()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(VOCABULARY, self.config.width)
        self.norm = nn.LayerNorm(self.config.width)
        self.dropout = nn.Dropout(self.config.dropout)
        self.decoder = nn.Linear(self.config.width, VOCABULARY)

    def forward(self, batch: StandInBatch, *, loss_denominators=None) -> StandInOutput:
        rows = torch.cat([self.embedding.weight, torch.full_like(self.embedding.weight[:1], torch.nan)])
        logits = self.decoder(self.dropout(self.norm(rows[batch.tokens]))).float()
        loss_sum = nn.functional.cross_entropy(logits, batch.targets, reduction="sum")
        count = batch.targets.numel()
        metrics = {
            "masked_lm_loss_sum": loss_sum.detach(),
            "masked_lm_correct": (logits.argmax(-1) == batch.targets).sum(),
            "masked_lm_count": torch.tensor(count),
        }
        return StandInOutput(loss_sum / (loss_denominators or {"masked_lm": count})["masked_lm"], metrics)

    def save_pretrained(self, directory: Path) -> None:
        save_file(self.state_dict(), directory / "model.safetensors")
        (directory / "config.json").write_text(json.dumps(vars(self.config)))

    @classmethod
    def from_pretrained(cls, directory: Path) -> "StandInModel":
        model = cls(StandInConfig(**json.loads((directory / "config.json").read_text())))
        model.load_state_dict(load_file(directory / "model.safetensors"))
        return model


def make_trainer(output_dir, *, model=None, data=None, **settings) -> Trainer:
    settings = {"max_steps": 20, "learning_rate": 1e-2, "num_threads": 1, "save_steps": 1000} | settings
    config = TrainingConfig(output_dir=str(output_dir), **settings)
    return Trainer(model or StandInModel(), config, data or StandInSource(), data_identity={"text": "numbers"})


def weights_of(checkpoint: Path) -> dict[str, Tensor]:
    return load_file(checkpoint / "model.safetensors")


class EndlessModel(StandInModel):
    """Takes a minute over each batch, and leaves a note in a directory when it begins."""

    def __init__(self, directory: Path):
        super().__init__()
        self.directory = directory

    def forward(self, batch: StandInBatch, *, loss_denominators=None) -> StandInOutput:
        (self.directory / "in-a-step").touch()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            time.sleep(0.01)
        return super().forward(batch, loss_denominators=loss_denominators)


def run_in_process(output_dir: str, *, endless: bool = False, file_size_limit: int | None = None, **settings) -> None:
    """Train in a process of one's own, with standard error in a file beside the output directory."""
    # A shell that runs the tests in the background has their processes ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    trainer.default_sinks = metrics_only_sinks
    error = os.open(Path(output_dir).with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(error, 2)
    if file_size_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, file_size_limit))
    model = EndlessModel(Path(output_dir)) if endless else None
    sys.exit(make_trainer(output_dir, model=model, **settings).train().exit_code)


def metrics_only_sinks(directory: Path, start_step: int) -> list[Sink]:
    """Return the one sink that costs nothing."""
    return [MetricsFile(directory / METRICS_FILE, start_step)]
