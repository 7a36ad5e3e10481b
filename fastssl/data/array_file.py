"""A .npy file that grows row by row, in bounded memory, and appears whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from fastssl.data.files import written_whole


def write_rows(path: Path, parts: Iterable[np.ndarray], width: int) -> int:
    """Write float32 rows of unknown number as one array, and return their number.

    Args:
        path: Replaced where it exists, or the file that it is a symbolic link to; the old content stays if the rows
            end in an error.
        parts: Arrays of shape (k, ``width``).
        width: Number of columns.

    Raises:
        ValueError: A part has another shape, or ``path`` is a device, a pipe or a directory.
    """
    num_rows = 0
    with written_whole(path) as temporary, temporary.open("wb") as file:
        file.write(_header(0, width))
        for part in parts:
            if part.ndim != 2 or part.shape[1] != width:
                raise ValueError(f"rows must have shape (k, {width}), got {part.shape}")
            file.write(np.ascontiguousarray(part, dtype="<f4").data)
            num_rows += len(part)
        file.seek(0)
        file.write(_header(num_rows, width))
    return num_rows


def _header(num_rows: int, width: int) -> bytes:
    """Return the header; numpy leaves room in it for any number of rows, so that its size is always the same."""
    buffer = io.BytesIO()
    npy.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (num_rows, width)})
    return buffer.getvalue()
