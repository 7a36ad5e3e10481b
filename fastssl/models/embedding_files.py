"""How a directory says that sentences are embedded: as sentence-transformers spells it, or a plain BERT directory."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastssl.data.files import make_directory
from fastssl.models.pretrained import read_config, replace_text
from fastssl.nn.pooling import POOLINGS

_LEGACY_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""One switch each, in the order in which several are concatenated."""
_UNBOUNDED = 10**9
"""Hugging Face writes 10^30 where a tokenizer knows no limit."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """How token vectors become the vector of a sentence."""

    pooling: tuple[str, ...] = ("mean",)
    """Keys of `POOLINGS`; the results of several stand side by side."""
    normalize: bool = False
    """Whether the vector is divided by its length."""
    max_length: int = 512
    """Tokens of a text that are read, [CLS] and [SEP] included."""
    lowercase: bool = False
    """Whether text is put into lower case before the tokenizer sees it."""
    prompt: str = ""
    """What is put in front of every text."""
    truncate_dim: int | None = None
    """How many numbers of the vector are kept, the first ones, once it is pooled and normalised; None keeps all."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.pooling if name not in POOLINGS]
        if unknown or not self.pooling:
            found = ", ".join(map(repr, unknown)) or "none"
            raise ValueError(f"pooling must be some of {', '.join(POOLINGS)}, got {found}")
        if self.max_length < 3:
            raise ValueError(f"max_length must be at least 3 ([CLS], a token, [SEP]), got {self.max_length}")
        if self.truncate_dim is not None and not (isinstance(self.truncate_dim, int) and self.truncate_dim >= 1):
            raise ValueError(f"truncate_dim must be a whole number of at least 1, got {self.truncate_dim!r}")

    def width(self, hidden_size: int) -> int:
        """Return how many numbers the vector of a sentence has, of a model whose token vectors have `hidden_size`."""
        pooled = len(self.pooling) * hidden_size
        return pooled if self.truncate_dim is None else min(pooled, self.truncate_dim)

    def prepared(self, text: str) -> str:
        """Return a text as the tokenizer is to see it."""
        return self.prompt + (text.lower() if self.lowercase else text)


def read_embedding_config(directory: str | Path) -> tuple[Path, EmbeddingConfig]:
    """Return where the model lies, and how it embeds.

    A directory with modules.json is one of sentence-transformers: a transformer, a pooling, perhaps a normalisation.
    Any other is a model directory; like sentence-transformers, its token vectors are averaged and not normalised.

    Raises:
        FileNotFoundError: where a file is missing.
        ValueError: for a damaged file, a module that is not one of the three, a pooling that is not in `POOLINGS` or
            leaves the prompt out, or a `truncate_dim` that is no number of columns.
    """
    directory = Path(directory)
    modules = directory / "modules.json"
    if not modules.is_file():
        return directory, EmbeddingConfig(max_length=_max_length(directory, {}))
    found = _modules(modules)
    model_directory = directory / found["Transformer"]
    transformer = _read_optional(model_directory / "sentence_bert_config.json")
    pooling = _read(directory / found["Pooling"] / "config.json")
    whole = _read_optional(directory / "config_sentence_transformers.json")
    config = EmbeddingConfig(
        pooling=_pooling(pooling, directory),
        normalize="Normalize" in found,
        max_length=_max_length(model_directory, transformer),
        lowercase=bool(transformer.get("do_lower_case")),
        prompt=_prompt(whole, directory),
        truncate_dim=whole.get("truncate_dim"),
    )
    if config.prompt and pooling.get("include_prompt") is False:
        raise ValueError(
            f"{directory} reads the prompt {config.prompt!r} in front of each text and leaves its tokens out of the "
            "pooling (include_prompt: false), which is not supported; use sentence-transformers for this model"
        )
    return model_directory, config


def write_embedding_config(directory: str | Path, config: EmbeddingConfig, *, hidden_size: int) -> None:
    """Write the files, beside those of a model, that make its directory one of sentence-transformers.

    They are spelt as its second version did, which all later ones read.

    Args:
        directory: of the model, made where missing.
        config: what they are to say.
        hidden_size: width of the token vectors.
    """
    directory, kinds = Path(directory), ["Transformer", "Pooling", *(["Normalize"] if config.normalize else [])]
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": paths[kind], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    in_order = [name for name in _LEGACY_POOLINGS.values() if name in config.pooling]
    if in_order == list(config.pooling):
        pooling: dict[str, object] = {key: name in in_order for key, name in _LEGACY_POOLINGS.items()}
    else:
        # Switches know one order alone; another needs the later spelling.
        pooling = {"pooling_mode": config.pooling}
    prompts = {"prompts": {"default": config.prompt}, "default_prompt_name": "default"} if config.prompt else {}
    truncation = {} if config.truncate_dim is None else {"truncate_dim": config.truncate_dim}
    make_directory(directory / paths["Pooling"])
    for name, content in (
        ("sentence_bert_config.json", {"max_seq_length": config.max_length, "do_lower_case": config.lowercase}),
        ("config_sentence_transformers.json", {"similarity_fn_name": "cosine", **prompts, **truncation}),
        ("1_Pooling/config.json", {"word_embedding_dimension": hidden_size, **pooling}),
        ("modules.json", modules),
    ):
        replace_text(directory / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _modules(path: Path) -> dict[str, str]:
    """Return the folder of each module by the last part of its class's name."""
    listed = _read(path, list)
    try:
        found = {str(module["type"]).rsplit(".", 1)[-1]: module["path"] for module in listed}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: expected a type and a path for each module; fetch it again") from error
    names = list(found)
    if names[:2] != ["Transformer", "Pooling"] or names[2:] not in ([], ["Normalize"]) or len(listed) != len(found):
        raise ValueError(
            f"{path} describes {' -> '.join(names) or 'nothing'}; expected Transformer -> Pooling, and perhaps "
            "Normalize behind them: other modules are not supported"
        )
    return found


def _pooling(values: Mapping[str, object], directory: Path) -> tuple[str, ...]:
    named = values.get("pooling_mode")
    if named is None:
        named = [name for key, name in _LEGACY_POOLINGS.items() if values.get(key)] or ["mean"]
    chosen = (named,) if isinstance(named, str) else tuple(named)
    if not set(chosen) <= set(POOLINGS):
        raise ValueError(f"{directory} pools by {', '.join(chosen)}; expected some of {', '.join(POOLINGS)}")
    return chosen


def _max_length(directory: Path, transformer: Mapping[str, object]) -> int:
    limits = [
        read_config(directory).get("max_position_embeddings"),
        transformer.get("max_seq_length")
        or _read_optional(directory / "tokenizer_config.json").get("model_max_length"),
    ]
    return min([int(limit) for limit in limits if limit is not None and limit < _UNBOUNDED], default=512)


def _prompt(values: Mapping[str, object], directory: Path) -> str:
    name, prompts = values.get("default_prompt_name"), values.get("prompts") or {}
    if name is None:
        return ""
    if name not in prompts:
        raise ValueError(f"{directory} names {name!r} as its default prompt, but has only {', '.join(prompts)}")
    return prompts[name]


def _read_optional(path: Path) -> dict:
    return _read(path) if path.is_file() else {}


def _read(path: Path, kind: type = dict):
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, though modules.json names it; fetch the model again")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}; fetch the model again") from error
    if not isinstance(values, kind):
        raise ValueError(f"{path} is damaged: expected a JSON {'list' if kind is list else 'object'}; fetch it again")
    return values
