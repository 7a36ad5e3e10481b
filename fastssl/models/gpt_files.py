"""GPT in files: reading and writing Hugging Face's directories of GPT-2, Llama, Mistral and Qwen2.

Which of the four (`gpt_families.py`) a config is shows in its options. One that is none of them is written under a
model type of our own, with our own names, so that `transformers` refuses it instead of computing other numbers.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from fastssl.models.generation.published import read_published_generation
from fastssl.models.gpt_config import GPTConfig
from fastssl.models.gpt_families import FAMILIES, Family
from fastssl.models.pretrained import FileLayout, file_tensors, load_weights, read_config, save_directory
from fastssl.nn.rotary import RotaryScaling

Model = TypeVar("Model", bound=nn.Module)

_OUR_KEY = "fastssl"
"""Key of config.json that holds the options Hugging Face's model does not have."""
_DROPOUTS = ("embedding_dropout_prob", "hidden_dropout_prob", "attention_probs_dropout_prob")
_FOLLOWING = ("qkv_bias", "mlp_bias")
"""Fields that follow `bias` where they are not given, and are left out where they do."""
_SHARED = ("vocab_size", "tie_word_embeddings", "initializer_range", "bos_token_id", "eos_token_id")
OUR_MODEL_TYPE = "fastssl_gpt"


def load(model_class: type[Model], directory: str | Path, dtype: torch.dtype = torch.float32) -> Model:
    """Return a model of `model_class` with the weights of a Hugging Face directory, in eval mode.

    Weights come from model.safetensors or pytorch_model.bin, whole or in shards, with or without the body's prefix.
    The end tokens of a generation_config.json are taken, and nothing else of it; see `load_config`.
    Mask and rotary buffers, tied copies and a head that the class does not have are skipped; an untied head that the
    file does not have starts fresh, with a warning. Both are listed in the model's `load_report`.

    Args:
        model_class: `GPTModel` or `GPTForCausalLM`.
        directory: holds config.json and the weights.
        dtype: of the parameters, whatever the file's.

    Raises:
        FileNotFoundError: where the directory, its config or its weights are missing.
        ValueError: for another kind of model, an option that would change the numbers, a damaged file, and tensors
            that are missing, surplus or of the wrong shape (each named).
    """
    config = load_config(directory)
    with torch.device("meta"):
        model = model_class(config)
    layout = file_layout(model)
    model.load_report = load_weights(model, directory, layout, dtype=dtype, fresh_std=config.initializer_range)
    return model.eval()


def load_config(directory: str | Path) -> GPTConfig:
    """Return the config of a Hugging Face directory; errors as in `load`.

    Texts end where its generation_config.json says, if it does, as in `transformers`, and else where config.json says;
    an id beyond the vocabulary, which no text can hold, ends none. The first token is that of config.json, or else
    that of generation_config.json.
    """
    config = config_from_dict(read_config(directory), source=str(directory))
    published = read_published_generation(directory)
    ends = _known(published.eos_token_ids, config.vocab_size)
    if config.bos_token_id is None:
        config = replace(config, bos_token_id=_known(published.bos_token_id, config.vocab_size))
    return config if ends is None else replace(config, eos_token_id=ends)


def save(model: nn.Module, directory: str | Path) -> None:
    """Write config.json and model.safetensors as `transformers` writes them, each file atomically."""
    config = config_to_dict(model.config)
    family = FAMILIES.get(config["model_type"])
    name = type(model).__name__
    config["architectures"] = [name if family is None else family.classes[name]]
    config["torch_dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
    save_directory(directory, config, file_tensors(model, file_layout(model)))


def model_type(config: GPTConfig) -> str:
    """Return Hugging Face's name for a config, or our own where they have no such model."""
    values = asdict(config) | {"qkv_bias": config.has_qkv_bias, "mlp_bias": config.has_mlp_bias}
    if config.position_embedding == "learned":
        plain = config.sliding_window is None and config.key_value_heads == config.num_attention_heads
        candidates = ("gpt2",) if plain and config.head_width * config.num_attention_heads == config.hidden_size else ()
    elif config.sliding_window is not None:
        candidates = ("mistral",)
    else:
        candidates = ("llama", "qwen2") if config.has_qkv_bias == config.bias else ("qwen2",)
    fitting = (n for n in candidates if all(values[k] == v for k, v in FAMILIES[n].fixed.items()))
    return next(fitting, OUR_MODEL_TYPE)


def config_to_dict(config: GPTConfig) -> dict:
    """Return a config as config.json spells it."""
    name, values = model_type(config), asdict(config)
    family = FAMILIES.get(name)
    if family is None:
        return {"model_type": name, **values}
    values["mlp_bias"] = config.has_mlp_bias
    spelt = {theirs: values[ours] for ours, theirs in family.options.items()}
    spelt |= {shared: values[shared] for shared in _SHARED}
    if name != "gpt2":
        spelt |= {
            "intermediate_size": config.mlp_width,
            "num_key_value_heads": config.key_value_heads,
            "rope_theta": config.rope_theta,
            "rope_parameters": {"rope_theta": config.rope_theta, **_spelt_scaling(config.rope_scaling)},
        }
        if config.head_dim is None:
            del spelt["head_dim"]
    ours = {dropout: values[dropout] for dropout in _DROPOUTS if dropout not in family.options}
    return {"model_type": name, **spelt, _OUR_KEY: ours}


def config_from_dict(values: dict, *, source: str) -> GPTConfig:
    """Return the config that a config.json spells; keys that mean nothing to a GPT are passed over.

    Args:
        values: contents of the file.
        source: where they came from, for errors.

    Raises:
        ValueError: for another model type, or an option that would change the numbers.
    """
    name = values.get("model_type")
    known = {field.name for field in fields(GPTConfig)}
    if name == OUR_MODEL_TYPE:
        return _made({key: value for key, value in values.items() if key in known}, source)
    if name not in FAMILIES:
        raise ValueError(f"{source} holds a model of type {name!r}, expected one of {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    for option, allowed in family.unsupported.items():
        if values.get(option) not in allowed:
            raise ValueError(
                f"{source}: config.json sets {option}={values[option]!r}, which this GPT does not compute; "
                f"expected {allowed[0]!r}"
            )
    spelt = {**family.defaults, **values}
    chosen = {ours: spelt[theirs] for ours, theirs in family.options.items() if theirs in spelt}
    chosen |= {shared: spelt[shared] for shared in _SHARED if shared in spelt}
    chosen |= family.fixed
    for option in _FOLLOWING:
        if chosen.get(option) == chosen["bias"]:
            del chosen[option]
    if name != "gpt2":
        chosen |= {**_rotary_options(values, source), **dict.fromkeys(_DROPOUTS[:2], 0.0)}
    ours = values.get(_OUR_KEY) or {}
    if not isinstance(ours, dict):
        raise ValueError(f"{source}: config.json has {_OUR_KEY}={ours!r}, expected an object of options")
    chosen |= {key: value for key, value in ours.items() if key in _DROPOUTS}
    for token in ("bos_token_id", "eos_token_id"):
        chosen[token] = _known(chosen.get(token, getattr(GPTConfig, token)), chosen.get("vocab_size"))
    return _made(chosen, source)


def file_layout(model: nn.Module) -> FileLayout:
    """Return how the parameters of a GPT are spelt in its file."""
    config, bare = model.config, not hasattr(model, "gpt")
    family = FAMILIES.get(model_type(config))
    parameters = [name if not bare else f"gpt.{name}" for name, _ in model.named_parameters()]
    spell = _our_names if family is None else _their_names(family)
    tensors = {name: spell(full) for (name, _), full in zip(model.named_parameters(), parameters, strict=True)}
    body = "gpt." if family is None else family.body
    head = "head.weight" if family is None else "lm_head.weight"
    word = spell("gpt.word.weight")[0]
    qkv_rows = [heads * config.head_width for heads in (config.num_attention_heads, *2 * (config.key_value_heads,))]
    split = {name: tuple(qkv_rows) for name, names in tensors.items() if ".attention.qkv." in name and len(names) > 1}
    return FileLayout(
        tensors=tensors,
        rows=split,
        transposed=_transposed(family, tensors),
        canonical=_canonical_by(body, family),
        heads=() if bare or config.tie_word_embeddings else (head,),
        companions=(re.escape(head), *(() if family is None else (family.buffers,))),
        fallbacks={word: head} if config.tie_word_embeddings else {},
        fallbacks_agree=not bare and config.tie_word_embeddings,
        saved_prefix=body if bare else "",
    )


def _known(ids: object, vocab_size: object) -> object:
    """Return an id, or several, without those beyond the vocabulary: None where none is left.

    Configs that were never told of a smaller vocabulary name GPT-2's token 50256, which no text of theirs can hold.
    """
    several = ids if isinstance(ids, list | tuple) else [ids]
    known = tuple(
        i
        for i in several
        if i is not None and not (isinstance(i, int) and isinstance(vocab_size, int) and i >= vocab_size)
    )
    return known if len(known) > 1 else known[0] if known else None


def _made(values: dict, source: str) -> GPTConfig:
    if isinstance(values.get("eos_token_id"), list):  # of a directory of our own type
        values["eos_token_id"] = tuple(values["eos_token_id"])
    if isinstance(values.get("rope_scaling"), dict):
        values["rope_scaling"] = RotaryScaling(**values["rope_scaling"])
    try:
        return GPTConfig(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source}: config.json does not describe a GPT that we know: {error}") from error


def _rotary_options(values: dict, source: str) -> dict[str, object]:
    """Return base and scaling of the wavelengths, which older and newer files keep in different places."""
    found = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(found, dict):
        raise ValueError(f"{source}: config.json must hold rope_parameters by name, got {found!r}; fetch it again")
    theta = found.get("rope_theta", values.get("rope_theta", 10000.0))
    kind = found.get("rope_type", found.get("type", "default"))
    if kind == "default":
        return {"rope_theta": theta}
    if kind not in ("linear", "llama3"):
        raise ValueError(
            f"{source}: config.json scales rotary positions by {kind!r}, which this GPT does not compute; "
            "expected 'default', 'linear' or 'llama3'"
        )
    names = {field.name for field in fields(RotaryScaling)}
    try:
        scaling = RotaryScaling(kind=kind, **{key: value for key, value in found.items() if key in names})
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{source}: config.json scales rotary positions in a way that we do not know: {error}"
        ) from error
    return {"rope_theta": theta, "rope_scaling": scaling}


def _spelt_scaling(scaling: RotaryScaling | None) -> dict[str, object]:
    if scaling is None:
        return {"rope_type": "default"}
    values = asdict(scaling)
    kind = values.pop("kind")
    return {"rope_type": kind, **(values if kind == "llama3" else {"factor": scaling.factor})}


def _our_names(parameter: str) -> tuple[str, ...]:
    return (parameter,)


def _their_names(family: Family) -> Callable[[str], tuple[str, ...]]:
    def spell(parameter: str) -> tuple[str, ...]:
        module, _, kind = parameter.rpartition(".")
        if module == "head":
            return (f"lm_head.{kind}",)
        block = re.fullmatch(r"gpt\.blocks\.(\d+)\.(.*)", module)
        if block:
            place = f"{family.body}{family.blocks}.{block[1]}"
            return tuple(f"{place}.{part}.{kind}" for part in family.block_parts[block[2]])
        return (f"{family.body}{family.parts[module.removeprefix('gpt.')]}.{kind}",)

    return spell


def _canonical_by(body: str, family: Family | None) -> Callable[[str], str]:
    """Return what adds the body's prefix where a file of the bare model leaves it out."""
    tops = ("word", "position", "final_norm", "blocks") if family is None else (*family.parts.values(), family.blocks)
    bare = re.compile(rf"({'|'.join(tops)})\.")
    return lambda name: f"{body}{name}" if bare.match(name) else name


def _transposed(family: Family | None, tensors: Mapping[str, tuple[str, ...]]) -> frozenset[str]:
    if family is None:
        return frozenset()
    endings = tuple(f".{module}.weight" for module in family.transposed)
    return frozenset(name for names in tensors.values() for name in names if endings and name.endswith(endings))
