"""On which device a model computes."""

import torch
from torch import distributed


def choose_device(name: str = "auto") -> torch.device:
    """Return a device by its name.

    Args:
        name: "auto": a CUDA GPU where PyTorch finds one, else the CPU; or "cpu", "cuda", "cuda:1", or what else PyTorch
            calls its devices. "auto" and "cuda" mean this process's own GPU under torchrun, and otherwise PyTorch's
            current one.

    Raises:
        ValueError: for a name that PyTorch does not know, or a device that is not there.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device={name!r} is not known to PyTorch; expected auto, cpu, cuda or cuda:N") from error
    if device.type == "meta":
        raise ValueError(
            "device='meta' computes nothing: its tensors have no numbers; expected auto, cpu, cuda or cuda:N"
        )
    if device.type != "cuda":
        _expect_to_be_there(device)
        return device
    if gpus == 0:
        raise ValueError(
            f"device={name!r}, but PyTorch {torch.__version__} finds no CUDA GPU here; leave the device out, or "
            "choose cpu"
        )
    index = device.index
    if index is None:
        index = torch.cuda.current_device()
        if distributed.is_available():
            index = distributed.get_node_local_rank(fallback_rank=index)
    if index >= gpus:
        raise ValueError(f"device='cuda:{index}', but PyTorch finds {gpus} GPU(s) here, numbered from 0")
    return torch.device("cuda", index)


def _expect_to_be_there(device: torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # what PyTorch makes of a device that it was not built for
        raise ValueError(
            f"device={str(device)!r}, but PyTorch {torch.__version__} finds none here; leave the device out, or "
            "choose cpu"
        ) from error
