"""State vector → Q of actions: the half of the value network that knows the weight grid.

Both heads answer two questions: the logits of one action per request, for any weights (training), and
the logits of every grid action (choice).

Shape legend: B batch, A actions, M objectives, W controlled weights, S state width, H backbone width.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from triton_models.network_config import NetworkConfig
from triton_models.surface import Surface


class BackboneBlock(nn.Module):
    """BatchNorm → Linear → ReLU, the paper's order; in evaluation the first two are one affine map."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width_in)
        self.linear = nn.Linear(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.linear(self.norm(x)))

    def folded(self) -> nn.Linear:
        """``Linear(BatchNorm(x))`` with the running statistics as one layer.

        Computed in float64, so that folding itself loses nothing.
        """
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None  # BatchNorm1d tracks them by default
        with torch.no_grad():
            scale = self.norm.weight.double() / torch.sqrt(variance.double() + self.norm.eps)
            shift = self.norm.bias.double() - mean.double() * scale
            weight = self.linear.weight.double()
            return linear_layer(weight * scale, self.linear.bias.double() + weight @ shift)


def linear_layer(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A float32 layer with given parameters on their device."""
    # Uninitialised: drawing parameters only to overwrite them costs time in every scoring pass.
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta").to_empty(device=weight.device)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer.eval()


def composed(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """``second(first(x))`` as one layer, computed in float64."""
    with torch.no_grad():
        weight = second.weight.double()
        return linear_layer(
            weight @ first.weight.double(), weight @ first.bias.double() + second.bias.double()
        )


def _blocks(widths: list[int]) -> nn.Sequential:
    return nn.Sequential(*(BackboneBlock(a, b) for a, b in pairwise(widths)))


class BackboneHead(nn.Module):
    """The paper's (Section 4.3): [state, embedded action] → backbone → one output per objective."""

    action_grid_AW: Tensor

    def __init__(self, surface: Surface, config: NetworkConfig) -> None:
        super().__init__()
        self.action = nn.Linear(len(surface.controlled), config.action_width)
        width = config.backbone_width
        self.backbone = _blocks([config.state_width + config.action_width] + [width] * config.backbone_blocks)
        self.heads = nn.Linear(width, len(surface.objectives))
        grid = torch.from_numpy(surface.normalized_actions).to(torch.float32)
        self.register_buffer("action_grid_AW", grid, persistent=False)

    def embed_actions(self, action_BW: Tensor) -> Tensor:
        """Normalised weights → action vectors (a one-layer MLP)."""
        return functional.relu(self.action(action_BW))

    def forward(self, state_BS: Tensor, action_BW: Tensor) -> Tensor:
        features = torch.cat([state_BS, self.embed_actions(action_BW)], dim=1)
        out: Tensor = self.heads(self.backbone(features))
        return out

    def all_actions(self, state_BS: Tensor) -> Tensor:
        """Logits of every grid action, [B, A, M], also in training: B x A rows through the backbone."""
        actions = len(self.action_grid_AW)
        tiled = state_BS.repeat_interleave(actions, dim=0)
        out: Tensor = self(tiled, self.action_grid_AW.repeat(len(state_BS), 1))
        return out.reshape(len(state_BS), actions, -1)

    def start_at(self, logits: Tensor) -> None:
        """Begin with a constant answer: the base rates [M], or the mean of those of every action [A, M]."""
        with torch.no_grad():
            self.heads.bias.copy_(logits.reshape(-1, len(self.heads.bias)).mean(dim=0))

    def for_all_actions(self) -> SplitBackbone:
        """The folded module that answers for every grid action."""
        return SplitBackbone(self)


class SplitBackbone(nn.Module):
    """A :class:`BackboneHead` in evaluation, for every grid action at once: [B, S] → logits [B, A, M].

    The first backbone layer is affine in [state, action]: its state half is computed once per request,
    its action half is a constant, one row per action. A actions do not cost A states.
    """

    action_half_AH: Tensor
    state_half: nn.Linear

    def __init__(self, head: BackboneHead) -> None:
        super().__init__()
        layers = [block.folded() for block in head.backbone if isinstance(block, BackboneBlock)]
        with torch.no_grad():
            weight = layers[0].weight
            width = weight.shape[1] - head.action.out_features
            embedded = head.embed_actions(head.action_grid_AW).double()
            half = embedded @ weight[:, width:].double().T
            self.register_buffer("action_half_AH", half.float())
            self.state_half = linear_layer(weight[:, :width], layers[0].bias)
        self.rest = nn.ModuleList(layers[1:])
        self.heads = head.heads

    def absorb(self, before: nn.Linear) -> None:
        """Take in the linear layer that makes the state vector: two affine maps in a row are one."""
        self.state_half = composed(before, self.state_half)

    @property
    def last(self) -> nn.Linear:
        """The layer that makes logits; may have a wider number format than the others."""
        return self.heads

    def forward(self, state_BS: Tensor) -> Tensor:
        x = functional.relu(self.state_half(state_BS)[:, None, :] + self.action_half_AH[None, :, :])
        for layer in self.rest:
            x = functional.relu(layer(x))
        out: Tensor = self.heads(x.to(self.heads.weight.dtype))
        return out


class GridHead(nn.Module):
    """The state alone through the backbone, then one output per objective and grid action.

    Weights between grid points are answered by multilinear interpolation of the logits. Costs the
    backbone once per request instead of once per action.
    """

    def __init__(self, surface: Surface, config: NetworkConfig, state_width: int) -> None:
        super().__init__()
        self.points = [weight.points for weight in surface.controlled]
        self.shape = (surface.num_actions, len(surface.objectives))
        width = config.backbone_width
        self.backbone = _blocks([state_width] + [width] * config.backbone_blocks)
        self.table = nn.Linear(width, surface.num_actions * len(surface.objectives))

    def forward(self, state_BS: Tensor, action_BW: Tensor) -> Tensor:
        return torch.einsum("ba,bam->bm", self._shares(action_BW), self.all_actions(state_BS))

    def all_actions(self, state_BS: Tensor) -> Tensor:
        """Logits of every grid action, [B, A, M], also in training."""
        out: Tensor = self.table(self.backbone(state_BS)).reshape(-1, *self.shape)
        return out

    def _shares(self, action_BW: Tensor) -> Tensor:
        """Share of every grid action in the interpolation; row-major, so one-hot on the grid itself."""
        shares = action_BW.new_ones((action_BW.shape[0], 1))  # len() would fix the batch of an export
        for i, points in enumerate(self.points):
            grid = torch.arange(points, dtype=action_BW.dtype, device=action_BW.device)
            position = action_BW[:, i, None] * (points - 1)
            hat = functional.relu(1.0 - (position - grid).abs())
            shares = (shares[:, :, None] * hat[:, None, :]).flatten(1)
        return shares

    def start_at(self, logits: Tensor) -> None:
        """Begin with a constant answer: the base rates [M], or those of every action [A, M]."""
        with torch.no_grad():
            self.table.bias.copy_(logits.expand(self.shape).flatten())

    def for_all_actions(self) -> FoldedGrid:
        """The folded module that answers for every grid action."""
        return FoldedGrid(self)


class FoldedGrid(nn.Module):
    """A :class:`GridHead` in evaluation, for every grid action at once: [B, S] → logits [B, A, M]."""

    def __init__(self, head: GridHead) -> None:
        super().__init__()
        self.shape = head.shape
        self.layers = nn.ModuleList(
            block.folded() for block in head.backbone if isinstance(block, BackboneBlock)
        )
        self.table = head.table

    def absorb(self, before: nn.Linear) -> None:
        """Take in the linear layer that makes the state vector: two affine maps in a row are one."""
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        self.layers[0] = composed(before, first)

    @property
    def last(self) -> nn.Linear:
        """The layer that makes logits; may have a wider number format than the others."""
        return self.table

    def forward(self, state_BS: Tensor) -> Tensor:
        x = state_BS
        for layer in self.layers:
            x = functional.relu(layer(x))
        out: Tensor = self.table(x.to(self.table.weight.dtype)).reshape(-1, *self.shape)
        return out
