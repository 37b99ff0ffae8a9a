"""The request state as plain features: nothing is learned here, so nothing can be learned wrongly.

For history entries ``x_n = [item embedding, one-hot action type]`` of age ``t_n`` and the age bands
``b = [0, 1 h), [1 h, 1 day), [1 day, ∞)``::

    state = [user embedding, one-hot context, Σ_{n: t_n in b} x_n for every band b]

Sums and not means: evidence about what the session is for adds up. The bands are "this session, today,
before"; where rewards are few, finer ones cost more than they told in the simulated feed.

Shape legend: B batch, N history length, E item embedding, T action types, G age bands, D features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from triton_models.surface import Surface

BAND_EDGES_S = (0.0, 3_600.0, 86_400.0)
"""Begins of the age bands; each ends where the next begins."""


class PlainEncoder(nn.Module):
    """State tensors (:func:`triton_models.tensors.state_specs`) → features [B, D], without parameters."""

    begin_G: Tensor
    end_G: Tensor
    types_T: Tensor
    words_D: Tensor
    field_D: Tensor

    def __init__(self, surface: Surface) -> None:
        super().__init__()
        state = surface.state
        # Code 0, unknown, is all zeros.
        pairs = [
            (f, code) for f, words in enumerate(state.context.values()) for code in range(1, len(words) + 1)
        ]
        self.has_context = bool(pairs)
        if pairs:
            self._keep("field_D", torch.tensor([field for field, _ in pairs]))
            self._keep("words_D", torch.tensor([code for _, code in pairs]))
        self.lasting = state.user_embedding + len(pairs)
        """Features before the history's: who asks, and where."""
        self.width = self.lasting
        self.has_history = state.history is not None
        if state.history is not None:
            bands = len(BAND_EDGES_S)
            self._keep("begin_G", torch.tensor(BAND_EDGES_S))
            self._keep("end_G", torch.tensor((*BAND_EDGES_S[1:], float("inf"))))
            self._keep("types_T", torch.arange(1, len(state.history.actions) + 1))
            self.width += bands * (state.history.embedding + len(state.history.actions))

    def _keep(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def forward(self, state: Mapping[str, Tensor]) -> Tensor:
        """See the module."""
        user_BD = state["user_embedding"]
        parts = [user_BD]
        if self.has_context:
            chosen_BD = state["context"][:, self.field_D] == self.words_D
            parts.append(chosen_BD.to(user_BD.dtype))
        if self.has_history:
            parts.append(self._history(state, user_BD.dtype))
        return torch.cat(parts, dim=1)

    def _history(self, state: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        age_BN1, action_BN1 = state["history_age_s"].unsqueeze(-1), state["history_action"].unsqueeze(-1)
        inside_BNG = (age_BN1 >= self.begin_G.to(age_BN1.dtype)) & (age_BN1 < self.end_G.to(age_BN1.dtype))
        used_BNG = (inside_BNG & (action_BN1 > 0)).to(dtype)
        entry_BNV = torch.cat([state["history_embedding"], (action_BN1 == self.types_T).to(dtype)], dim=2)
        return torch.matmul(used_BNG.transpose(1, 2), entry_BNV).flatten(1)
