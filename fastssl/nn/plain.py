"""Whether a module may be passed by, and its parameters be used in its place."""

from torch import nn
from torch.nn.modules import module as _module

_EVERY_MODULES_HOOKS = (
    _module._global_forward_hooks,
    _module._global_forward_pre_hooks,
    _module._global_backward_hooks,
    _module._global_backward_pre_hooks,
)
"""PyTorch's own dictionaries of hooks that stand for all modules."""


def is_plain(module: nn.Module, *classes: type[nn.Module]) -> bool:
    """Return whether a module is of one of these classes, no subclass, and does what the class says and no more.

    An adapter is a subclass or another `forward`; who looks at a layer or steers it has hung a hook on it.
    """
    return type(module) in classes and _calls_its_class(module) and not has_hooks(module)


def are_plain(*modules: tuple[nn.Module, type[nn.Module]]) -> bool:
    """Return whether each of these modules `is_plain`, of the class beside it."""
    return all(type(module) is kind and _calls_its_class(module) for module, kind in modules) and not has_hooks(
        *(module for module, _ in modules)
    )


def has_hooks(*modules: nn.Module) -> bool:
    """Return whether somebody has hung a hook on any of these."""
    return any(_EVERY_MODULES_HOOKS) or any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in modules
    )


def _calls_its_class(module: nn.Module) -> bool:
    return "forward" not in vars(module) and module._compiled_call_impl is None
