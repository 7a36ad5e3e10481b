"""Makes the simulated device the one that "auto" means; to be loaded before fastssl."""

import torch

import fastssl.device
from tests.simulated_device import NAME, load

load()
_choose_device = fastssl.device.choose_device


def choose_device(name: str = "auto") -> torch.device:
    return torch.device(NAME, 0) if name == "auto" else _choose_device(name)


fastssl.device.choose_device = choose_device
