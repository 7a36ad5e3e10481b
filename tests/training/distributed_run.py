"""Trains the stand-in under torchrun: `torchrun --nproc-per-node 2 -m tests.training.distributed_run DIR SETTINGS`."""

import json
import sys
from pathlib import Path

from fastssl.training import Trainer, TrainingConfig, trainer
from tests.training.stand_in import StandInConfig, StandInModel, StandInSource, metrics_only_sinks

if __name__ == "__main__":
    trainer.default_sinks = metrics_only_sinks
    config = TrainingConfig(output_dir=str(Path(sys.argv[1])), num_threads=1, **json.loads(sys.argv[2]))
    model = StandInModel(StandInConfig(dropout=0.0))
    sys.exit(Trainer(model, config, StandInSource(), eval_data=StandInSource(seed=1)).train().exit_code)
