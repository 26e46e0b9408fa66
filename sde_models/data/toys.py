"""Two-dimensional toy data, centred and of about unit scale.

Each function draws independent points, shape ``(n, 2)``. All have mean zero, and a variance that
is one on average over the two coordinates. The scaling is fixed and does not depend on the sample,
so that a set is at the same place in every draw.

References:
    Pedregosa et al. 2011, scikit-learn (moons, Swiss roll); Grathwohl et al. 2019, FFJORD,
    arXiv:1810.01367 (the others); Johnson et al. 2016, arXiv:1603.06277 (pinwheel).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sde_models._utils.errors import find_by_name
from sde_models._utils.integers import check_integer
from sde_models._utils.randomness import drawn_on, standard_normal

Toy = Callable[[int, torch.Generator | None], Tensor]


class MixtureParameters(NamedTuple):
    """The arguments of ``sm.GaussianMixture(*parameters)``, for equal weights.

    Attributes:
        means: Centres, shape ``(K, 2)``.
        std: Standard deviation of every component.
    """

    means: Tensor
    std: float


def two_moons(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Two half circles that reach into each other, with noise of a tenth of their radius."""
    angle = math.pi * _uniform(n, generator)
    side = _choose(2, n, generator)
    upper = torch.stack((angle.cos() - 0.5, angle.sin() - 0.25), dim=1)
    moons = torch.where(side[:, None] == 0, upper, -upper)
    return (moons + 0.1 * _normal(n, generator)) / 0.7121


def swiss_roll(n: int, generator: torch.Generator | None = None) -> Tensor:
    """One spiral with as many points for each angle, over a turn and a half."""
    angle = 1.5 * math.pi * (1 + 2 * _uniform(n, generator))
    roll = torch.stack((angle * angle.cos(), angle * angle.sin()), dim=1)
    return (roll - torch.tensor([2.0, 0.2122]) + 0.5 * _normal(n, generator)) / 6.8075


def checkerboard(n: int, generator: torch.Generator | None = None) -> Tensor:
    """The dark squares of a board of 4 by 4, uniformly."""
    column, row = _choose(4, n, generator), _choose(2, n, generator)
    corner = torch.stack((column, 2 * row + column % 2), dim=1)
    within = torch.stack((_uniform(n, generator), _uniform(n, generator)), dim=1)
    return (corner + within - 2) * (math.sqrt(3) / 2)


def pinwheel(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Five bent arms."""
    radius, across = (_normal(n, generator) * torch.tensor([0.3, 0.1])).unbind(1)
    radius = radius + 1
    angle = 2 * math.pi / 5 * _choose(5, n, generator) + 0.25 * radius.exp()
    cos, sin = angle.cos(), angle.sin()
    arms = torch.stack((radius * cos - across * sin, radius * sin + across * cos), dim=1)
    return arms / math.sqrt(0.55)


def rings(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Four circles around one centre, with as many points each."""
    radius = (1.0 + _choose(4, n, generator)) / 4
    angle = 2 * math.pi * _uniform(n, generator)
    circles = radius[:, None] * torch.stack((angle.cos(), angle.sin()), dim=1)
    return (circles + 0.02 * _normal(n, generator)) / math.sqrt(15 / 64 + 0.02**2)


def spiral(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Two spiral arms of a turn and a half each, with noise."""
    angle = 3 * math.pi * _uniform(n, generator).sqrt()
    side = 2.0 * _choose(2, n, generator) - 1
    arms = (side * angle)[:, None] * torch.stack((-angle.cos(), angle.sin()), dim=1)
    return (arms + 0.3 * _normal(n, generator)) / math.hypot(1.5 * math.pi, 0.3)


def _eight() -> MixtureParameters:
    """Eight Gaussians on a circle."""
    angle = math.pi / 4 * torch.arange(8)
    radius = math.sqrt(2 * (1 - 0.15**2))
    return MixtureParameters(radius * torch.stack((angle.cos(), angle.sin()), dim=1), 0.15)


def _twenty_five() -> MixtureParameters:
    """Twenty-five Gaussians on a grid."""
    line = torch.arange(-2.0, 3.0) * math.sqrt((1 - 0.07**2) / 2)
    return MixtureParameters(torch.cartesian_prod(line, line), 0.07)


def _draw_mixture(
    make: Callable[[], MixtureParameters], n: int, generator: torch.Generator | None = None
) -> Tensor:
    mixture = make()
    chosen = mixture.means[_choose(len(mixture.means), n, generator)]
    return chosen + mixture.std * _normal(n, generator)


MIXTURES: dict[str, Callable[[], MixtureParameters]] = {
    "eight-gaussians": _eight,
    "twenty-five-gaussians": _twenty_five,
}
TOYS: dict[str, Toy] = {
    "two-moons": two_moons,
    "swiss-roll": swiss_roll,
    "checkerboard": checkerboard,
    "pinwheel": pinwheel,
    **{name: partial(_draw_mixture, make) for name, make in MIXTURES.items()},
    "rings": rings,
    "spiral": spiral,
}


def toy(name: str, n: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw points of a toy data set by its name.

    Args:
        name: One of ``sm.data.TOYS``.
        n: Number of points.
        generator: Source of the draw; torch's global one if None.

    Returns:
        Points, shape ``(n, 2)``.

    Raises:
        ValueError: For an unknown name, with the nearest ones, or if ``n`` is no positive integer.
        TypeError: For what is no name.

    Example:
        >>> toy("two-moons", 100).shape
        torch.Size([100, 2])
    """
    draw = find_by_name("toy", name, TOYS)
    return draw(check_integer("n", n), generator)


def toy_mixture(name: str) -> MixtureParameters:
    """The parameters of a toy that is a Gaussian mixture, for its exact density and score.

    Args:
        name: "eight-gaussians" or "twenty-five-gaussians".

    Raises:
        ValueError: For another name.

    Example:
        >>> mixture = sm.GaussianMixture(*toy_mixture("eight-gaussians"))
        >>> mixture.log_prob(toy("eight-gaussians", 5)).shape
        torch.Size([5])
    """
    if name not in MIXTURES:
        raise ValueError(f"toy {name!r} is no Gaussian mixture; known: {', '.join(MIXTURES)}")
    return MIXTURES[name]()


def _uniform(n: int, generator: torch.Generator | None) -> Tensor:
    return torch.rand(n, generator=generator, device=drawn_on(generator, "cpu")).cpu()


def _normal(n: int, generator: torch.Generator | None) -> Tensor:
    return standard_normal((n, 2), generator=generator, device="cpu")


def _choose(count: int, n: int, generator: torch.Generator | None) -> Tensor:
    return torch.randint(count, (n,), generator=generator, device=drawn_on(generator, "cpu")).cpu()
