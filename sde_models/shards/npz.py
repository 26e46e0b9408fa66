"""Archives of NumPy arrays that are written piece by piece."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.lib import format as npy

from sde_models._utils.atomic_files import atomic_writer


def write_npz(
    path: str | os.PathLike[str], arrays: Mapping[str, Iterable[np.ndarray]], length: int
) -> None:
    """Write arrays to a file for ``numpy.load``, with one piece in memory at a time.

    The same arrays give the same bytes.

    Args:
        path: The file; one that is there is replaced when the new one is complete.
        arrays: By name the pieces of an array in order, each of shape ``(B, ...)``.
        length: Sum of the B of each array.

    Raises:
        OSError: If the file cannot be written.

    Example:
        >>> import numpy, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_npz(f"{folder}/a.npz", {"x": [numpy.zeros((2, 3)), numpy.ones((1, 3))]}, 3)
        ...     numpy.load(f"{folder}/a.npz")["x"].sum(axis=1)
        array([0., 0., 3.])
    """
    with atomic_writer(path) as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        for name, pieces in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                for index, piece in enumerate(pieces):
                    if index == 0:
                        header = npy.header_data_from_array_1_0(np.ascontiguousarray(piece))
                        shape = (length, *piece.shape[1:])
                        npy.write_array_header_2_0(entry, header | {"shape": shape})
                    entry.write(np.ascontiguousarray(piece).data.cast("B"))
