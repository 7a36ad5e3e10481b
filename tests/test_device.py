import pytest
import torch

from fastssl.device import choose_device


@pytest.fixture
def gpus(monkeypatch):
    """Makes PyTorch tell of so many GPUs."""

    def tell(count: int, current: int = 0) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: current)

    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return tell


def test_without_a_gpu_it_is_the_cpu(gpus):
    gpus(0)
    assert choose_device() == choose_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:0"):
        with pytest.raises(ValueError, match=f"device='{name}', but PyTorch .* finds no CUDA GPU here.* choose cpu"):
            choose_device(name)


def test_with_gpus_it_is_one_of_them(gpus, monkeypatch):
    gpus(4, current=2)
    assert choose_device() == choose_device("cuda") == torch.device("cuda:2")
    assert choose_device("cuda:3") == torch.device("cuda:3")
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device() == torch.device("cuda:1") and choose_device("cuda:3") == torch.device("cuda:3")
    with pytest.raises(ValueError, match=r"device='cuda:4', but PyTorch finds 4 GPU\(s\) here"):
        choose_device("cuda:4")


def test_an_unknown_name_is_refused(gpus):
    gpus(0)
    with pytest.raises(ValueError, match="device='gpu' is not known to PyTorch; expected auto, cpu, cuda or cuda:N"):
        choose_device("gpu")
