"""Which backend the operators inside a model use, per model; "auto" unless told otherwise."""

from torch import nn


def set_backend(module: nn.Module, backend: str) -> None:
    """Make every operator inside `module` use `backend`: for tests, and for comparisons of backends.

    Args:
        module: changed in place.
        backend: "auto", or a backend's name; whether it can serve the calls shows when they are made.
    """
    for part in module.modules():
        if hasattr(part, "backend"):
            part.backend = backend
