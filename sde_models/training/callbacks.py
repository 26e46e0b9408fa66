"""Callbacks that evaluate the averaged model during training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from sde_models._utils.atomic_files import atomic_write
from sde_models._utils.integers import check_integer, check_integers
from sde_models.data.dequantization import check_data_range
from sde_models.likelihood.bits_per_dimension import bits_per_dim
from sde_models.likelihood.settings import LogProbOptions
from sde_models.sampling.samples import SampleOptions, sample
from sde_models.shards.evaluation import BitsOptions
from sde_models.solvers import Solver, make_solver
from sde_models.solvers.options import check_options
from sde_models.training.progress import Progress


class SampleImages:
    """Draw images from the averaged model every so many steps, from the same noise each time.

    Args:
        every: Steps between.
        event_shape: Shape of one image, ``(C, H, W)`` with 1 or 3 channels.
        folder: Where ``step-00001000.png`` and so on are written; nowhere if None. With
            ``log_dir`` the images go to TensorBoard too.
        count: Images in a grid.
        data_range: Values that are shown as black and white; those of the model if None.
        seed: Fixes the noise.
        cond: Conditions by name, with ``count`` rows or shared.
        solver: As for :func:`~sde_models.sample`.
        **options: Given to :func:`~sde_models.sample`. A fixed-step solver takes 20 steps, unless
            ``steps`` is given.

    Raises:
        ValueError: If samples of that shape are no images.
        TypeError: For an option that :func:`~sde_models.sample` does not take.

    Example:
        >>> network = sm.nn.ResidualNetwork((1, 4, 4), width=16, depth=1)
        >>> model = sm.ScoreModel(network, sm.VPSDE())
        >>> show = SampleImages(2, (1, 4, 4), count=4, solver="ddim", steps=2)
        >>> _ = sm.fit(model, torch.randn(8, 1, 4, 4), steps=2, progress=False, callback=show)
    """

    def __init__(
        self,
        every: int,
        event_shape: tuple[int, int, int],
        folder: str | os.PathLike[str] | None = None,
        *,
        count: int = 64,
        data_range: tuple[float, float] | None = None,
        seed: int = 0,
        cond: Mapping[str, Any] | None = None,
        solver: str | Solver = "dpmpp-2m",
        **options: Unpack[SampleOptions],
    ) -> None:
        self.every, self.count = check_integer("every", every), check_integer("count", count)
        self.event_shape = check_integers("event_shape", event_shape)
        if len(self.event_shape) != 3 or self.event_shape[0] not in (1, 3):
            raise ValueError(
                f"event_shape must be (1, H, W) or (3, H, W), got {event_shape}: give the shape of "
                "an image"
            )
        self.seed, self.cond = check_integer("seed", seed, least=0), cond
        self.folder = None if folder is None else Path(folder)
        self.data_range = None if data_range is None else check_data_range(data_range)
        self.solver = make_solver(solver)
        usual: SampleOptions = {} if self.solver.adaptive else {"steps": 20}
        given = check_options(SampleImages, options, SampleOptions)
        self.options: SampleOptions = {**usual, **given}

    def __call__(self, progress: Progress) -> None:
        """Draw, in the first process."""
        if progress.step % self.every or not progress.main:
            return
        from sde_models.data.pictures import as_brightness, draw_grid  # slow to import

        model, shape = progress.averaged, (self.count, *self.event_shape)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            drawn = sample(
                model, shape, self.solver, cond=self.cond, generator=generator, **self.options
            ).x
        images = as_brightness(drawn, self.data_range or model.data_range)
        progress.log.images("samples", images, progress.step)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            side = max(1, round(self.count**0.5))
            atomic_write(self.folder / f"step-{progress.step:08d}.png", draw_grid(images, side))


class BitsPerDimOptions(BitsOptions, LogProbOptions, total=False):
    """Options of :func:`~sde_models.bits_per_dim`, which documents them."""

    solver: str | Solver | None


class BitsPerDimCurve:
    """Bits per dimension of held-out images under the averaged model, every so many steps.

    Args:
        every: Steps between.
        images: Levels 0 to ``levels - 1``, shape ``(B, *event)``.
        levels: Number of levels.
        seed: Fixes the noise of the dequantisation.
        cond: Conditions by name, with a row for each image or shared.
        **options: Given to :func:`~sde_models.bits_per_dim`.

    Raises:
        TypeError: For an option that it does not take.

    Attributes:
        curve: Bits per dimension by step, in the first process.

    Example:
        >>> network = sm.nn.ResidualNetwork((1, 2, 2), width=16, depth=1)
        >>> model = sm.ScoreModel(network, sm.VPSDE(t_min=1e-3))
        >>> held_out = torch.randint(0, 16, (2, 1, 2, 2))
        >>> bits = BitsPerDimCurve(3, held_out, levels=16, rtol=1e-2, atol=1e-2)
        >>> _ = sm.fit(model, torch.randn(8, 1, 2, 2), steps=3, progress=False, callback=bits)
        >>> list(bits.curve)
        [3]
    """

    def __init__(
        self,
        every: int,
        images: Tensor,
        levels: int = 256,
        *,
        seed: int = 0,
        cond: Mapping[str, Any] | None = None,
        **options: Unpack[BitsPerDimOptions],
    ) -> None:
        self.every, self.seed = check_integer("every", every), check_integer("seed", seed, least=0)
        self.images, self.levels = images, check_integer("levels", levels, least=2)
        self.cond = cond
        self.options = check_options(BitsPerDimCurve, options, BitsPerDimOptions)
        self.curve: dict[int, float] = {}

    def __call__(self, progress: Progress) -> None:
        """Evaluate, in the first process."""
        if progress.step % self.every or not progress.main:
            return
        model = progress.averaged
        images = self.images.to(model.device)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            bits = bits_per_dim(
                model, images, self.levels, cond=self.cond, generator=generator, **self.options
            )
        self.curve[progress.step] = float(bits.value)
        progress.log.scalar("bits per dimension", float(bits.value), progress.step)
