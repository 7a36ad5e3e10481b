"""Training, serving and generation on a device that is not the CPU: no tensor is left behind, the host reads nothing.

The tests of these things run once more, with `tests.simulated_device` as the device that models go to by themselves.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = [
    "tests/training/test_trainer.py",
    "tests/training/test_graphs.py",
    "tests/training/test_graphed_update.py",
    "tests/tasks/test_gpt_pretraining.py",
    "tests/tasks/test_finetuning.py::test_learns_and_leaves_a_hugging_face_directory",
    "tests/tasks/test_classification.py",
    "tests/tasks/test_pipelines.py",
    "tests/tasks/test_fill_mask.py",
    "tests/tasks/test_generation.py",
    "tests/tasks/test_in_context.py",
]
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
for name in ("bert", "gpt"):
    step = training_step(name, NAME, torch.float32)
    step(), reads()
    step()
    assert reads() == 0, f"the host has read a number inside the step of {name}"
"""
GRAPH = """
import torch
from tests.simulated_device import NAME, load
from fastssl.training.graphs import BatchShape, _Shape
from tests.training.test_graphs import batch_of

reads = load().host_reads
batches = [batch_of("bert", lengths).to(NAME) for lengths in ((64, 30), (60, 31))]
denominators = {"masked_lm": 14}
filled = _Shape(BatchShape.of(batches[0]), batches[0], denominators)
filled.load(batches[0], denominators), reads()
assert BatchShape.of(batches[1]) == BatchShape.of(batches[0])
filled.load(batches[1], denominators)
assert reads() == 0, "the host has read a number to fill a batch up"
assert filled.batch.cu_seqlens.tolist()[:3] == [0, 60, 91]
"""
PASSES = """
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from tests.simulated_device import NAME, load
from tests.training.test_graphs import Repeated, batch_of
from tests.training.test_step_on_gpu import models
from fastssl.training.graphs import GraphedPasses

load()

class Copies(TorchDispatchMode):
    # Takes down what is copied from the host to the device, which a graph cannot do.
    found = []

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        result = operator(*arguments, **(options or {}))
        if operator in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = arguments[0] if operator is torch.ops.aten._to_copy.default else arguments[1]
            if source.device.type == "cpu" and result.device.type == NAME:
                self.found.append(source.shape)
        return result

class Captured(Repeated):
    def replay(self):
        with Copies():
            return super().replay()

for name in ("bert", "gpt"):
    passes, losses = GraphedPasses(models()[name].to(NAME).train(), torch.float32, Captured), set()
    batch = batch_of(name, (64, 30)).to(NAME)
    for _ in range(4):
        losses.add(float(passes(batch, {"masked_lm": 14, "causal_lm": 92})[0]))
    assert len(losses) == 4, "dropout's mask stays"
assert Captured.made == 2 and not Copies.found, Copies.found
"""
UPDATE = """
import torch
from tests.simulated_device import NAME, load
from tests.training.test_graphed_update import set_gradients, with_optimizer
from tests.training.test_graphs import Repeated
from fastssl.training.graphed_update import GraphedUpdate

reads = load().host_reads
model, optimizer = with_optimizer(NAME)
update = GraphedUpdate(optimizer, 1.0, Repeated)
losses = [torch.ones((), device=NAME)]
for number in range(3):
    set_gradients(model, number)
    reads()
    update(losses, 1e-3)
    assert reads() == 0, f"the host has read a number inside update {number}"
"""


def test_tests_hold_on_another_device():
    command = [sys.executable, "-m", "pytest", "-p", "tests.simulated_device.plugin", "-p", "no:cacheprovider", "-q"]
    command += ["-k", " and ".join(f"not {word}" for word in NOT_MEANT_FOR_IT), *TESTS]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-4000:]


@pytest.mark.parametrize("code", [STEP, GRAPH, PASSES, UPDATE], ids=["step", "filling a batch up", "passes", "update"])
def test_a_step_can_be_sent_off_and_captured(code):
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-4000:]
