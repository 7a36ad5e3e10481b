"""Published sizes of BERT and GPT, by name."""

import difflib
from typing import TypeVar

from fastssl.models.bert_config import BertConfig
from fastssl.models.gpt_config import GPTConfig

Config = TypeVar("Config", BertConfig, GPTConfig)


def _bert(layers: int, width: int, vocab_size: int = 30522) -> BertConfig:
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )


def _gpt2(layers: int, width: int, heads: int, positions: int = 1024) -> GPTConfig:
    return GPTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=positions,
    )


PRESETS: dict[str, BertConfig | GPTConfig] = {
    "bert-tiny": _bert(2, 128),
    "bert-mini": _bert(4, 256),
    "bert-small": _bert(4, 512),
    "bert-medium": _bert(8, 512),
    "bert-base": _bert(12, 768),
    "bert-base-uncased": _bert(12, 768),
    "bert-base-cased": _bert(12, 768, 28996),
    "bert-base-chinese": _bert(12, 768, 21128),
    "bert-base-multilingual-cased": _bert(12, 768, 119547),
    "bert-large": _bert(24, 1024),
    "bert-large-uncased": _bert(24, 1024),
    "bert-large-cased": _bert(24, 1024, 28996),
    "gpt2-nano": _gpt2(4, 128, 4, 256),
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
}
"""Name -> config. Sources: Devlin et al. 2018 (1810.04805); tiny to medium: Turc et al. 2019 (1908.08962);
GPT-2: Radford et al. 2019, table 2, with the sizes of the released weights. gpt2-nano is ours."""

PUBLISHED_CHECKPOINTS = frozenset(
    (
        "bert-base-uncased",
        "bert-base-cased",
        "bert-base-chinese",
        "bert-base-multilingual-cased",
        "bert-large-uncased",
        "bert-large-cased",
        "gpt2",
        "gpt2-medium",
        "gpt2-large",
        "gpt2-xl",
    )
)
"""Presets whose names are those of published weights, which a preset does not have."""


def preset(name: str) -> BertConfig | GPTConfig:
    """Return the config of a preset; ValueError with the nearest name for one that does not exist."""
    if name in PRESETS:
        return PRESETS[name]
    nearest = difflib.get_close_matches(name.lower(), PRESETS, n=1, cutoff=0.0)[0]
    raise ValueError(f"there is no preset {name!r}; did you mean {nearest!r}? All presets: {', '.join(PRESETS)}")


def bert_preset(name: str) -> BertConfig:
    """Return the config of a preset that is a BERT; ValueError for any other name."""
    return _preset_of(name, BertConfig, "the preset {name!r} is a GPT, and this needs a BERT")


def gpt_preset(name: str) -> GPTConfig:
    """Return the config of a preset that is a GPT; ValueError for any other name."""
    return _preset_of(name, GPTConfig, "the preset {name!r} is a BERT, and this needs a GPT")


def _preset_of(name: str, kind: type[Config], complaint: str) -> Config:
    config = preset(name)
    if not isinstance(config, kind):
        expected = ", ".join(known for known, one in PRESETS.items() if isinstance(one, kind))
        raise ValueError(f"{complaint.format(name=name)}; expected one of {expected}")
    return config
