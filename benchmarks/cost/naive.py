"""The exports that a competent engineer writes without using the network's structure.

Both are the same mathematics as :class:`triton_models.served.ServedValueNetwork`, through the same
exporter, with scalarization, argmax and weight look-up in the graph; what differs is what is repeated:

* A: every tensor of the request is tiled once per action, and all of it goes through the full network,
  as the network is trained: ``Q(s, a)`` for B A pairs of (state, action);
* B: the state is encoded once, the state vector is tiled once per action before the backbone.

BatchNorm stays a layer of its own, as it is exported. A committee's answers are shrunk when those of all
actions are there, not once more for every pair.

Shape legend: B batch, A actions, M objectives, S state width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn

from triton_models.committee import CommitteeHead
from triton_models.network import ValueNetwork

Naive = Literal["A", "B"]

NAIVE_EXPORTS: dict[Naive, str] = {
    "A": "naive A: input tiled per action",
    "B": "naive B: state tiled per action",
}


def naive_network(network: ValueNetwork, kind: Naive) -> ValueNetwork:
    """The network with its parts in the places where the export looks for them, but naively arranged."""
    arranged = _TiledInput(network) if kind == "A" else _TiledState(network)
    # Not a ValueNetwork, but all that the export asks of one: encoder, head.for_all_actions(), training.
    return cast(ValueNetwork, arranged.eval())


def _tiled(x: Tensor, times: int) -> Tensor:
    """[B, …] → [B times, …], every row repeated in place."""
    return x[:, None].expand(-1, times, *x.shape[1:]).flatten(0, 1)


class _Head(nn.Module):
    """Whatever comes behind the encoder, for every grid action."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def for_all_actions(self) -> nn.Module:
        """What :class:`triton_models.served.ServedValueNetwork` calls."""
        return self.module


class _Logits(nn.Module):
    """Logits [B, A, M] of every grid action; naive arrangements are float32 throughout."""

    @property
    def last(self) -> nn.Module:
        """The layer that the export keeps in float32, which all of them are."""
        return nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


class _TiledInput(nn.Module):
    def __init__(self, network: ValueNetwork) -> None:
        super().__init__()
        self.config = network.config
        self.encoder = _EncoderOfPairs(network)
        self.head = _Head(_Logits())


class _EncoderOfPairs(nn.Module):
    """The whole network once per (state, action): state tensors → logits [B, A, M]."""

    def __init__(self, network: ValueNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, state: Mapping[str, Tensor]) -> Tensor:
        grid_AW = self.network.action_grid_AW
        batch, actions = state["user_embedding"].shape[0], grid_AW.shape[0]
        pairs = {name: _tiled(x, actions) for name, x in state.items()}
        features = self.network.encoder(pairs)
        return _logits_of_pairs(self.network.head, features, grid_AW.repeat(batch, 1), batch)


class _TiledState(nn.Module):
    def __init__(self, network: ValueNetwork) -> None:
        super().__init__()
        self.config = network.config
        self.encoder = network.encoder
        self.head = _Head(_HeadOfPairs(network.head, network.action_grid_AW))


class _HeadOfPairs(_Logits):
    """The head once per (state vector, action): [B, S] → logits [B, A, M]."""

    grid_AW: Tensor

    def __init__(self, head: nn.Module, grid_AW: Tensor) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("grid_AW", grid_AW, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        state_BS = inputs
        batch, actions = state_BS.shape[0], self.grid_AW.shape[0]
        return _logits_of_pairs(self.head, _tiled(state_BS, actions), self.grid_AW.repeat(batch, 1), batch)


def _logits_of_pairs(head: nn.Module, state: Tensor, action: Tensor, batch: int) -> Tensor:
    """Logits [B, A, M] from a state vector and an action in each of B A rows."""
    if isinstance(head, CommitteeHead):
        every = head.member_logits(state, action).mean(dim=0)
        return head.shrink(every.reshape(batch, -1, every.shape[1]))
    logits: Tensor = head(state, action)
    return logits.reshape(batch, -1, logits.shape[1])


def choice_module(module: nn.Module) -> nn.Module:
    """A module in evaluation mode whose parameters need no gradient."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()


def as_tensors(inputs: Mapping[str, object], device: str = "cpu") -> tuple[Tensor, ...]:
    """Input arrays in their order as tensors on a device."""
    return tuple(torch.as_tensor(array).to(device) for array in inputs.values())
