"""What a committee is made of: layers for several members at once, and coordinates of the weight grid.

Shape legend: E members, B batch, A actions, W controlled weights, K basis functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt
import torch
from numpy.polynomial.legendre import legval
from torch import Tensor, nn
from torch.nn import functional

WARP = 0.1
DEGREE = 4
MOST_FUNCTIONS = 32


def warped(action_BW: Tensor) -> Tensor:
    """Min-max normalised weights → coordinates in [-1, 1] that are finer where weights are small."""
    low, high = math.log(WARP), math.log(1.0 + WARP)
    return 2.0 * (torch.log(action_BW.clamp(min=0.0) + WARP) - low) / (high - low) - 1.0


def smooth_basis(coordinates_AW: Tensor, points: Sequence[int]) -> Tensor:
    """Smooth functions over the grid that are zero on average, the smoothest first, [A, K].

    Products of Legendre polynomials of the warped coordinates, up to degree :data:`DEGREE` together (and
    no more than the points of a weight can tell), of variance 1 / degree²: where all coefficients move
    at one speed, the smooth ones are learned first.
    """
    highest = [min(count - 1, DEGREE) for count in points]
    degrees = [d for d in product(*(range(h + 1) for h in highest)) if 0 < sum(d) <= DEGREE]
    degrees = sorted(degrees, key=lambda d: (sum(d), d))[:MOST_FUNCTIONS]
    c_AW = coordinates_AW.double().numpy()
    columns = []
    for degree_W in degrees:
        parts = [_legendre(c_AW[:, i], degree) for i, degree in enumerate(degree_W)]
        column_A = np.prod(parts, axis=0)
        column_A = column_A - column_A.mean()
        columns.append(column_A / (column_A.std() * sum(degree_W)))
    return torch.from_numpy(np.stack(columns, axis=1)).float()


def _legendre(x: npt.NDArray[np.float64], degree: int) -> npt.NDArray[np.float64]:
    return np.asarray(legval(x, [0.0] * degree + [1.0]))  # type: ignore[no-untyped-call]


class MemberLinear(nn.Module):
    """One linear layer for each member: [E, B, in] → [E, B, out]."""

    def __init__(
        self, members: int, width_in: int, width_out: int, *, bias: bool = True, zero: bool = False
    ) -> None:
        super().__init__()
        bound = 0.0 if zero else 1.0 / math.sqrt(width_in)
        self.weight = nn.Parameter(torch.empty(members, width_in, width_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, width_out).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor, size: Tensor | None = None) -> Tensor:
        """See the class; weights times ``size`` [in, out], where it is given."""
        out = torch.matmul(x, self.weight if size is None else self.weight * size)
        return out if self.bias is None else out + self.bias


class MemberLayers(nn.Module):
    """``blocks`` layers with ReLU and a last one without, for each member; begins by answering zero."""

    def __init__(self, members: int, sizes: tuple[int, int, int], blocks: int, *, zero: bool = True) -> None:
        """Sizes are those of input, hidden layers and output."""
        super().__init__()
        width_in, width, width_out = sizes
        widths = [width_in] + [width] * blocks
        self.hidden = nn.ModuleList(MemberLinear(members, a, b) for a, b in pairwise(widths))
        self.last = MemberLinear(members, width, width_out, zero=zero)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        for layer in self.hidden:
            x = functional.relu(layer(x))
        out: Tensor = self.last(x.to(self.last.weight.dtype))
        return out
