"""Request state → state vector: the half of the value network that sees the request.

Shape legend: B batch, N history length, E item embedding, T action types with padding, V values of an
entry, H history width, K learned queries, S state width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from triton_models.network_config import NetworkConfig
from triton_models.surface import HistorySpec, Surface

MASKED = -3e4
"""Added to attention logits of padding: ``exp`` of it is 0 in every format, and it is a number in each, so
that an empty history does not become NaN."""


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


class TransformerHistory(nn.Module):
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
        x_BNH = (
            self.item(embedding_BNE)
            + self.action(action_BN)
            + self.age(_scaled_age(age_s_BN, embedding_BNE.dtype))
        )
        bias_B11N = ((1.0 - real_BN) * MASKED)[:, None, None, :]
        for block in self.blocks:
            x_BNH = block(x_BNH, bias_B11N)
        x_BNH = self.norm(x_BNH) * real_BN.unsqueeze(-1)
        length_B1 = real_BN.sum(dim=1, keepdim=True).clamp(min=1.0)
        pooled: Tensor = x_BNH.sum(dim=1) / length_B1
        return pooled


class PooledHistory(nn.Module):
    """History tensors → one vector per request: attention pooling by K learned queries.

    Pooling by multi-head attention of Lee et al. (Set Transformer, ICML 2019), one head per query, with
    the entries themselves as keys and values: an entry is its item embedding, its action type (one-hot)
    and its age; every query weights the entries by ``softmax_n(u_k · entry_n)``, and the K weighted means
    go through one linear layer. ``2 N K (E + types + 2)`` multiplications instead of the Transformer's
    ``N H (8 H + 2 N)`` a layer. Padding is a type of its own, whose weight is fixed at minus a lot; an
    empty history is the mean of padding, so nothing divides by zero.
    """

    codes: Tensor
    padding_K1: Tensor

    def __init__(self, spec: HistorySpec, config: NetworkConfig) -> None:
        super().__init__()
        codes, pools = len(spec.actions) + 1, config.history_pools
        values = spec.embedding + codes + 1
        self.register_buffer("codes", torch.arange(codes), persistent=False)
        self.register_buffer("padding_K1", torch.full((pools, 1), MASKED), persistent=False)
        self.item = nn.Linear(spec.embedding, pools, bias=False)
        self.other = nn.Linear(codes, pools, bias=False)
        self.mix = nn.Linear(pools * values, config.history_width)

    def take_age_scale(self) -> None:
        """Expect the logarithm of the age unscaled from now on: one operation less where each counts."""
        values = self.mix.in_features // self.item.out_features
        with torch.no_grad():
            self.other.weight[:, -1] /= AGE_SCALE
            self.mix.weight[:, values - 1 :: values] /= AGE_SCALE

    def forward(self, embedding_BNE: Tensor, action_BN: Tensor, age_s_BN: Tensor) -> Tensor:
        type_BNT = (action_BN.unsqueeze(-1) == self.codes).to(embedding_BNE.dtype)
        return self.pool(embedding_BNE, type_BNT, _scaled_age(age_s_BN, embedding_BNE.dtype))

    def pool(self, embedding_BNE: Tensor, type_BNT: Tensor, age_BN1: Tensor) -> Tensor:
        """The same, from action types that are one-hot and ages that are scaled already."""
        entry_BNV = torch.cat([embedding_BNE, type_BNT, age_BN1], dim=2)
        query_KV = torch.cat([self.item.weight, self.padding_K1, self.other.weight], dim=1)
        share_BKN = torch.softmax(query_KV @ entry_BNV.transpose(1, 2), dim=2)
        out: Tensor = functional.relu(self.mix((share_BKN @ entry_BNV).flatten(1)))
        return out


AGE_SCALE = 8.0
"""Brings log-ages to about [0, 2]."""


def log_age(age_s_BN: Tensor, dtype: torch.dtype) -> Tensor:
    """Ages span seconds to months, more than float16 holds: their logarithm first, [B, N, 1]."""
    return torch.log1p(age_s_BN.clamp(min=0.0)).unsqueeze(-1).to(dtype)


def _scaled_age(age_s_BN: Tensor, dtype: torch.dtype) -> Tensor:
    return (log_age(age_s_BN, torch.float32) / AGE_SCALE).to(dtype)


HISTORY_ENCODERS: dict[str, type[TransformerHistory] | type[PooledHistory]] = {
    "transformer": TransformerHistory,
    "pooling": PooledHistory,
}


class StateEncoder(nn.Module):
    """State tensors (:func:`triton_models.tensors.state_specs`) → state vector [B, S]."""

    def __init__(self, surface: Surface, config: NetworkConfig) -> None:
        super().__init__()
        state = surface.state
        self.user = nn.Linear(state.user_embedding, config.user_width)
        width = config.user_width
        self.history: TransformerHistory | PooledHistory | None = None
        if state.history is not None:
            self.history = HISTORY_ENCODERS[config.history_encoder](state.history, config)
            width += config.history_width
        self.context = nn.ModuleList(
            nn.Embedding(len(words) + 1, config.context_width) for words in state.context.values()
        )
        width += config.context_width * len(self.context)
        self.mix = nn.Sequential(
            nn.Linear(width, config.state_width), nn.ReLU(), nn.Linear(config.state_width, config.state_width)
        )

    def take_last(self) -> nn.Linear:
        """Give away the linear layer that makes the state vector, for whoever comes next to absorb."""
        *rest, last = self.mix
        assert isinstance(last, nn.Linear)
        self.mix = nn.Sequential(*rest)
        return last

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
