"""The module that is exported: the value network with its structure used and its choice inside.

``a* = argmax_a Σ_m λ_m Q_m(s, a)`` (arXiv 2605.16344, Eq. 5 generalised), from the request's tensors to
the chosen weights in one graph:

* BatchNorm is folded into the linears (``Linear(BatchNorm(x))`` is one affine map in evaluation);
* the first backbone layer is affine in [state, action], so it is split: the state half is computed once
  per request, the action half is a constant of the graph, one row per grid action;
* λ is normalised inside; argmax and the look-up of the weights are in the graph.

Rows are independent, and a bad row must not spoil its batch where no Python checks it (the
``onnxruntime`` backend): codes outside a vocabulary count as unknown (0), and a row with NaN, infinity
or an impossible λ answers weights NaN and action -1, which no client can mistake for a choice.

Shape legend: B batch, A actions, M objectives, W controlled weights, S state width, K backbone width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from triton_models.network import BackboneBlock, ValueNetwork
from triton_models.surface import Surface
from triton_models.tensors import input_specs, state_specs


def input_rules(surface: Surface) -> dict[str, str]:
    """Per-input checks of the Python backend; see :data:`triton_models.config_pbtxt.InputRules`."""
    rules = {"user_embedding": "finite", "scalarization": "simplex"}
    if surface.state.history is not None:
        rules |= {"history_embedding": "finite", "history_age_s": "finite"}
        rules["history_action"] = f"codes:{len(surface.state.history.actions)}"
    if surface.state.context:
        rules["context"] = "codes:" + ",".join(str(len(words)) for words in surface.state.context.values())
    return rules


@dataclass(frozen=True)
class _Affine:
    weight: Tensor
    bias: Tensor


def _folded(block: nn.Module) -> _Affine:
    """``Linear(BatchNorm(x))`` as one affine map, in float64 so that folding itself loses nothing."""
    if not isinstance(block, BackboneBlock):
        raise TypeError(f"expected a BackboneBlock, got {type(block).__name__}")
    norm, linear = block.norm, block.linear
    if norm.running_mean is None or norm.running_var is None:
        raise TypeError("BatchNorm without running statistics cannot be folded")
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    shift = norm.bias.double() - norm.running_mean.double() * scale
    weight = linear.weight.double()
    return _Affine(weight * scale, linear.bias.double() + weight @ shift)


class ServedValueNetwork(nn.Module):
    """Inputs in the order of ``input_specs``; outputs weights, action, values, action_values."""

    actions_AW: Tensor
    context_codes_C: Tensor
    state_weight_KS: Tensor
    state_bias_K: Tensor
    action_half_AK: Tensor

    def __init__(self, surface: Surface, network: ValueNetwork) -> None:
        super().__init__()
        if network.training:
            raise ValueError("the network must be in evaluation mode: export uses running statistics")
        self.input_names = [spec.name for spec in input_specs(surface)]
        self.state_names = [spec.name for spec in state_specs(surface)]
        self.encoder = network.encoder
        self.heads = network.heads
        history = surface.state.history
        self.history_codes = len(history.actions) if history is not None else 0
        sizes = [len(words) for words in surface.state.context.values()]
        self.register_buffer("context_codes_C", torch.tensor(sizes, dtype=torch.int64))
        self.register_buffer("actions_AW", torch.from_numpy(surface.actions).float())
        with torch.no_grad():
            first, *rest = (_folded(block) for block in network.backbone)
            width = network.config.state_width
            action_half = network.embed_actions(network.action_grid_AW).double() @ first.weight[:, width:].T
            self.register_buffer("state_weight_KS", first.weight[:, :width].float().contiguous())
            self.register_buffer("state_bias_K", first.bias.float())
            self.register_buffer("action_half_AK", action_half.float())
            self.rest = nn.ModuleList(_linear(affine) for affine in rest)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See the class."""
        tensors = dict(zip(self.input_names, inputs, strict=True))
        q_BAM = self._action_values(self._known_codes(tensors))
        lambda_BM, possible_B = _on_simplex(tensors["scalarization"])
        action_B = torch.argmax((q_BAM * lambda_BM[:, None, :]).sum(dim=2), dim=1)
        picked_B11 = action_B[:, None, None]
        values_BM = torch.gather(q_BAM, 1, picked_B11.expand(-1, 1, q_BAM.shape[2])).squeeze(1)
        good_B1 = (possible_B & _finite(values_BM.sum(dim=1)))[:, None]
        weights_BW = torch.where(good_B1, self.actions_AW[action_B], torch.nan)
        return weights_BW, torch.where(good_B1, action_B[:, None], -1), values_BM, q_BAM

    def _known_codes(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        state = {name: tensors[name] for name in self.state_names}
        if "history_action" in state:
            state["history_action"] = _known(state["history_action"], self.history_codes)
        if "context" in state:
            state["context"] = _known(state["context"], self.context_codes_C)
        return state

    def _action_values(self, state: dict[str, Tensor]) -> Tensor:
        state_BS = self.encoder(state)
        state_half_BK = functional.linear(state_BS, self.state_weight_KS, self.state_bias_K)
        x = functional.relu(state_half_BK[:, None, :] + self.action_half_AK[None, :, :])
        for linear in self.rest:
            x = functional.relu(linear(x))
        return torch.sigmoid(self.heads(x))


def _linear(affine: _Affine) -> nn.Linear:
    out_features, in_features = affine.weight.shape
    linear = nn.Linear(in_features, out_features)
    linear.weight.copy_(affine.weight)
    linear.bias.copy_(affine.bias)
    return linear


def _known(codes: Tensor, largest: Tensor | int) -> Tensor:
    return torch.where((codes >= 0) & (codes <= largest), codes, 0)


def _finite(x: Tensor) -> Tensor:
    return (x - x) == 0


def _on_simplex(scalarization_BM: Tensor) -> tuple[Tensor, Tensor]:
    """λ on the simplex, and whether that was possible. Dividing by the maximum first cannot overflow."""
    largest_B1 = scalarization_BM.amax(dim=1, keepdim=True)
    scaled_BM = scalarization_BM / largest_B1
    lambda_BM = scaled_BM / scaled_BM.sum(dim=1, keepdim=True)
    possible_B = (scalarization_BM >= 0).all(dim=1) & _finite(lambda_BM.sum(dim=1))
    return lambda_BM, possible_B
