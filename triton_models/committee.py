"""Several small networks over plain features, averaged in log-odds: variance is the enemy of small effects.

Every member e looks at the features x(s) (:mod:`triton_models.plain_encoder`) through a few linear
combinations, ``n_e = N_e x`` for the level and ``n'_e`` for the effect, since what users want varies in few
directions. Then it answers both apart, because the level needs all there is to know about a request and
the effect as little as will do ::

    η_em(s, a) = level_em(n_e) + o_em · relu(B_e relu(S_e θ_e(n'_e) + A_e c(a))) + φ(a) · static_em

The effect is one smooth surface over the warped weights c(a) that moves with the T numbers θ of the request.
Three things carry it, each chosen by measurement (``benchmarks/RESULTS.md``):

* T is small, so that what is learned about one weight is learned about all of them;
* η is the logarithm of a rate: rewards are clipped counts (Eq. 3), and of a count with rate ``exp η`` the
  chance of at least one is ``1 - exp(-exp η)``. What weights do to the rate depends less on the session
  than what they do to the chance (:func:`as_logits`);
* for the effect the history is told softly, :data:`HISTORY_SHARE` of its standardised size: how somebody
  responds to weights is mostly theirs, and weight decay makes the history earn its say.

``static`` is what an action does for everybody, in smooth functions φ of the grid
(:func:`triton_models.members.smooth_basis`), and free of weight decay: it needs no state.

On demand (``FitSettings.jackknife``) members are trained without their share of the users; then their
spread is a delete-a-group jackknife: :meth:`CommitteeHead.contrast_error`.

Shrinkage, set after training (:mod:`ray_train.shrinkage`): with ``z = mean_e as_logits(η_e)``, the level
``l_m(s) = mean_a z_m(s, a)`` and the average contrast ``c̄_m(a) = mean_s (z_m(s, a) - l_m(s))``, the
answer is ::

    logit Q_m(s, a) = l_m(s) + c̄_m(a) + γ_m (z_m(s, a) - l_m(s) - c̄_m(a))

γ = 1 is the committee itself, γ = 0 the static contrast for everybody.

Shape legend: E members, B batch, A actions, M objectives, W controlled weights, D features, K basis
functions, N narrow width, T state width, H backbone width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from triton_models.members import MemberLayers, MemberLinear, smooth_basis, warped
from triton_models.network_config import NetworkConfig
from triton_models.plain_encoder import PlainEncoder
from triton_models.surface import Surface

NARROW = 16
"""Linear combinations of the features that a member's level sees, and as many for its effect."""
HISTORY_SHARE = 0.25
LOWEST, HIGHEST = -9.0, 2.0
"""Bounds of a log rate: chances from 0.0001 to 0.9994; what lies beyond is of no use for a choice."""


def as_logits(eta: Tensor) -> Tensor:
    """Log rate of a count → log-odds of at least one: ``log(exp(exp η) - 1)``, element by element."""
    rate = torch.exp(eta.clamp(LOWEST, HIGHEST))
    return rate + torch.log(1.0 - torch.exp(-rate))


class CommitteeHead(nn.Module):
    """The members, and how their answers are put together."""

    coordinates_AW: Tensor
    basis_AK: Tensor
    heard_D2: Tensor
    average_AM: Tensor
    personal_M: Tensor

    def __init__(self, surface: Surface, config: NetworkConfig, encoder: PlainEncoder) -> None:
        super().__init__()
        members, width, blocks = config.members, config.backbone_width, config.backbone_blocks
        objectives, state = len(surface.objectives), config.state_width
        self.points = [weight.points for weight in surface.controlled]
        self.shape = (surface.num_actions, objectives)
        grid = torch.from_numpy(surface.normalized_actions).to(torch.float32)
        self.register_buffer("coordinates_AW", warped(grid), persistent=False)
        basis_AK = smooth_basis(self.coordinates_AW, self.points)
        self.register_buffer("basis_AK", basis_AK, persistent=False)
        self.register_buffer("heard_D2", _heard(encoder), persistent=False)
        self.norm = nn.BatchNorm1d(encoder.width, affine=False)
        self.narrow = MemberLinear(members, encoder.width, 2 * NARROW)
        self.level = MemberLayers(members, (NARROW, width, objectives), 1)
        self.state = MemberLayers(members, (NARROW, width, state), blocks, zero=False)
        self.first = MemberLinear(members, state, width)
        self.action = MemberLinear(members, len(surface.controlled), width, bias=False)
        self.rest = MemberLayers(members, (width, width, objectives), blocks - 1)
        self.static_EKM = nn.Parameter(torch.zeros(members, self.basis_AK.shape[1], objectives))
        self.register_buffer("average_AM", torch.zeros(self.shape))
        self.register_buffer("personal_M", torch.ones(objectives))

    # ---------------------------------------------------------------------------------- the members

    def _parts(self, state_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Level [E, B, M] and the state's half of the effect's first layer [E, B, H]."""
        n_EBN = self.narrow(self.norm(state_BD), self.heard_D2)
        return self.level(n_EBN[..., :NARROW]), self.first(self.state(n_EBN[..., NARROW:]))

    def member_logits(self, state_BD: Tensor, action_BW: Tensor) -> Tensor:
        """Every member's logits of one action per request, [E, B, M]; not shrunk."""
        level_EBM, half_EBH = self._parts(state_BD)
        effect_EBM = self.rest(functional.relu(half_EBH + self.action(warped(action_BW))))
        static_EBM = torch.matmul(self._shares(action_BW) @ self.basis_AK, self.static_EKM)
        return as_logits((level_EBM + effect_EBM + static_EBM).float())

    def member_action_logits(self, state_BD: Tensor) -> Tensor:
        """Every member's logits of every grid action, [E, B, A, M]; not shrunk."""
        level_EBM, half_EBH = self._parts(state_BD)
        action_E1AH = self.action(self.coordinates_AW).unsqueeze(1)
        x = functional.relu(half_EBH.unsqueeze(2) + action_E1AH).flatten(1, 2)
        effect_EBAM = self.rest(x).reshape(len(x), -1, *self.shape)
        static_E1AM = torch.matmul(self.basis_AK, self.static_EKM).unsqueeze(1)
        return as_logits(level_EBM.unsqueeze(2) + effect_EBAM + static_E1AM)

    def contrast_error(self, state_BD: Tensor) -> Tensor:
        """Standard error of every action's contrast to the mean action, [B, A, M], in shrunk log-odds.

        Delete-a-group jackknife over the members (Kott, *J. Official Statistics* 2001) where
        each was trained without its group of users: ``se² = (E - 1) / E · Σ_e (θ_e - θ̄)²``. Of members
        that saw all users it is no more than how much they depend on their start.
        """
        z_EBAM = self.member_action_logits(state_BD)
        contrast_EBAM = z_EBAM - z_EBAM.mean(dim=2, keepdim=True)
        spread_BAM = (contrast_EBAM - contrast_EBAM.mean(dim=0)).square().sum(dim=0)
        members = len(z_EBAM)
        return torch.sqrt(spread_BAM * (members - 1) / members) * self.personal_M

    # ----------------------------------------------------------------------------------- the answer

    def forward(self, state_BD: Tensor, action_BW: Tensor) -> Tensor:
        """Logits of one action per request, [B, M]; between grid points smooth parts are interpolated."""
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
        """Begin with a constant answer: the base rates [M], or the mean of those of every action [A, M]."""
        bias = self.level.last.bias
        if bias is None:
            raise ValueError("the level's last layer has lost its bias")
        with torch.no_grad():
            rate_M = functional.softplus(logits.reshape(-1, self.shape[1]).mean(dim=0))
            bias.copy_(torch.log(rate_M).expand_as(bias))

    def undecayed(self) -> set[str]:
        """Names of parameters that weight decay must not pull to zero: biases and the static part."""
        return {name for name, _ in self.named_parameters() if not name.endswith("weight")}

    def for_all_actions(self) -> FoldedCommittee:
        """The folded module that answers for every grid action."""
        return FoldedCommittee(self)


def _heard(encoder: PlainEncoder) -> Tensor:
    """The size at which features reach level and effect, [D, 2N]: see the module."""
    heard_D2 = torch.ones(encoder.width, 2 * NARROW)
    heard_D2[encoder.lasting :, NARROW:] = HISTORY_SHARE
    return heard_D2


class FoldedCommittee(nn.Module):
    """A :class:`CommitteeHead` in evaluation, for every grid action at once: [B, D] → logits [B, A, M].

    Normalisation is part of the first layer; the action half of the effect's first layer and the static
    part are constants, one row per member and action.
    """

    action_E1AH: Tensor
    static_E1AM: Tensor
    average_AM: Tensor
    personal_M: Tensor

    def __init__(self, head: CommitteeHead) -> None:
        super().__init__()
        self.shape, self.members = head.shape, len(head.static_EKM)
        self.narrow = _normalised(head.norm, head.narrow, head.heard_D2)
        self.level, self.state, self.first, self.rest = head.level, head.state, head.first, head.rest
        with torch.no_grad():
            self.register_buffer("action_E1AH", head.action(head.coordinates_AW).unsqueeze(1))
            self.register_buffer("static_E1AM", torch.matmul(head.basis_AK, head.static_EKM).unsqueeze(1))
            self.register_buffer("average_AM", head.average_AM.clone())
            self.register_buffer("personal_M", head.personal_M.clone())

    def absorb(self, before: nn.Linear) -> None:
        """Take in the linear layer that makes the features: two affine maps in a row are one."""
        layer = self.narrow
        weight_ED2 = layer.weight.double()
        absorbed = MemberLinear(len(layer.weight), before.in_features, 2 * NARROW).to(layer.weight.device)
        if layer.bias is None or absorbed.bias is None:
            raise ValueError("only a layer with bias can take another one in")
        with torch.no_grad():
            absorbed.weight.copy_(torch.matmul(before.weight.double().T, weight_ED2))
            absorbed.bias.copy_(
                layer.bias.double() + torch.matmul(before.bias.double(), weight_ED2).unsqueeze(1)
            )
        self.narrow = absorbed.eval()

    @property
    def last(self) -> nn.Module:
        """The layers that make log rates; may have a wider number format than the others."""
        return nn.ModuleList([self.level.last, self.rest.last])

    def forward(self, state_BD: Tensor) -> Tensor:
        """Logits of every grid action."""
        n_EBN = self.narrow(state_BD)
        half_EB1H = self.first(self.state(n_EBN[..., NARROW:])).unsqueeze(2)
        x = functional.relu(half_EB1H + self.action_E1AH).flatten(1, 2)
        effect_EBAM = self.rest(x).reshape(self.members, -1, *self.shape)
        level_EB1M = self.level(n_EBN[..., :NARROW]).unsqueeze(2)
        z_BAM = as_logits(level_EB1M + (effect_EBAM + self.static_E1AM)).mean(dim=0)
        static_BAM = z_BAM.mean(dim=1, keepdim=True) + self.average_AM
        out: Tensor = static_BAM + self.personal_M * (z_BAM - static_BAM)
        return out


def _normalised(norm: nn.BatchNorm1d, layer: MemberLinear, heard_D2: Tensor) -> MemberLinear:
    """``layer(norm(x))`` with the running statistics as one layer, computed in float64."""
    folded = MemberLinear(*layer.weight.shape).to(layer.weight.device)
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None or layer.bias is None or folded.bias is None:
        raise ValueError("only a layer with bias behind running statistics can be folded")
    with torch.no_grad():
        scale_D = 1.0 / torch.sqrt(variance.double() + norm.eps)
        weight = (layer.weight * heard_D2).double() * scale_D[:, None]
        folded.weight.copy_(weight)
        folded.bias.copy_(layer.bias.double() - (mean.double() @ weight).unsqueeze(1))
    return folded.eval()
