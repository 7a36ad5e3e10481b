"""Our operators with a backend of choice inside models, which call them with "auto"."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

MODEL_OPS = ("attention", "bias_gelu", "layer_norm", "linear_cross_entropy")


@contextmanager
def preferring(backend: str) -> Iterator[None]:
    """Let "auto" try `backend` first, verified or not, in every operator that has it.

    The package offers no such switch on purpose; a comparison of backends needs one.
    """
    kept = []
    for op in MODEL_OPS:
        backends = importlib.import_module(f"fastssl.ops.{op}.api").BACKENDS
        module = backends.get(backend)
        if module is None:
            continue
        kept.append((backends, dict(backends), module, module.SUPPORTS))
        module.SUPPORTS = replace(module.SUPPORTS, unverified_on=(), unverified={}, first_on=("cpu", "cuda"))
        rest = {name: other for name, other in backends.items() if name != backend}
        backends.clear()
        backends.update({backend: module} | rest)
    try:
        yield
    finally:
        for backends, before, module, supports in kept:
            backends.clear()
            backends.update(before)
            module.SUPPORTS = supports
