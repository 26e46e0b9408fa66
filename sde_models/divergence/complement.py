r"""What is left of a Jacobian outside of some directions, less a multiple of the identity.

With an orthonormal basis Q, the projector :math:`P = I - Q Q^\top` and a number m,

.. math:: \mathrm{tr}\, J = \mathrm{tr}\, Q^\top J Q + m (D - k) + \mathrm{tr}\, (P J P - m P) .

Where J is large in these directions and near m I in all others, the last term is small, and so is
the variance of its estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_models._utils.fields import Fields

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Complement(Fields):
    """What is orthogonal to some directions, for each of a batch of points.

    Attributes:
        basis: Orthonormal directions Q, shape ``(B, k, D)``.
        mean: The multiple of the identity m, shape ``(B,)``.
    """

    basis: Tensor
    mean: Tensor

    def project(self, vectors: Tensor) -> Tensor:
        """The part of vectors ``(n, B, D)`` that is orthogonal to the directions."""
        along = torch.einsum("bkd,nbd->nbk", self.basis, vectors)
        return vectors - torch.einsum("bkd,nbk->nbd", self.basis, along)

    def restrict(self, products: Function, vectors: Tensor) -> Tensor:
        """Products of vectors with :math:`P J P - m P`, from those with J."""
        inside = self.project(vectors)
        return self.project(products(inside)) - self.mean[:, None] * inside
