"""Arrays in files of NumPy, as tensors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor


def read_array(
    path: str | os.PathLike[str], names: Sequence[str] = ("x", "z"), *, strict: bool = False
) -> Tensor:
    """Read an array from an ``.npz`` or ``.npy`` file.

    Nothing in the file is ever unpickled. An ``.npy`` is mapped into memory and read when used.

    Args:
        path: The file.
        names: Names in an ``.npz``, of which the first that is there is taken; a single array is
            taken whatever its name.
        strict: Take no array of another name, even if it is the only one. The array of an
            ``.npy`` has no name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no file of arrays, or no array has one of the names; the message lists
            those there are.

    Example:
        >>> import numpy, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     numpy.savez(f"{folder}/a.npz", x=numpy.zeros((3, 2)), label=numpy.zeros(3))
        ...     read_array(f"{folder}/a.npz").shape
        torch.Size([3, 2])
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(
            f"{path} is no .npz or .npy file of numbers: write a tensor x by "
            "numpy.save('x.npy', x.numpy())"
        )
    if strict and path.suffix == ".npy":
        raise ValueError(
            f"{path} holds one array, which has no name, expected {_any_of(names)}: give an .npz"
        )
    try:
        if path.suffix == ".npy":
            return _as_tensor(np.load(path, mmap_mode="c"))
        with np.load(path) as archive:
            known = list(archive)
            name = next((name for name in names if name in known), known[0])
            if name in names or (len(known) == 1 and not strict):
                return _as_tensor(archive[name])
    except (ValueError, TypeError, EOFError, IndexError, BadZipFile, AttributeError) as error:
        raise ValueError(
            f"{path} is no .npz or .npy file of numbers, or is damaged: {error}"
        ) from error
    raise ValueError(
        f"{path} holds the arrays {', '.join(known)}, expected {_any_of(names)}: name one of these"
    )


def array_names(path: str | os.PathLike[str]) -> list[str]:
    """Names of the arrays in a file that can be read; none for an ``.npy``."""
    if Path(path).suffix != ".npz":
        return []
    with np.load(path) as archive:
        return list(archive)


def _as_tensor(array: np.ndarray) -> Tensor:
    """The same memory, or a copy in the byte order of this machine if it has another."""
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def _any_of(names: Sequence[str]) -> str:
    return " or ".join(names)
