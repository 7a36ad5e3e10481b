"""BERT in files: how Hugging Face spells its config and its tensors, and how we read and write them."""

import re
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from fastssl.models.bert_config import BertConfig, default_label_names
from fastssl.models.pretrained import FileLayout, file_tensors, load_weights, read_config, save_config, save_directory

Model = TypeVar("Model", bound=nn.Module)

_OUR_KEY = "fastssl"
"""Key of config.json that holds the options Hugging Face's BERT does not have."""
_OUR_OPTIONS = ("norm_position", "trained_on_pairs", "no_answer_threshold")
_MODEL_TYPE, _OUR_MODEL_TYPE = "bert", "fastssl_bert"
"""The second is written where Hugging Face's BERT would compute other numbers, so that it refuses to load them."""
_UNSUPPORTED = {
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "position_embedding_type": ("absolute", None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}
"""Option -> the values under which our numbers are Hugging Face's."""

_PARTS = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "encoder.final_norm": "encoder.LayerNorm",
    "pooler.dense": "pooler.dense",
    "masked_lm_head": "cls.predictions",
    "masked_lm_head.dense": "cls.predictions.transform.dense",
    "masked_lm_head.norm": "cls.predictions.transform.LayerNorm",
    "masked_lm_head.decoder": "cls.predictions.decoder",
    "sentence_head": "cls.seq_relationship",
    "classifier": "classifier",
    "qa_outputs": "qa_outputs",
}
_BLOCK_PARTS = {
    "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "mlp.up": ("intermediate.dense",),
    "mlp.down": ("output.dense",),
    "mlp_norm": ("output.LayerNorm",),
}
"""Our module -> theirs."""
_WORD_EMBEDDING, _DECODER_WEIGHT = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
_ANSWER_WEIGHT, _ANSWER_BIAS = "qa_outputs.weight", "qa_outputs.bias"
_BIAS, _DECODER_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"


def load(
    model_class: type[Model],
    directory: str | Path,
    dtype: torch.dtype = torch.float32,
    *,
    config: BertConfig | None = None,
    anew: tuple[str, ...] = (),
) -> Model:
    """Return a model of `model_class` with the weights of a Hugging Face directory.

    Weights come from model.safetensors or pytorch_model.bin, whole or in shards; tensor names with or without the
    ``bert.`` prefix, ``gamma`` and ``beta`` for the norms. Position-id buffers, tied copies and heads that the class
    does not have are skipped; a head that the file does not have starts fresh, with a warning. Both are listed in the
    model's `load_report`. As in Hugging Face, the model comes in eval mode.

    Args:
        model_class: one of our classes, such as `BertModel` or `BertForSequenceClassification`.
        directory: holds config.json and the weights.
        dtype: of the parameters, whatever the file's.
        config: instead of the directory's, such as one with other labels.
        anew: heads, by the prefix of their names in the file, that start fresh even where the file has them.

    Raises:
        FileNotFoundError: where the directory, its config or its weights are missing.
        ValueError: for another kind of model, an option that would change the numbers, a damaged file, and tensors
            that are missing, surplus or of the wrong shape (each named).
    """
    config = config or load_config(directory)
    with torch.device("meta"):
        model = model_class(config)
    layout = replace(file_layout(model), anew=anew)
    model.load_report = load_weights(model, directory, layout, dtype=dtype, fresh_std=config.initializer_range)
    return model.eval()


def load_config(directory: str | Path) -> BertConfig:
    """Return the config of a Hugging Face directory; errors as in `load`."""
    return config_from_dict(read_config(directory), source=str(directory))


def save(model: nn.Module, directory: str | Path) -> None:
    """Write config.json and model.safetensors as `transformers` writes them, each file atomically.

    A pre-norm model, which `transformers` does not know, is written under a model type of our own.
    """
    layout = file_layout(model)
    config = config_to_dict(model.config)
    config["architectures"] = [type(model).__name__]
    config["torch_dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
    save_directory(directory, config, file_tensors(model, layout))


def note_no_answer_threshold(directory: str | Path, threshold: float) -> None:
    """Write `BertConfig.no_answer_threshold` into the config.json of a directory, and leave all else in it."""
    values = read_config(directory)
    values[_OUR_KEY] = (values.get(_OUR_KEY) or {}) | {"no_answer_threshold": threshold}
    save_config(directory, values)


def config_to_dict(config: BertConfig) -> dict:
    """Return a config as config.json spells it."""
    values = asdict(config)
    ours = {name: value for name in _OUR_OPTIONS if (value := values.pop(name)) is not None}
    if (labels := values.pop("labels")) is not None:
        values["id2label"] = dict(enumerate(labels))
        values["label2id"] = {name: number for number, name in enumerate(labels)}
    values["model_type"] = _MODEL_TYPE if ours["norm_position"] == "post" else _OUR_MODEL_TYPE
    return {**values, "position_embedding_type": "absolute", _OUR_KEY: ours}


def config_from_dict(values: dict, *, source: str) -> BertConfig:
    """Return the config that a config.json spells; keys that mean nothing to a BERT encoder are passed over.

    Args:
        values: contents of the file.
        source: where they came from, for errors.

    Raises:
        ValueError: for another model type, or an option that would change the numbers.
    """
    model_type = values.get("model_type", _MODEL_TYPE)
    if model_type not in (_MODEL_TYPE, _OUR_MODEL_TYPE):
        raise ValueError(f"{source} holds a model of type {model_type!r}, expected 'bert'")
    for option, allowed in _UNSUPPORTED.items():
        if values.get(option) not in allowed:
            raise ValueError(
                f"{source}: config.json sets {option}={values[option]!r}, which this BERT does not compute; "
                f"expected {allowed[0]!r}"
            )
    known = {field.name for field in fields(BertConfig)} - {*_OUR_OPTIONS, "labels"}
    chosen = {name: value for name, value in values.items() if name in known}
    ours = values.get(_OUR_KEY) or {}
    if not isinstance(ours, dict):
        raise ValueError(f"{source}: config.json has {_OUR_KEY}={ours!r}, expected an object of options")
    ours = {name: value for name, value in ours.items() if name in _OUR_OPTIONS}
    try:
        return BertConfig(**chosen, **ours, labels=_labels(values))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source}: config.json does not describe a BERT that we know: {error}") from error


def file_layout(model: nn.Module) -> FileLayout:
    """Return how the parameters of a BERT, of any of our classes, are spelt in its file."""
    bare = not hasattr(model, "bert")
    tied = model.config.tie_word_embeddings
    tensors = {name: _file_names(f"bert.{name}" if bare else name) for name, _ in model.named_parameters()}
    has_head = "masked_lm_head.bias" in tensors
    if has_head and not tied:
        # Hugging Face then scores with the decoder's own bias, and keeps another that it does not use.
        tensors["masked_lm_head.bias"] = (_DECODER_BIAS,)
        fallbacks, saved_copies = {_DECODER_BIAS: _BIAS}, {_BIAS: _DECODER_BIAS}
    else:
        fallbacks, saved_copies = {_BIAS: _DECODER_BIAS, _WORD_EMBEDDING: _DECODER_WEIGHT}, {}
    return FileLayout(
        tensors=tensors,
        canonical=_canonical,
        heads=("bert.pooler.", "cls.predictions.", "cls.seq_relationship.", "classifier.", "qa_outputs."),
        companions=(
            r"bert\.embeddings\.(position_ids|token_type_ids)",
            r"bert\.pooler\..*",
            r"cls\..*",
            r"(classifier|qa_outputs)\..*",
        ),
        fallbacks=fallbacks,
        fallbacks_agree=has_head and tied,
        saved_copies=saved_copies,
        # Softmax does not see a bias, so ours has none; Hugging Face's has one, which training leaves where it was.
        saved_zeros={_ANSWER_BIAS: 2} if _ANSWER_WEIGHT in tensors else {},
        saved_prefix="bert." if bare else "",
    )


def _labels(values: dict) -> tuple[str, ...] | None:
    """Return the names of the classes; Hugging Face leaves them out where they are the two default ones."""
    names = values.get("id2label")
    if names:
        if not isinstance(names, dict):
            raise ValueError(f"id2label must be an object of numbers and names, got {names!r}")
        by_number = {int(number): str(name) for number, name in names.items()}
        if sorted(by_number) != list(range(len(by_number))):
            raise ValueError(f"id2label must number the labels 0, 1, 2, ..., got {sorted(by_number)}")
        return tuple(by_number[number] for number in range(len(by_number)))
    return default_label_names(values["num_labels"]) if "num_labels" in values else None


def _file_names(parameter: str) -> tuple[str, ...]:
    """Return the canonical names of a parameter of the full model, ``bert.`` prefix included."""
    module, _, kind = parameter.rpartition(".")
    block = re.fullmatch(r"bert\.encoder\.blocks\.(\d+)\.(.*)", module)
    if block:
        return tuple(f"bert.encoder.layer.{block[1]}.{part}.{kind}" for part in _BLOCK_PARTS[block[2]])
    if module.startswith("bert."):
        return (f"bert.{_PARTS[module.removeprefix('bert.')]}.{kind}",)
    return (f"{_PARTS[module]}.{kind}",)


def _canonical(name: str) -> str:
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    return f"bert.{name}" if re.match(r"(embeddings|encoder|pooler)\.", name) else name
