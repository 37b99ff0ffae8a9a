"""The module that is exported: the value network with its structure used and its choice inside.

``a* = argmax_a Σ_m λ_m Q_m(s, a)`` (arXiv 2605.16344, Eq. 5 generalised), from the request's tensors to
the chosen weights in one graph:

* BatchNorm is folded into the linears (``Linear(BatchNorm(x))`` is one affine map in evaluation);
* the first backbone layer is affine in [state, action], so it is split: the state half is computed once
  per request, the action half is a constant of the graph, one row per grid action;
* λ may have any scale; argmax and the look-up of the weights are in the graph.

Rows are independent, and a bad row must not spoil its batch where no Python checks it (the
``onnxruntime`` backend): codes outside a vocabulary count as unknown (0), and a row with NaN, infinity
or an impossible λ answers weights NaN and action -1, which no client can mistake for a choice.

Shape legend: B batch, A actions, M objectives, W controlled weights, S state width, K backbone width.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from triton_models.network import ValueNetwork
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


class ServedValueNetwork(nn.Module):
    """Inputs in the order of ``input_specs``; outputs weights, action, values, action_values.

    ``dtype`` is what the network calculates in; the tensors outside, the ages up to their logarithm, the
    last layer and the choice stay in float32.
    """

    actions_AW: Tensor
    context_codes_C: Tensor

    def __init__(self, surface: Surface, network: ValueNetwork, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        if network.training:
            raise ValueError("the network must be in evaluation mode: export uses running statistics")
        self.input_names = [spec.name for spec in input_specs(surface)]
        self.state_names = [spec.name for spec in state_specs(surface)]
        # Copies, so that the network that was given keeps its own precision.
        self.encoder = copy.deepcopy(network.encoder).to(dtype)
        self.head = copy.deepcopy(network.head.for_all_actions()).to(dtype)
        self.head.last.float()  # the best actions differ by less than a half-precision logit can say
        history = surface.state.history
        self.history_codes = len(history.actions) if history is not None else 0
        sizes = [len(words) for words in surface.state.context.values()]
        self.register_buffer("context_codes_C", torch.tensor(sizes, dtype=torch.int64))
        self.register_buffer("actions_AW", torch.from_numpy(surface.actions).float())

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See the class."""
        tensors = dict(zip(self.input_names, inputs, strict=True))
        q_BAM = torch.sigmoid(self.head(self.encoder(self._prepared(tensors))).float())
        scaled_BM, possible_B1 = _scaled(tensors["scalarization"])
        score_BA = torch.matmul(q_BAM, scaled_BM.unsqueeze(-1)).squeeze(-1)
        action_B1 = torch.argmax(score_BA, dim=1, keepdim=True)
        picked_B11 = action_B1.unsqueeze(-1).expand(-1, 1, q_BAM.shape[2])
        values_BM = torch.gather(q_BAM, 1, picked_B11).squeeze(1)
        # Looked for in the inputs: on a GPU a ReLU turns NaN into 0, and the score would look like one.
        state_sum_B1 = self._state_sum(tensors)
        good_B1 = possible_B1 & _finite(state_sum_B1 + torch.gather(score_BA, 1, action_B1))
        weights_BW = torch.where(good_B1, self.actions_AW[action_B1.squeeze(1)], torch.nan)
        return weights_BW, torch.where(good_B1, action_B1, -1), values_BM, q_BAM

    def _state_sum(self, tensors: dict[str, Tensor]) -> Tensor:
        """Not a number where any of a row's inputs is none."""
        names = [name for name in self.state_names if tensors[name].is_floating_point()]
        sums = [tensors[name].flatten(1).sum(dim=1, keepdim=True) for name in names]
        return torch.stack(sums).sum(dim=0)

    def _prepared(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        state = {name: tensors[name] for name in self.state_names}
        for name in ("user_embedding", "history_embedding"):
            if name in state:
                state[name] = state[name].to(self.dtype)
        if "history_action" in state:
            state["history_action"] = _known(state["history_action"], self.history_codes)
        if "context" in state:
            state["context"] = _known(state["context"], self.context_codes_C)
        return state


def _known(codes: Tensor, largest: Tensor | int) -> Tensor:
    return torch.where((codes >= 0) & (codes <= largest), codes, 0)


def _finite(x: Tensor) -> Tensor:
    return (x - x) == 0


def _scaled(scalarization_BM: Tensor) -> tuple[Tensor, Tensor]:
    """λ over its maximum, and whether no entry was negative.

    The choice is the same for any positive multiple of λ; this one can neither overflow nor vanish. All
    zeros, NaN and infinity become NaN.
    """
    scaled_BM = scalarization_BM / scalarization_BM.amax(dim=1, keepdim=True)
    return scaled_BM, scalarization_BM.amin(dim=1, keepdim=True) >= 0
