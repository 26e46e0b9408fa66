"""The shards of a folder, read one at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sde_models._utils.counting import Cost, EvaluationCounter
from sde_models.shards.fingerprints import describe
from sde_models.shards.folder import SETTINGS, Folder
from sde_models.shards.npz import write_npz


class Shards(Dataset[Tensor]):
    """Samples on disk, one shard in memory at a time.

    A map-style dataset of the main tensor, which can be used wherever a dataset is expected.

    Args:
        path: Folder of :func:`~sde_models.sample_to_folder` or a similar function.
        name: Name of the tensor that is the dataset; the main one if None.
        dtype: Floating dtype of the samples of the dataset; their own if None.
        resumed: Samples that were found done when the folder was filled.

    Attributes:
        path: The folder.
        resumed: As given.
        name: As given, or the name of the main tensor: "x" for data, "z" for latents, "value" for
            likelihoods.

    Raises:
        FileNotFoundError: If there is no such folder, or it holds no shards.
        ValueError: If its settings are damaged, or there is no tensor of that name.
        OSError: If a name is given, and the first shard is missing or damaged.

    Example:
        >>> import tempfile
        >>> model = sm.GaussianMixture(torch.zeros(1, 2), 1.0).score_model(sm.VPSDE())
        >>> with tempfile.TemporaryDirectory() as out:
        ...     drawn = sm.sample_to_folder(
        ...         model, 10, out, event_shape=(2,), chunk=4, steps=5, solver="ddim",
        ...         progress=False,
        ...     )
        ...     [len(shard["x"]) for shard in drawn.batches()], len(drawn), drawn[9].shape
        ([4, 4, 2], 10, torch.Size([2]))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        name: str | None = None,
        dtype: torch.dtype | None = None,
        resumed: int = 0,
    ) -> None:
        self.path = Path(path)
        file = self.path / SETTINGS
        if not file.is_file():
            raise FileNotFoundError(f"no shards in {self.path}: it has no {SETTINGS}")
        try:
            settings = dict(json.loads(file.read_text(encoding="utf-8")))
            self._folder = Folder(self.path, settings)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is damaged or of something else: {error!r}") from error
        self.name = str(settings.get("name", "value")) if name is None else name
        self.dtype = dtype
        self.resumed = resumed
        self._last: tuple[int, dict[str, Tensor]] | None = None
        if name is not None and name not in self.read(0):
            raise ValueError(
                f"the shards in {self.path} hold {', '.join(sorted(self.read(0)))}, and nothing "
                f"named {name}: choose one of these"
            )

    def __len__(self) -> int:
        return self._folder.samples

    def __getitem__(self, index: int) -> Tensor:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} samples")
        shard, row = divmod(index % len(self), self._folder.chunk)
        sample = self.read(shard)[self.name][row]
        return sample if self.dtype is None else sample.to(self.dtype)

    def read(self, shard: int) -> dict[str, Tensor]:
        """Tensors by name of one shard, each of shape ``(B, ...)``.

        Raises:
            OSError: If it is missing or damaged.
        """
        if self._last is None or self._last[0] != shard:
            self._last = None  # so that two are never held
            self._last = (shard, self._folder.read_existing(shard).tensors)
        return self._last[1]

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Go through the shards in order.

        Raises:
            OSError: If one is missing or damaged.
        """
        for shard in range(len(self._folder)):
            yield self.read(shard)

    def describe_content(self) -> str:
        """Text that stands for all samples, from the checksums in the files.

        Raises:
            OSError: If a shard is missing or damaged.
        """
        checksums = [self._folder.read_checksum(k) for k in range(len(self._folder))]
        return describe(["shards", self.name, self.dtype, *checksums])

    @property
    def cost(self) -> Cost:
        """The cost of the samples over all runs, read from the headers of the files.

        Raises:
            OSError: If a shard is missing or damaged.
        """
        counters = map(self._folder.read_counter, range(len(self._folder)))
        return sum(counters, EvaluationCounter()).cost(len(self))

    def save_npz(self, path: str | os.PathLike[str]) -> None:
        """Write all shards into one ``.npz`` file, with one of them in memory at a time.

        Args:
            path: The file; one that is there is replaced.

        Raises:
            OSError: If a shard is missing or damaged, or the file cannot be written.
        """

        def stream(name: str) -> Iterator[np.ndarray]:
            return (shard[name].numpy() for shard in self.batches())

        write_npz(path, {name: stream(name) for name in self.read(0)}, len(self))
