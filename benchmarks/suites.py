"""The table of contents: which suites there are, and the cases of each."""

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.comparison import Comparison

SUITES = {
    "adamw": "benchmarks.ops.adamw",
    "attention": "benchmarks.ops.attention",
    "layer_norm": "benchmarks.ops.layer_norm",
    "bias_gelu": "benchmarks.ops.bias_gelu",
    "linear_cross_entropy": "benchmarks.ops.linear_cross_entropy",
    "pre_norm_block": "benchmarks.ops.pre_norm_block",
    "quantized_linear": "benchmarks.ops.quantized_linear",
    "skinny_linear": "benchmarks.ops.skinny_linear",
    "cached_attention": "benchmarks.ops.cached_attention",
    "decoder_block": "benchmarks.ops.decoder_block",
    "sentence_embedding": "benchmarks.models.sentence_embedding",
    "pretraining_step": "benchmarks.models.pretraining_step",
    "finetuning_step": "benchmarks.models.finetuning_step",
    "tagging_step": "benchmarks.models.tagging_step",
    "embedding_step": "benchmarks.models.embedding_step",
    "gpt_pretraining_step": "benchmarks.models.gpt_pretraining_step",
    "generation": "benchmarks.models.generation",
    "likelihood_scoring": "benchmarks.models.likelihood_scoring",
    "pretraining_run": "benchmarks.models.pretraining_run",
    "character_run": "benchmarks.models.character_run",
    "threads": "benchmarks.threads",
    "data_loader": "benchmarks.data_loader",
    "import_time": "benchmarks.import_time",
}
"""Suite -> module with a function `cases(run: Run) -> Mapping[str, Callable[[], Comparison]]`."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a suite may know of the run that it is part of."""

    quick: bool = False
    """Whether to keep to the cases that a first look needs."""
    output_dir: Path = Path("build/benchmarks")
    """Where a suite may write results of its own kind, such as curves."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A named comparison that has not been built yet, so that only one is in memory at a time."""

    suite: str
    """A key of `SUITES`."""
    name: str
    """Name of the case in its suite."""
    build: Callable[[], Comparison]
    """Allocates tensors and models."""

    def __str__(self) -> str:
        return f"{self.suite}-{self.name}"


def select(only: Sequence[str], run: Run) -> list[Case]:
    """Return the cases of the suites named in `only` (all of them where it is empty), in the order of `SUITES`.

    Raises:
        ValueError: for a name that is not a suite; the message suggests the nearest.
    """
    for name in only:
        if name not in SUITES:
            near = difflib.get_close_matches(name, SUITES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"--only: no suite is called {name!r}; expected some of {list(SUITES)}{hint}")
    return [
        Case(suite=suite, name=name, build=build)
        for suite in SUITES
        if not only or suite in only
        for name, build in _cases(suite, run).items()
    ]


def _cases(suite: str, run: Run) -> Mapping[str, Callable[[], Comparison]]:
    return importlib.import_module(SUITES[suite]).cases(run)
