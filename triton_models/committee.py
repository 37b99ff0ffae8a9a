"""Several small networks over plain features, averaged in log-odds: variance is the enemy of small effects.

For the features x(s) (:mod:`triton_models.plain_encoder`) and the warped weights c(a) of an action, every
member e answers ::

    z_em(s, a) = o_em · relu(B_e relu(S_e(x(s)) + A_e c(a))) + static_em(a) ,     z = mean_e z_e

``static`` is one free number per action, held near zero by a prior (:func:`ray_train.objective.prior_loss`):
what an action does for everybody needs no state, but no log is long enough to learn it action by action. The
rest is a smooth function of the weights; c stretches the low end of every weight, where a step
changes the ranking most: ``c(w) = log(w + 0.1)`` of the min-max normalised weight, scaled to [-1, 1].

Members are trained without their share of the users (:mod:`ray_train.training`), so their spread is a
delete-a-group jackknife: :meth:`CommitteeHead.contrast_error`.

Shrinkage, set after training (:mod:`ray_train.shrinkage`): with the level ``l_m(s) = mean_a z_m(s, a)`` and
the average contrast ``c̄_m(a) = mean_s (z_m(s, a) - l_m(s))``, the answer is ::

    logit Q_m(s, a) = l_m(s) + c̄_m(a) + γ_m (z_m(s, a) - l_m(s) - c̄_m(a))

γ = 1 is the committee itself, γ = 0 the static contrast for everybody.

Shape legend: E members, B batch, A actions, M objectives, W controlled weights, D features, S state width,
H backbone width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from triton_models.network_config import NetworkConfig
from triton_models.surface import Surface

WARP = 0.1
STATIC_SPREAD = 0.05
"""Prior standard deviation τ, in log-odds, of an action's free contrast about the smooth one."""


def warped(action_BW: Tensor) -> Tensor:
    """Min-max normalised weights → coordinates in [-1, 1] that are finer where weights are small."""
    low, high = math.log(WARP), math.log(1.0 + WARP)
    return 2.0 * (torch.log(action_BW.clamp(min=0.0) + WARP) - low) / (high - low) - 1.0


class MemberLinear(nn.Module):
    """One linear layer for each member: [E, B, in] → [E, B, out]."""

    def __init__(self, members: int, width_in: int, width_out: int, *, bias: bool = True) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(width_in)
        self.weight = nn.Parameter(torch.empty(members, width_in, width_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, width_out).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out = torch.matmul(x, self.weight)
        return out if self.bias is None else out + self.bias


class CommitteeHead(nn.Module):
    """The members, and how their answers are put together."""

    coordinates_AW: Tensor
    average_AM: Tensor
    personal_M: Tensor

    def __init__(self, surface: Surface, config: NetworkConfig, inputs: int) -> None:
        super().__init__()
        members, width, state = config.members, config.backbone_width, config.state_width
        self.points = [weight.points for weight in surface.controlled]
        self.shape = (surface.num_actions, len(surface.objectives))
        self.norm = nn.BatchNorm1d(inputs, affine=False)
        self.wide = MemberLinear(members, inputs, width)
        self.state = MemberLinear(members, width, state)
        self.first = MemberLinear(members, state, width)
        self.action = MemberLinear(members, len(surface.controlled), width, bias=False)
        self.rest = nn.ModuleList(
            MemberLinear(members, width, width) for _ in range(config.backbone_blocks - 1)
        )
        self.out = MemberLinear(members, width, self.shape[1])
        self.static_EAM = nn.Parameter(torch.zeros(members, *self.shape))
        nn.init.zeros_(self.out.weight)
        grid = torch.from_numpy(surface.normalized_actions).to(torch.float32)
        self.register_buffer("coordinates_AW", warped(grid), persistent=False)
        self.register_buffer("average_AM", torch.zeros(self.shape))
        self.register_buffer("personal_M", torch.ones(self.shape[1]))

    # ---------------------------------------------------------------------------------- the members

    def _states(self, state_BD: Tensor) -> Tensor:
        x = functional.relu(self.wide(self.norm(state_BD).unsqueeze(0)))
        out: Tensor = self.first(functional.relu(self.state(x)))
        return out

    def _after(self, x: Tensor) -> Tensor:
        x = functional.relu(x)
        for layer in self.rest:
            x = functional.relu(layer(x))
        out: Tensor = self.out(x)
        return out

    def member_logits(self, state_BD: Tensor, action_BW: Tensor) -> Tensor:
        """Every member's logits of one action per request, [E, B, M]; not shrunk."""
        coordinates_1BW = warped(action_BW).unsqueeze(0)
        z_EBM = self._after(self._states(state_BD) + self.action(coordinates_1BW))
        static_EBM = torch.einsum("ba,eam->ebm", self._shares(action_BW), self.static_EAM)
        return z_EBM + static_EBM

    def member_action_logits(self, state_BD: Tensor) -> Tensor:
        """Every member's logits of every grid action, [E, B, A, M]; not shrunk."""
        states_EB1H = self._states(state_BD).unsqueeze(2)
        actions_E1AH = self.action(self.coordinates_AW.unsqueeze(0)).unsqueeze(1)
        x = (states_EB1H + actions_E1AH).flatten(1, 2)
        z = self._after(x).reshape(len(self.static_EAM), -1, *self.shape)
        return z + self.static_EAM.unsqueeze(1)

    def contrast_error(self, state_BD: Tensor) -> Tensor:
        """Standard error of every action's contrast to the mean action, [B, A, M], in shrunk log-odds.

        Delete-a-group jackknife over the members (Kott, *J. Official Statistics* 2001): each was trained
        without its group of users, so ``se² = (E - 1) / E · Σ_e (θ_e - θ̄)²``. Different starts of the
        members add to it, so it errs on the careful side.
        """
        z_EBAM = self.member_action_logits(state_BD)
        contrast_EBAM = z_EBAM - z_EBAM.mean(dim=2, keepdim=True)
        spread_BAM = (contrast_EBAM - contrast_EBAM.mean(dim=0)).square().sum(dim=0)
        members = len(z_EBAM)
        return torch.sqrt(spread_BAM * (members - 1) / members) * self.personal_M

    # ----------------------------------------------------------------------------------- the answer

    def forward(self, state_BD: Tensor, action_BW: Tensor) -> Tensor:
        """Logits of one action per request, [B, M]; between grid points the static part is interpolated."""
        z_BM = self.member_logits(state_BD, action_BW).mean(dim=0)
        # Not shrunk, as in training: level and average need not be known. A graph takes no such turn.
        if not torch.compiler.is_exporting() and bool((self.personal_M == 1.0).all()):
            return z_BM
        level_BM = self.member_action_logits(state_BD).mean(dim=(0, 2))
        static_BM = level_BM + self._shares(action_BW) @ self.average_AM
        return static_BM + self.personal_M * (z_BM - static_BM)

    def all_actions(self, state_BD: Tensor) -> Tensor:
        """Logits of every grid action, [B, A, M], also in training."""
        return self.shrink(self.member_action_logits(state_BD).mean(dim=0))

    def shrink(self, z_BAM: Tensor) -> Tensor:
        """See the module."""
        static_BAM = z_BAM.mean(dim=1, keepdim=True) + self.average_AM
        return static_BAM + self.personal_M * (z_BAM - static_BAM)

    def _shares(self, action_BW: Tensor) -> Tensor:
        """Share of every grid action in a multilinear interpolation; one-hot on the grid itself."""
        shares = action_BW.new_ones((action_BW.shape[0], 1))
        for i, points in enumerate(self.points):
            grid = torch.arange(points, dtype=action_BW.dtype, device=action_BW.device)
            hat = functional.relu(1.0 - (action_BW[:, i, None] * (points - 1) - grid).abs())
            shares = (shares[:, :, None] * hat[:, None, :]).flatten(1)
        return shares

    def start_at(self, logits: Tensor) -> None:
        """Begin with a constant answer: the base rates [M], or those of every action [A, M]."""
        with torch.no_grad():
            level_M = logits.reshape(-1, self.shape[1]).mean(dim=0)
            if self.out.bias is not None:
                self.out.bias.copy_(level_M.expand_as(self.out.bias))
            self.static_EAM.copy_((logits - level_M).expand(self.shape).expand_as(self.static_EAM))

    def undecayed(self) -> set[str]:
        """Names of parameters that weight decay must not pull to zero: biases and the static part."""
        return {name for name, _ in self.named_parameters() if not name.endswith("weight")}

    def for_all_actions(self) -> FoldedCommittee:
        """The folded module that answers for every grid action."""
        return FoldedCommittee(self)


class FoldedCommittee(nn.Module):
    """A :class:`CommitteeHead` in evaluation, for every grid action at once: [B, D] → logits [B, A, M].

    Normalisation is part of the first layer, the action half of the backbone a constant, one row per
    member and action; the mean over members is taken behind the last layer.
    """

    action_E1AH: Tensor
    static_AM: Tensor
    average_AM: Tensor
    personal_M: Tensor

    def __init__(self, head: CommitteeHead) -> None:
        super().__init__()
        self.shape, self.members = head.shape, len(head.static_EAM)
        self.wide = _normalised(head.norm, head.wide)
        self.state, self.first, self.rest, self.out = head.state, head.first, head.rest, head.out
        with torch.no_grad():
            actions = head.action(head.coordinates_AW.unsqueeze(0)).unsqueeze(1)
            self.register_buffer("action_E1AH", actions)
            # Level and bias belong to all members alike: only their means are needed.
            self.register_buffer("static_AM", head.static_EAM.mean(dim=0))
            self.register_buffer("average_AM", head.average_AM.clone())
            self.register_buffer("personal_M", head.personal_M.clone())

    @property
    def last(self) -> MemberLinear:
        """The layer that makes logits; may have a wider number format than the others."""
        return self.out

    def forward(self, state_BD: Tensor) -> Tensor:
        """Logits of every grid action."""
        x = functional.relu(self.wide(state_BD.unsqueeze(0)))
        states_EB1H = self.first(functional.relu(self.state(x))).unsqueeze(2)
        x = functional.relu(states_EB1H + self.action_E1AH).flatten(1, 2)
        for layer in self.rest:
            x = functional.relu(layer(x))
        z_BAM = self.out(x.to(self.out.weight.dtype)).mean(dim=0).reshape(-1, *self.shape) + self.static_AM
        static_BAM = z_BAM.mean(dim=1, keepdim=True) + self.average_AM
        out: Tensor = static_BAM + self.personal_M * (z_BAM - static_BAM)
        return out


def _normalised(norm: nn.BatchNorm1d, layer: MemberLinear) -> MemberLinear:
    """``layer(norm(x))`` with the running statistics as one layer, computed in float64."""
    folded = MemberLinear(*layer.weight.shape).to(layer.weight.device)
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None or layer.bias is None or folded.bias is None:
        raise ValueError("only a layer with bias behind running statistics can be folded")
    with torch.no_grad():
        scale_D = 1.0 / torch.sqrt(variance.double() + norm.eps)
        weight = layer.weight.double() * scale_D[:, None]
        folded.weight.copy_(weight)
        folded.bias.copy_(layer.bias.double() - (mean.double() @ weight).unsqueeze(1))
    return folded.eval()
