"""Which implementation of the data code runs."""

from types import ModuleType

from fastssl import extension
from fastssl.data import numpy_host


def host_code() -> ModuleType:
    """Return the compiled data code, or its numpy twin (same functions, same bits) where it was not built."""
    return extension.host() or numpy_host
