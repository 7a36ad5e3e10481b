"""Training, serving and generation on a device that is not the CPU: no tensor is left behind, the host reads nothing.

The tests of these things run once more, with `tests.simulated_device` as the device that models go to by themselves.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "training": ["tests/training/test_trainer.py", "tests/tasks/test_gpt_pretraining.py"],
    "fine-tuning": ["tests/tasks/test_classification.py", "tests/tasks/test_finetuning.py"],
    "serving": ["tests/tasks/test_pipelines.py", "tests/tasks/test_fill_mask.py"],
    "generation": ["tests/tasks/test_generation.py", "tests/tasks/test_in_context.py"],
}  # fmt: skip
NOT_MEANT_FOR_IT = (
    "int8",  # computes on the CPU, and says so
    "bf16",  # PyTorch has no autocast for other people's devices
    "those_of_a_loop",  # gives tensors of the CPU to the model itself
)
STEP = """
import torch
from tests.simulated_device import NAME, load
from tests.training.test_step_on_gpu import training_step

reads = load().host_reads
step = training_step("bert", NAME, torch.float32)
step(), reads()
step()
assert reads() == 0, "the host has read a number inside the step"
"""


@pytest.mark.parametrize("name", FILES)
def test_tests_hold_on_another_device(name: str):
    command = [sys.executable, "-m", "pytest", "-p", "tests.simulated_device.plugin", "-p", "no:cacheprovider", "-q"]
    command += ["-k", " and ".join(f"not {word}" for word in NOT_MEANT_FOR_IT), *FILES[name]]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-4000:]


def test_the_host_reads_nothing_inside_a_step():
    found = subprocess.run([sys.executable, "-c", STEP], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-4000:]
