"""The value network ``Q(s, a)`` of arXiv 2605.16344, Section 4.3, in torch.

State: categorical embeddings of the context; a history of N actions (item embedding, action type, age)
through a Transformer, mean-pooled over its real length; the user embedding; an MLP makes the state
vector. The action enters as min-max normalised weights (Eq. 6) through a one-layer MLP. Backbone of
three blocks BatchNorm → Linear → ReLU. One sigmoid head per objective (Eq. 7):
``Q_m(s, a) = σ(head_m(backbone([state(s), action(a)])))``. :class:`NetworkConfig` also knows cheaper
parts, which a distilled network is made of (:mod:`ray_train.distil`).

It lives in this room because both training (``ray_train``) and export need it; the serving side never
imports it.

Shape legend: B batch, A actions, M objectives, P scalarizations, W controlled weights, S state width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from triton_models.action_heads import BackboneHead, GridHead
from triton_models.committee import CommitteeHead
from triton_models.network_config import NetworkConfig
from triton_models.plain_encoder import PlainEncoder
from triton_models.state_encoder import StateEncoder
from triton_models.surface import Surface


class ValueNetwork(nn.Module):
    """``Q_m(s, a) = E[r_m | s, a]`` for every objective m, of one surface."""

    action_grid_AW: Tensor

    def __init__(self, surface: Surface, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: StateEncoder | PlainEncoder
        self.head: BackboneHead | GridHead | CommitteeHead
        plain = PlainEncoder(surface) if config.encoder == "plain" else None
        self.encoder = plain or StateEncoder(surface, config)
        if plain is not None and config.action_head == "committee":
            self.head = CommitteeHead(surface, config, plain)
        elif config.action_head == "backbone":
            self.head = BackboneHead(surface, config)
        else:
            self.head = GridHead(surface, config, config.state_width if plain is None else plain.width)
        grid = torch.from_numpy(surface.normalized_actions).to(torch.float32)
        self.register_buffer("action_grid_AW", grid, persistent=False)

    def start_at(self, logits: Tensor) -> None:
        """Begin with a constant answer, as logits: base rates [M], or [A, M] where the head can."""
        self.head.start_at(logits)

    def member_logits(self, state: Mapping[str, Tensor], action_BW: Tensor) -> Tensor:
        """Every member's logits [E, B, M], which training compares with rewards; E = 1 without members."""
        if isinstance(self.head, CommitteeHead):
            return self.head.member_logits(self.encoder(state), action_BW)
        return self.logits(state, action_BW).unsqueeze(0)

    def logits(self, state: Mapping[str, Tensor], action_BW: Tensor) -> Tensor:
        """Head outputs before the sigmoid, [B, M], for one normalised action per request."""
        out: Tensor = self.head(self.encoder(state), action_BW)
        return out

    def forward(self, state: Mapping[str, Tensor], action_BW: Tensor) -> Tensor:
        """Q values in (0, 1), [B, M], for one normalised action per request."""
        return torch.sigmoid(self.logits(state, action_BW))

    def action_values(self, state: Mapping[str, Tensor]) -> Tensor:
        """Q values of every grid action, [B, A, M]; evaluation mode only."""
        if self.training:
            raise RuntimeError("action_values needs evaluation mode: BatchNorm must use running statistics")
        out: Tensor = torch.sigmoid(self.head.for_all_actions()(self.encoder(state)))
        return out


def greedy_actions(q_BAM: Tensor, scalarization_PM: Tensor) -> Tensor:
    """``a*(s; λ) = argmax_a Σ_m λ_m Q_m(s, a)`` for every λ in a sweep: action numbers [B, P]."""
    score_BPA = torch.matmul(scalarization_PM, q_BAM.transpose(1, 2))
    return score_BPA.max(dim=-1).indices  # argmax, which takes three times as long on a CPU
