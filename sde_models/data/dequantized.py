"""A data set of levels as one of real numbers, in the space of a model."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sde_models._utils.integers import check_integer
from sde_models.data.dequantization import DATA_RANGE, check_levels, dequantize


class Dequantized(Dataset[Any]):
    r"""Another data set whose images are dequantised when they are read.

    With a seed the noise of an image depends on the seed, the epoch and the index alone, and
    neither on the order of reading nor on the number of workers. Without one it is new each time
    the image is read; in :func:`~sde_models.fit` it then follows from the place in the run.

    Args:
        dataset: A map-style data set of levels, each a tensor of shape ``event``, or a tuple that
            begins with one; the rest of the tuple is passed on.
        levels: Number of levels.
        data_range: Lowest and highest number that the levels are spread over.
        transform: From there to the space of the model, such as ``sm.data.LogitTransform()`` for
            ``data_range=(0.0, 1.0)``; called with one image.
        seed: Seed of the noise; None takes it from torch's global generator.
        dtype: Floating dtype of the numbers.

    Raises:
        TypeError: If the data set has no length or is not read by index.

    Example:
        >>> images = torch.utils.data.TensorDataset(torch.tensor([[[[0, 16]]]]), torch.tensor([3]))
        >>> x, label = Dequantized(images, levels=17)[0]
        >>> x.shape, label
        (torch.Size([1, 1, 2]), tensor(3))
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        levels: int = 256,
        data_range: tuple[float, float] = DATA_RANGE,
        transform: Callable[[Tensor], Tensor] | None = None,
        *,
        seed: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise TypeError(
                f"dataset must be map-style, with __len__ and __getitem__, got "
                f"{type(dataset).__name__}"
            )
        self.dataset, self.data_range = dataset, data_range
        self.levels = check_integer("levels", levels, least=2)
        self.seed = None if seed is None else check_integer("seed", seed, least=0)
        self.transform, self.dtype = transform, dtype
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the noise of an epoch; call it before the workers of a data loader start.

        Without a seed it changes nothing.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: int) -> Any:
        """The image at an index, shape ``event``, and the rest of its tuple.

        Raises:
            IndexError: If the index is out of range.
            TypeError: If there is no tensor of numbers.
            ValueError: If a value is NaN or no level, or the transform gives a number that is not
                finite; with the index.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        index %= len(self)
        item = self.dataset[index]
        image, *rest = item if isinstance(item, tuple | list) else (item,)
        try:
            check_levels(image[None] if isinstance(image, Tensor) else image, self.levels)
        except (TypeError, ValueError) as error:
            raise type(error)(f"index {index} of the data set: {error}") from error
        x = dequantize(
            image[None],
            self.levels,
            data_range=self.data_range,
            generator=self._generator(index),
            dtype=self.dtype,
        )[0]
        if self.transform is not None:
            x = self.transform(x)
            if not bool(torch.isfinite(x).all()):
                raise ValueError(
                    f"index {index} of the data set: the transform makes it NaN or infinite; a "
                    "logarithm needs a margin, as sm.data.LogitTransform(1e-6) has"
                )
        return (x, *rest) if isinstance(item, tuple | list) else x

    def _generator(self, index: int) -> torch.Generator | None:
        if self.seed is None:
            return None
        words = np.random.SeedSequence((self.seed, self.epoch, index)).generate_state(2, np.uint32)
        return torch.Generator().manual_seed(int(words[0]) << 32 | int(words[1]))
