"""Layers of a committee's members, and the smooth functions of the grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from triton_models.members import DEGREE, MOST_FUNCTIONS, MemberLayers, smooth_basis, warped


def grid(*points: int) -> torch.Tensor:
    axes = np.meshgrid(*(np.linspace(0.0, 1.0, count) for count in points), indexing="ij")
    return torch.from_numpy(np.stack([axis.ravel() for axis in axes], axis=1)).float()


@pytest.mark.parametrize("points", [(2,), (7, 7), (2, 9), (3, 3, 3, 3), (2,) * 8])
def test_smooth_functions_are_zero_on_average_and_tell_each_other_apart(points: tuple[int, ...]) -> None:
    basis_AK = smooth_basis(warped(grid(*points)), points).double()
    assert basis_AK.shape[1] <= min(MOST_FUNCTIONS, basis_AK.shape[0] - 1)
    assert basis_AK.mean(dim=0).abs().max() < 1e-6
    assert torch.linalg.matrix_rank(basis_AK) == basis_AK.shape[1]


def test_smooth_functions_hold_every_polynomial_of_their_degree() -> None:
    c_AW = warped(grid(7, 7)).double()
    basis_AK = smooth_basis(warped(grid(7, 7)), (7, 7)).double()
    wanted_A = c_AW[:, 0] ** DEGREE - 2.0 * c_AW[:, 0] ** 2 * c_AW[:, 1] ** 2 + c_AW[:, 1]
    wanted_A = wanted_A - wanted_A.mean()
    found = torch.linalg.lstsq(basis_AK, wanted_A.unsqueeze(1)).solution
    torch.testing.assert_close((basis_AK @ found).squeeze(1), wanted_A, rtol=0, atol=1e-5)


def test_members_do_not_share_layers_and_begin_with_zero() -> None:
    torch.manual_seed(0)
    layers, x_BD = MemberLayers(3, (4, 5, 2), 2), torch.randn(6, 4)
    assert not layers(x_BD).any()
    with torch.no_grad():
        layers.last.weight.normal_()
        before_EBM = layers(x_BD)
        hidden = layers.hidden[0]
        hidden.weight[1] += 1.0
        moved_EBM = layers(x_BD) != before_EBM
    assert before_EBM.shape == (3, 6, 2)
    assert moved_EBM.flatten(1).any(dim=1).tolist() == [False, True, False]
