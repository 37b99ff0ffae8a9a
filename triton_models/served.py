"""The module that is exported: the value network with its structure used and its choice inside.

``a* = argmax_a Σ_m λ_m Q_m(s, a)`` (arXiv 2605.16344, Eq. 5 generalised), from the request's tensors to
the chosen weights in one graph:

* BatchNorm is folded into the linears (``Linear(BatchNorm(x))`` is one affine map in evaluation);
* the state vector is made by a linear layer, which the next one absorbs;
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
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from triton_models.action_heads import FoldedGrid, SplitBackbone, linear_layer
from triton_models.committee import FoldedCommittee
from triton_models.network import ValueNetwork
from triton_models.plain_encoder import PlainEncoder
from triton_models.state_encoder import PooledHistory, StateEncoder, log_age
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
    places_AM: Tensor
    """Where an action's values lie in a row of all of them."""

    def __init__(self, surface: Surface, network: ValueNetwork, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        if network.training:
            raise ValueError("the network must be in evaluation mode: export uses running statistics")
        self.input_names = [spec.name for spec in input_specs(surface)]
        self.state_names = [spec.name for spec in state_specs(surface)]
        # Copies, so that the network that was given keeps its own precision.
        encoder, head = copy.deepcopy(network.encoder), copy.deepcopy(network.head.for_all_actions())
        known: ServedStateEncoder | ServedPlainEncoder | KnownCodes
        if isinstance(encoder, StateEncoder) and isinstance(head, SplitBackbone | FoldedGrid):
            head.absorb(encoder.take_last())
            known = ServedStateEncoder(encoder, surface)
        elif isinstance(encoder, PlainEncoder) and isinstance(head, FoldedGrid | FoldedCommittee):
            known = ServedPlainEncoder(encoder)
            head.absorb(known.bands())
        else:
            known = KnownCodes(encoder, surface)
        self.encoder = known.to(dtype)
        self.head = head.to(dtype)
        self.head.last.float()  # the best actions differ by less than a half-precision logit can say
        self.register_buffer("actions_AW", torch.from_numpy(surface.actions).float())
        objectives = len(surface.objectives)
        places = torch.arange(surface.num_actions * objectives)
        self.register_buffer("places_AM", places.reshape(surface.num_actions, objectives))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See the class."""
        tensors = dict(zip(self.input_names, inputs, strict=True))
        q_BAM = torch.sigmoid(self.head(self.encoder(self._prepared(tensors))).float())
        scaled_BM, least_B1 = _scaled(tensors["scalarization"])
        score_BA1 = torch.matmul(q_BAM, scaled_BM.unsqueeze(-1))
        action_B1 = torch.argmax(score_BA1, dim=1)
        action_B = action_B1.squeeze(1)
        # Two look-ups: an index of three dimensions would be expanded first, twice the operations.
        values_BM = torch.gather(q_BAM.flatten(1), 1, functional.embedding(action_B, self.places_AM))
        # Looked for in the inputs: on a GPU a ReLU turns NaN into 0, and the score would look like one.
        total_B1 = self._state_sum(tensors).unsqueeze(1) + score_BA1.sum(dim=1)
        # One comparison for both: what is not finite is NaN less itself, and no number is at least NaN.
        good_B1 = least_B1 >= total_B1 - total_B1
        weights_BW = torch.where(good_B1, functional.embedding(action_B, self.actions_AW), torch.nan)
        return weights_BW, torch.where(good_B1, action_B1, -1), values_BM, q_BAM

    def _state_sum(self, tensors: dict[str, Tensor]) -> Tensor:
        """Not a number where any of a row's inputs is none."""
        floats = [tensors[name] for name in self.state_names if tensors[name].is_floating_point()]
        total_B = floats[0].sum(dim=1)
        for value in floats[1:]:
            total_B = total_B + value.sum(dim=tuple(range(1, value.dim())))
        return total_B

    def _prepared(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        state = {name: tensors[name] for name in self.state_names}
        for name in ("user_embedding", "history_embedding"):
            if name in state:
                state[name] = state[name].to(self.dtype)
        return state


class ServedStateEncoder(nn.Module):
    """A state encoder that looks codes up in tables which know every code.

    A code outside the vocabulary is unknown (0): each table has that row once more at either end, and a
    code is clamped to one place beyond. That is three small operations where a check takes four, and one
    look-up for all context fields. The encoder that it is given is changed: it must be a copy.
    """

    table: Tensor
    largest_C: Tensor
    offset_C: Tensor
    types: Tensor

    def __init__(self, encoder: StateEncoder, surface: Surface) -> None:
        super().__init__()
        self.encoder = encoder
        state = surface.state
        fields = [field for field in encoder.context if isinstance(field, nn.Embedding)]
        tables = [_known_everywhere(field.weight.detach()) for field in fields]
        if tables:
            rows = [len(table) for table in tables]
            offsets = [1 + sum(rows[:i]) for i in range(len(rows))]
            self.register_buffer("table", torch.cat(tables))
            self.register_buffer("largest_C", torch.tensor([count - 2 for count in rows]))
            self.register_buffer("offset_C", torch.tensor(offsets))
        self.codes = len(state.history.actions) if state.history is not None else 0
        self.register_buffer("types", _known_everywhere(torch.eye(self.codes + 1)))
        if isinstance(encoder.history, PooledHistory):
            encoder.history.take_age_scale()

    def forward(self, state: Mapping[str, Tensor]) -> Tensor:
        """State tensors → state vector [B, S]."""
        encoder = self.encoder
        parts = [functional.relu(encoder.user(state["user_embedding"]))]
        if encoder.history is not None:
            parts.append(self._history(encoder.history, state))
        if len(encoder.context):
            code_BC = torch.minimum(state["context"].clamp(min=-1), self.largest_C)
            parts.append(functional.embedding(code_BC + self.offset_C, self.table).flatten(1))
        mixed: Tensor = encoder.mix(torch.cat(parts, dim=1))
        return mixed

    def _history(self, history: nn.Module, state: Mapping[str, Tensor]) -> Tensor:
        embedding, code_BN, age = (
            state[name] for name in ("history_embedding", "history_action", "history_age_s")
        )
        if isinstance(history, PooledHistory):
            place_BN = code_BN.clamp(min=-1, max=self.codes + 1) + 1
            types_BNT = functional.embedding(place_BN, self.types)
            return history.pool(embedding, types_BNT, log_age(age, embedding.dtype))
        out: Tensor = history(embedding, _known(code_BN, self.codes), age)
        return out


def _known_everywhere(table: Tensor) -> Tensor:
    return torch.cat([table[:1], table, table[:1]])


class ServedPlainEncoder(nn.Module):
    """A plain encoder in few operations: codes are looked up, and history is added up *from* an age on.

    The sum over a band of ages is the difference of two such sums (:meth:`bands`), which the next layer takes
    in. A code outside the vocabulary is unknown: no word is equal to it, and the table of types has the row
    of the unknown once more at either end.
    """

    begin_G: Tensor
    table: Tensor
    words_D: Tensor
    field_D: Tensor

    def __init__(self, encoder: PlainEncoder) -> None:
        super().__init__()
        self.lasting, self.width = encoder.lasting, encoder.width
        self.has_context, self.has_history = encoder.has_context, encoder.has_history
        if self.has_context:
            self.register_buffer("field_D", encoder.field_D)
            self.register_buffer("words_D", encoder.words_D)
        if self.has_history:
            self.codes = len(encoder.types_T)
            # Whole numbers, because a day has more seconds than half precision has.
            self.register_buffer("begin_G", encoder.begin_G.long())
            known = torch.eye(self.codes + 1)
            known[0, 0] = 0.0
            known[1:, 0] = 1.0  # first column: whether it is an entry at all
            self.register_buffer("table", _known_everywhere(known))

    def bands(self) -> nn.Linear:
        """What makes features of a :class:`PlainEncoder` out of what this one answers."""
        if not self.has_history:
            return linear_layer(torch.eye(self.width), torch.zeros(self.width))
        bands = len(self.begin_G)
        values = (self.width - self.lasting) // bands  # an entry's item and one-hot type
        item = values - self.codes
        weight = torch.zeros(self.width, self.lasting + bands * (values + 1))
        weight[: self.lasting, : self.lasting] = torch.eye(self.lasting)
        # The entry's further number, whether it is one, is of no use.
        entry = torch.zeros(values, values + 1)
        entry[:item, :item], entry[item:, item + 1 :] = torch.eye(item), torch.eye(self.codes)
        for band in range(bands):
            rows = slice(self.lasting + band * values, self.lasting + (band + 1) * values)
            for place, sign in ((band, 1.0), (band + 1, -1.0)):
                if place < bands:
                    start = self.lasting + place * (values + 1)
                    weight[rows, start : start + values + 1] = sign * entry
        return linear_layer(weight, torch.zeros(self.width))

    def forward(self, state: Mapping[str, Tensor]) -> Tensor:
        """State tensors → [user, context, for every band the sum of entries at least as old as its begin]."""
        parts = [state["user_embedding"]]
        if self.has_context:
            parts.append((state["context"][:, self.field_D] == self.words_D).to(parts[0].dtype))
        if self.has_history:
            place_BN = state["history_action"].clamp(min=-1, max=self.codes + 1) + 1
            type_BNT = functional.embedding(place_BN, self.table)
            age_BN1 = state["history_age_s"].unsqueeze(-1)
            counts_BNG = (age_BN1 >= self.begin_G.to(age_BN1.dtype)).to(type_BNT.dtype) * type_BNT[..., :1]
            entry_BNV = torch.cat([state["history_embedding"], type_BNT], dim=2)
            parts.append(torch.matmul(counts_BNG.transpose(1, 2), entry_BNV).flatten(1))
        return torch.cat(parts, dim=1)


class KnownCodes(nn.Module):
    """Any other encoder, with codes outside the vocabularies made unknown (0) before it."""

    context_codes_C: Tensor

    def __init__(self, encoder: nn.Module, surface: Surface) -> None:
        super().__init__()
        self.encoder = encoder
        history = surface.state.history
        self.codes = len(history.actions) if history is not None else 0
        sizes = [len(words) for words in surface.state.context.values()]
        self.register_buffer("context_codes_C", torch.tensor(sizes, dtype=torch.int64))

    def forward(self, state: Mapping[str, Tensor]) -> Tensor:
        """State tensors → state vector [B, S]."""
        known = dict(state)
        if "history_action" in known:
            known["history_action"] = _known(known["history_action"], self.codes)
        if "context" in known:
            known["context"] = _known(known["context"], self.context_codes_C)
        out: Tensor = self.encoder(known)
        return out


def _known(codes: Tensor, largest: Tensor | int) -> Tensor:
    return torch.where((codes >= 0) & (codes <= largest), codes, 0)


def _scaled(scalarization_BM: Tensor) -> tuple[Tensor, Tensor]:
    """λ over its maximum, and its least entry as it came.

    The choice is the same for any positive multiple of λ; this one can neither overflow nor vanish. All
    zeros, NaN and infinity become NaN.
    """
    scaled_BM = scalarization_BM / scalarization_BM.amax(dim=1, keepdim=True)
    return scaled_BM, scalarization_BM.amin(dim=1, keepdim=True)
