"""Model directories: weights in and out, for any model that can say how its parameters are spelt in a file."""

import json
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fastssl.data.files import make_directory, write_with_usual_mode, written_whole
from fastssl.nn.init import initialize
from fastssl.nn.quantized import QuantizedLinear

SAFE_FILE, PICKLE_FILE, CONFIG_FILE = "model.safetensors", "pytorch_model.bin", "config.json"
_NAMES_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class FileLayout:
    """How the parameters of one model are spelt in a Hugging Face file.

    "Canonical" names are those of the full model with every head, after `canonical` has removed historic spellings.
    """

    tensors: Mapping[str, tuple[str, ...]]
    """Parameter name -> canonical names of the tensors that stand in it one above the other (one, or three for QKV)."""
    rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Parameter name -> rows of each of its tensors, where they have not all the same number."""
    transposed: frozenset[str] = frozenset()
    """Canonical names of the matrices that files hold the other way round."""
    canonical: Callable[[str], str]
    """Name in a file -> canonical name."""
    heads: tuple[str, ...] = ()
    """Canonical prefixes of parts that a file may lack as a whole; they start fresh, said aloud."""
    anew: tuple[str, ...] = ()
    """Those of them that start fresh whatever the file holds: it has them for other labels, or another task."""
    companions: tuple[str, ...] = ()
    """Patterns of canonical names that are skipped where the model does not have them: buffers, other heads."""
    fallbacks: Mapping[str, str] = field(default_factory=dict)
    """Canonical name -> canonical name of the tensor that serves where the first is not in the file."""
    fallbacks_agree: bool = False
    """Whether the two are tied, so that they must agree where both are in the file."""
    saved_copies: Mapping[str, str] = field(default_factory=dict)
    """Name that is saved too -> canonical name of what is saved under it."""
    saved_zeros: Mapping[str, int] = field(default_factory=dict)
    """Name that is saved too -> how many zeros are saved under it."""
    saved_prefix: str = ""
    """Canonical prefix that this model's own files leave out."""


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What loading did beside copying weights."""

    skipped: tuple[str, ...] = ()
    """Names in the file that the model has no use for."""
    fresh: tuple[str, ...] = ()
    """Parameters that the file did not have, in heads, drawn anew."""


def read_config(directory: str | Path) -> dict:
    """Return the contents of a model directory's config.json.

    Raises:
        FileNotFoundError: where the directory or its config.json is missing.
        ValueError: where it is not a JSON object.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(
            f"{directory} is not a directory; a model is a local directory with config.json and model.safetensors "
            "(fetch a published one with `hf download NAME --local-dir DIR`)"
        )
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; a model directory holds config.json and model.safetensors")
    return read_json(path)


def read_json(path: Path) -> dict:
    """Return the contents of a JSON file of a model directory; ValueError where it is not a JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}; fetch or save the model again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}")
    return values


def load_weights(
    model: nn.Module, directory: str | Path, layout: FileLayout, *, dtype: torch.dtype, fresh_std: float
) -> LoadReport:
    """Fill `model`, built on the meta device, with a directory's weights.

    Args:
        model: its parameters are replaced.
        directory: with model.safetensors, or pytorch_model.bin, or shards of either beside their index.
        layout: how the model's parameters are spelt.
        dtype: of the parameters.
        fresh_std: standard deviation of matrices that start fresh.

    Raises:
        FileNotFoundError: where there are no weights.
        ValueError: for a damaged file (named), and for tensors that are missing, surplus, of the wrong shape, or
            tied by the config but different (each named); and for a `dtype` that is none of floating point.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point torch.dtype, such as torch.bfloat16, got {dtype!r}")
    found = _canonical_tensors(read_tensors(directory), layout, directory)
    _resolve_fallbacks(found, layout, directory)
    lacking = [h for h in layout.heads if not any(name.startswith(h) for name in found)]
    fresh_heads = {*lacking, *layout.anew}
    expected = {
        parameter: names
        for parameter, names in layout.tensors.items()
        if not any(names[0].startswith(head) for head in fresh_heads)
    }
    _check_names(found, expected, layout, directory)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    _check_shapes(found, expected, shapes, layout, directory)
    for name in layout.transposed & found.keys():
        found[name] = found[name].T
    # Concatenation copies: tensors of a pickle may share their memory, which parameters must not.
    state = {parameter: torch.cat([found[n] for n in names]).to(dtype) for parameter, names in expected.items()}
    model.load_state_dict(state, strict=False, assign=True)
    fresh = tuple(name for name in layout.tensors if name not in expected)
    _draw_fresh(model, fresh, dtype, fresh_std)
    used = {name for names in expected.values() for name in names}
    report = LoadReport(skipped=tuple(sorted(set(found) - used)), fresh=fresh)
    if fresh:
        has_none = any(layout.tensors[name][0].startswith(tuple(lacking)) for name in fresh)
        why = "has no weights" if has_none else "has weights of another task or other labels"
        warnings.warn(f"{directory} {why} for {', '.join(fresh)}: they start fresh and want training", stacklevel=4)
    return report


def save_directory(directory: str | Path, config: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
    """Write model.safetensors and config.json, each under a temporary name, synced, and renamed.

    Args:
        directory: made where missing.
        config: contents of config.json.
        tensors: name -> tensor.

    Raises:
        ValueError: where a file stands in the place of the directory.
    """
    directory = Path(directory)
    make_directory(directory)
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    _replace(
        directory / SAFE_FILE, lambda path: safetensors.torch.save_file(contiguous, path, metadata={"format": "pt"})
    )
    save_config(directory, config)


def save_config(directory: str | Path, config: Mapping[str, object]) -> None:
    """Write config.json into a directory, under a temporary name, synced, and renamed."""
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    replace_text(Path(directory) / CONFIG_FILE, text)


def replace_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, synced, and renamed."""
    _replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def file_tensors(model: nn.Module, layout: FileLayout) -> dict[str, Tensor]:
    """Return a model's weights as they are spelt in its file; parts of a fused parameter are views of it.

    Raises:
        ValueError: of a quantised model, whose weights no file has a place for.
    """
    if any(isinstance(part, QuantizedLinear) for part in model.modules()):
        raise ValueError("a quantised model cannot be saved; save the model that it was made of, and quantise it again")
    parameters = dict(model.named_parameters())
    tensors = {}
    for parameter, names in layout.tensors.items():
        parts = parameters[parameter].split(_rows(layout, parameter, names, parameters[parameter].shape))
        tensors.update(zip(names, parts, strict=True))
    tensors.update({name: tensors[name].T for name in layout.transposed})
    tensors.update({name: tensors[source].clone() for name, source in layout.saved_copies.items()})
    dtype = next(model.parameters()).dtype
    tensors.update({name: torch.zeros(count, dtype=dtype) for name, count in layout.saved_zeros.items()})
    return {name.removeprefix(layout.saved_prefix): tensor for name, tensor in tensors.items()}


def read_tensors(directory: str | Path) -> dict[str, Tensor]:
    """Return every tensor of a model directory by its name in the files, safetensors before pickles.

    Pickles are read by `torch.load(weights_only=True)`: no code in them runs.

    Raises:
        FileNotFoundError: where there are none, or a shard is missing.
        ValueError: naming a damaged file.
    """
    directory = Path(directory)
    for file, read in ((SAFE_FILE, _read_safetensors), (PICKLE_FILE, _read_pickle)):
        if (directory / file).is_file():
            return read(directory / file)
        index = directory / f"{file}.index.json"
        if index.is_file():
            return _read_shards(index, read)
    raise FileNotFoundError(f"{directory} holds neither {SAFE_FILE} nor {PICKLE_FILE}, whole or in shards")


def _read_shards(index: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({str(file) for file in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is damaged: no weight_map in it ({error!r}); fetch or save it again") from error
    tensors = {}
    for file in files:
        if not (index.parent / file).is_file():
            raise FileNotFoundError(f"{index.parent / file} is missing, but {index.name} lists tensors in it")
        tensors.update(read(index.parent / file))
    lost = sorted(set(weight_map) - set(tensors))
    if lost:
        raise ValueError(f"{index} lists tensors that its files do not hold: {_listed(lost)}")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); fetch or save it again") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read as plain weights: it is damaged, or holds code, which is never run "
            f"({str(error).splitlines()[0]})"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{path} must hold a mapping of names to tensors; it holds something else")
    return tensors


def _canonical_tensors(tensors: Mapping[str, Tensor], layout: FileLayout, directory: str | Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        canonical = layout.canonical(name)
        if canonical in found:
            raise ValueError(f"{directory}: two tensors spell {canonical}, one of them {name}; keep one")
        found[canonical] = tensor
    return found


def _resolve_fallbacks(found: dict[str, Tensor], layout: FileLayout, directory: str | Path) -> None:
    for name, fallback in layout.fallbacks.items():
        if fallback not in found:
            continue
        if name not in found:
            found[name] = found[fallback]
        elif layout.fallbacks_agree and not torch.equal(found[fallback], found[name]):
            raise ValueError(
                f"{directory}: {fallback} differs from {name}, to which the config ties it; "
                'set "tie_word_embeddings": false in config.json to load both'
            )


def _check_names(
    found: Mapping[str, Tensor],
    expected: Mapping[str, tuple[str, ...]],
    layout: FileLayout,
    directory: str | Path,
) -> None:
    wanted = {name for names in expected.values() for name in names}
    missing = sorted(wanted - set(found))
    surplus = sorted(
        name for name in set(found) - wanted if not any(re.fullmatch(pattern, name) for pattern in layout.companions)
    )
    problems = [
        f"{kind} {_listed(names)}" for kind, names in (("it lacks", missing), ("it has unknown", surplus)) if names
    ]
    if problems:
        raise ValueError(f"the weights in {directory} do not fit its config.json: {'; '.join(problems)}")


def _check_shapes(
    found: Mapping[str, Tensor],
    expected: Mapping[str, tuple[str, ...]],
    shapes: Mapping[str, torch.Size],
    layout: FileLayout,
    directory: str | Path,
) -> None:
    wrong = []
    for parameter, names in expected.items():
        for name, rows in zip(names, _rows(layout, parameter, names, shapes[parameter]), strict=True):
            shape = (rows, *shapes[parameter][1:])
            shape = shape[::-1] if name in layout.transposed else shape
            if found[name].shape != shape:
                wrong.append(f"{name} {tuple(found[name].shape)}, expected {shape}")
    if wrong:
        raise ValueError(f"tensors in {directory} have shapes that do not fit its config.json: {_listed(wrong)}")


def _rows(layout: FileLayout, parameter: str, names: tuple[str, ...], shape: torch.Size) -> tuple[int, ...]:
    """Return how many rows each of a parameter's tensors has."""
    return layout.rows.get(parameter, (shape[0] // len(names),) * len(names))


def _draw_fresh(model: nn.Module, fresh: Iterable[str], dtype: torch.dtype, std: float) -> None:
    # In the order of the parameters, so that one seed of the generator always gives the same weights.
    for owner in dict.fromkeys(name.rpartition(".")[0] for name in fresh):
        module = model.get_submodule(owner)
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="cpu", dtype=dtype)))
        initialize(module, std)


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part."""
    try:
        with written_whole(path) as temporary:
            write_with_usual_mode(temporary, write)
    except SafetensorError as error:  # what the library makes of a full disk
        raise OSError(f"could not write {path}: {error}; what was there before is intact") from error
