import pytest
import torch

import fastssl
from fastssl import BertConfig, BertForMaskedLM, Tokenizer
from fastssl.device import choose_device

TEXTS = ["a [MASK] sees a dog", "the old house by the [MASK] is large", "cat [MASK] cat"]


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


def test_a_device_without_numbers_is_none():
    with pytest.raises(ValueError, match="device='meta' computes nothing"):
        choose_device("meta")


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


@pytest.mark.skipif(torch.xpu.is_available(), reason="needs a machine without such a device")
def test_a_device_of_another_kind_must_be_there(gpus):
    gpus(0)
    with pytest.raises(ValueError, match=r"device='xpu', but PyTorch .* finds none here; .* choose cpu"):
        choose_device("xpu")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_answers_on_a_gpu_as_on_the_cpu(tmp_path):
    tokenizer = Tokenizer.train_wordpiece(TEXTS, vocab_size=80, min_frequency=1)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}
    config = BertConfig(vocab_size=tokenizer.vocab_size, intermediate_size=96, **sizes)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    answers = {}
    for device in ("cpu", "auto"):
        pipeline = fastssl.pipeline("fill-mask", tmp_path, device=device)
        assert next(pipeline.model.parameters()).device.type == ("cpu" if device == "cpu" else "cuda")
        answers[device] = [one.masks[0][0] for one in pipeline(TEXTS)]
    for here, there in zip(answers["cpu"], answers["auto"], strict=True):
        assert here.token == there.token and here.probability == pytest.approx(there.probability, abs=1e-3)
