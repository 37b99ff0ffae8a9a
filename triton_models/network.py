"""The value network ``Q(s, a)`` of arXiv 2605.16344, Section 4.3, in torch.

State: categorical embeddings of the context; a history of N actions (item embedding, action type, age)
through a Transformer, mean-pooled over its real length; the user embedding; an MLP makes the state
vector. The action enters as min-max normalised weights (Eq. 6) through a one-layer MLP. Backbone of
three blocks BatchNorm → Linear → ReLU. One sigmoid head per objective (Eq. 7):
``Q_m(s, a) = σ(head_m(backbone([state(s), action(a)])))``.

It lives in this room because both training (``ray_train``) and export need it; the serving side never
imports it.

Shape legend: B batch, A actions, M objectives, W controlled weights, N history length, E item
embedding, D user embedding, C context fields, H transformer width, S state width.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from triton_models.surface import HistorySpec, Surface

Width = Annotated[int, Field(ge=1, le=4096)]

MASKED = -1e9
"""Added to attention logits of padding; finite, so that an empty history does not become NaN."""


class NetworkConfig(BaseModel):
    """Sizes of the value network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    context_width: Width = 8
    """Embedding width of each context field."""
    history_width: Width = 32
    """Transformer width, H."""
    history_layers: Annotated[int, Field(ge=0, le=12)] = 1
    history_heads: Annotated[int, Field(ge=1, le=32)] = 2
    user_width: Width = 32
    state_width: Width = 64
    """Width of the state vector, S."""
    action_width: Width = 16
    backbone_width: Width = 128
    backbone_blocks: Annotated[int, Field(ge=1, le=8)] = 3

    @model_validator(mode="after")
    def _heads_divide_width(self) -> NetworkConfig:
        if self.history_width % self.history_heads:
            raise ValueError(
                f"history_width ({self.history_width}) must be a multiple of "
                f"history_heads ({self.history_heads})"
            )
        return self


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and feed-forward, with plain operations so that it exports anywhere."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )

    def forward(self, x_BNH: Tensor, bias_B11N: Tensor) -> Tensor:
        batch, length, width = x_BNH.shape
        qkv = self.qkv(self.attention_norm(x_BNH)).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias_B11N)
        x_BNH = x_BNH + self.projection(mixed.transpose(1, 2).reshape(batch, length, width))
        out: Tensor = x_BNH + self.feed_forward(x_BNH)
        return out


class HistoryEncoder(nn.Module):
    """History tensors → one vector per request: Transformer, mean-pooled over the real length."""

    def __init__(self, spec: HistorySpec, config: NetworkConfig) -> None:
        super().__init__()
        width = config.history_width
        self.item = nn.Linear(spec.embedding, width)
        self.action = nn.Embedding(len(spec.actions) + 1, width)
        self.age = nn.Linear(1, width)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, config.history_heads) for _ in range(config.history_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, embedding_BNE: Tensor, action_BN: Tensor, age_s_BN: Tensor) -> Tensor:
        real_BN = (action_BN > 0).to(embedding_BNE.dtype)
        # Ages span seconds to months: log-scaled to about [0, 2].
        age_BN1 = torch.log1p(age_s_BN.clamp(min=0.0)).unsqueeze(-1) / 8.0
        x_BNH = self.item(embedding_BNE) + self.action(action_BN) + self.age(age_BN1)
        bias_B11N = ((1.0 - real_BN) * MASKED)[:, None, None, :]
        for block in self.blocks:
            x_BNH = block(x_BNH, bias_B11N)
        x_BNH = self.norm(x_BNH) * real_BN.unsqueeze(-1)
        length_B1 = real_BN.sum(dim=1, keepdim=True).clamp(min=1.0)
        pooled: Tensor = x_BNH.sum(dim=1) / length_B1
        return pooled


class StateEncoder(nn.Module):
    """State tensors (:func:`triton_models.tensors.state_specs`) → state vector [B, S]."""

    def __init__(self, surface: Surface, config: NetworkConfig) -> None:
        super().__init__()
        state = surface.state
        self.user = nn.Linear(state.user_embedding, config.user_width)
        width = config.user_width
        self.history: HistoryEncoder | None = None
        if state.history is not None:
            self.history = HistoryEncoder(state.history, config)
            width += config.history_width
        self.context = nn.ModuleList(
            nn.Embedding(len(words) + 1, config.context_width) for words in state.context.values()
        )
        width += config.context_width * len(self.context)
        self.mix = nn.Sequential(
            nn.Linear(width, config.state_width), nn.ReLU(), nn.Linear(config.state_width, config.state_width)
        )

    def forward(self, state: Mapping[str, Tensor]) -> Tensor:
        parts = [functional.relu(self.user(state["user_embedding"]))]
        if self.history is not None:
            parts.append(
                self.history(state["history_embedding"], state["history_action"], state["history_age_s"])
            )
        for i, embedding in enumerate(self.context):
            parts.append(embedding(state["context"][:, i]))
        mixed: Tensor = self.mix(torch.cat(parts, dim=1))
        return mixed


class BackboneBlock(nn.Module):
    """BatchNorm → Linear → ReLU, the paper's order; in evaluation the first two are one affine map."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width_in)
        self.linear = nn.Linear(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.linear(self.norm(x)))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight [out, in] and bias [out] of ``Linear(BatchNorm(x))`` with the running statistics."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None  # BatchNorm1d tracks them by default
        scale = self.norm.weight / torch.sqrt(variance + self.norm.eps)
        shift = self.norm.bias - mean * scale
        weight = self.linear.weight
        return weight * scale, self.linear.bias + weight @ shift


class ValueNetwork(nn.Module):
    """``Q_m(s, a) = E[r_m | s, a]`` for every objective m, of one surface."""

    action_grid_AW: Tensor

    def __init__(self, surface: Surface, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = StateEncoder(surface, config)
        self.action = nn.Linear(len(surface.controlled), config.action_width)
        widths = [config.state_width + config.action_width] + [config.backbone_width] * config.backbone_blocks
        self.backbone = nn.Sequential(*(BackboneBlock(a, b) for a, b in pairwise(widths)))
        self.heads = nn.Linear(config.backbone_width, len(surface.objectives))
        grid = torch.from_numpy(surface.normalized_actions).to(torch.float32)
        self.register_buffer("action_grid_AW", grid, persistent=False)

    def embed_actions(self, action_BW: Tensor) -> Tensor:
        """Normalised weights [B, W] → action vectors (the one-layer MLP of Section 4.3)."""
        return functional.relu(self.action(action_BW))

    def logits(self, state: Mapping[str, Tensor], action_BW: Tensor) -> Tensor:
        """Head outputs before the sigmoid, [B, M], for one normalised action per request."""
        features = torch.cat([self.encoder(state), self.embed_actions(action_BW)], dim=1)
        out: Tensor = self.heads(self.backbone(features))
        return out

    def forward(self, state: Mapping[str, Tensor], action_BW: Tensor) -> Tensor:
        """Q values in (0, 1), [B, M], for one normalised action per request."""
        return torch.sigmoid(self.logits(state, action_BW))

    def action_values(self, state: Mapping[str, Tensor]) -> Tensor:
        """Q values of every grid action, [B, A, M]; evaluation mode only.

        The first backbone layer is affine in [state, action], so its state half is computed once per
        request and its action half once per call: A actions do not cost A states.
        """
        if self.training:
            raise RuntimeError("action_values needs evaluation mode: BatchNorm must use running statistics")
        state_BS = self.encoder(state)
        first, *rest = self.backbone
        assert isinstance(first, BackboneBlock)
        weight, bias = first.folded()
        width = state_BS.shape[1]
        state_half = functional.linear(state_BS, weight[:, :width], bias)
        action_half = functional.linear(self.embed_actions(self.action_grid_AW), weight[:, width:])
        x = functional.relu(state_half[:, None, :] + action_half[None, :, :])
        for block in rest:
            assert isinstance(block, BackboneBlock)
            x = functional.relu(functional.linear(x, *block.folded()))
        return torch.sigmoid(self.heads(x))


def greedy_actions(q_BAM: Tensor, scalarization_PM: Tensor) -> Tensor:
    """``a*(s; λ) = argmax_a Σ_m λ_m Q_m(s, a)`` for every λ in a sweep: action numbers [B, P]."""
    return torch.einsum("bam,pm->bpa", q_BAM, scalarization_PM).argmax(dim=-1)
