"""generation_config.json: where the texts of a published model end, and how its makers mean them to be drawn."""

from dataclasses import dataclass, field
from pathlib import Path

from fastssl.models.pretrained import read_json

GENERATION_FILE = "generation_config.json"
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")
_DOES_NOTHING = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
"""Option -> its value that changes nothing."""


@dataclass(frozen=True, kw_only=True)
class PublishedGeneration:
    """What a generation_config.json says, as far as it means something here."""

    eos_token_ids: tuple[int, ...] = ()
    """Tokens at which a text ends; none: it does not say."""
    bos_token_id: int | None = None
    """Token that an empty prompt begins with; None: it does not say."""
    sampling: dict[str, float] = field(default_factory=dict)
    """Fields of `SamplingConfig` that the model is meant to write with; those that would do nothing are left out."""


def read_published_generation(directory: str | Path) -> PublishedGeneration:
    """Read the generation_config.json of a model directory; one that is not there says nothing.

    Loading a model takes the end tokens; `sampling` is applied by whoever wants it, as in ``model.generate(prompts,
    **read_published_generation(directory).sampling)``, since fastssl takes the likeliest token where nothing is said.
    Lengths, penalties that fastssl does not have, and `pad_token_id`, as nothing is padded, are passed over.

    Raises:
        ValueError: where the file is damaged, or its tokens are no ids.
    """
    path = Path(directory) / GENERATION_FILE
    if not path.is_file():
        return PublishedGeneration()
    values = read_json(path)
    ends, first = values.get("eos_token_id"), values.get("bos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    for name, ids in (("eos_token_id", ends), ("bos_token_id", [first])):
        if not all(one is None or isinstance(one, int) for one in ids):
            raise ValueError(f"{path}: {name} must be a token id, got {values[name]!r}; mend it, or delete the file")
    return PublishedGeneration(
        eos_token_ids=tuple(end for end in ends if end is not None), bos_token_id=first, sampling=_sampling(values)
    )


def _sampling(values: dict) -> dict[str, float]:
    draws = bool(values.get("do_sample"))
    names = ("repetition_penalty", *(_SAMPLING if draws else ()))
    stated = {name: values[name] for name in names if values.get(name) is not None}
    meant = {name: value for name, value in stated.items() if value != _DOES_NOTHING.get(name)}
    # To be drawn, and no word of how, is to be drawn from the model's own probabilities.
    return meant if not draws or meant.keys() & set(_SAMPLING) else {"temperature": 1.0, **meant}
