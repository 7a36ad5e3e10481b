"""Training: from a model that returns a loss, and batches that are a function of (epoch, index), to checkpoints."""

from fastssl.training.checkpoint import CheckpointError
from fastssl.training.config import TrainingConfig
from fastssl.training.cost import ModelCost, RunCost, estimate_run_cost
from fastssl.training.evaluation import evaluate
from fastssl.training.run_directory import RunDirectoryError
from fastssl.training.source import BatchSource, TrainableModel
from fastssl.training.step import NonFiniteError
from fastssl.training.trainer import Trainer, TrainingResult

__all__ = [
    "BatchSource",
    "CheckpointError",
    "ModelCost",
    "NonFiniteError",
    "RunCost",
    "RunDirectoryError",
    "TrainableModel",
    "Trainer",
    "TrainingConfig",
    "TrainingResult",
    "estimate_run_cost",
    "evaluate",
]
