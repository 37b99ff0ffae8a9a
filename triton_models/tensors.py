"""The one tensor specification of the served models.

``config.pbtxt``, the export signature, the clients and the request encoding are all made from what
these functions return, so that they cannot drift apart. Shapes exclude the batch dimension.

Shape legend: D user embedding, N history length, E history item embedding, C context fields,
M objectives, W controlled weights, A actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from triton_models.surface import Surface

Datatype = Literal["FP32", "INT64"]

VALUE_NETWORK = "value_network"
"""Name of the value network's Triton model."""

NUMPY_DTYPES: dict[Datatype, type[np.generic]] = {"FP32": np.float32, "INT64": np.int64}


@dataclass(frozen=True)
class TensorSpec:
    """Name, KServe v2 datatype and shape of one tensor; -1 in a shape is a variable dimension."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]

    @property
    def dtype(self) -> type[np.generic]:
        """NumPy type of the tensor."""
        return NUMPY_DTYPES[self.datatype]

    @property
    def triton_type(self) -> str:
        """Triton's name of the type in ``config.pbtxt``."""
        return f"TYPE_{self.datatype}"


def state_specs(surface: Surface) -> tuple[TensorSpec, ...]:
    """Tensors that encode one request state; absent parts of the state have no tensor."""
    state = surface.state
    specs = [TensorSpec("user_embedding", "FP32", (state.user_embedding,))]
    if state.history is not None:
        length, embedding = state.history.length, state.history.embedding
        specs += [
            TensorSpec("history_embedding", "FP32", (length, embedding)),
            TensorSpec("history_action", "INT64", (length,)),
            TensorSpec("history_age_s", "FP32", (length,)),
        ]
    if state.context:
        specs.append(TensorSpec("context", "INT64", (len(state.context),)))
    return tuple(specs)


def input_specs(surface: Surface) -> tuple[TensorSpec, ...]:
    """Inputs of the served value network: the state, and λ as the last one."""
    return (*state_specs(surface), TensorSpec("scalarization", "FP32", (len(surface.objectives),)))


def output_specs(surface: Surface) -> tuple[TensorSpec, ...]:
    """Outputs of the served value network."""
    objectives = len(surface.objectives)
    return (
        TensorSpec("weights", "FP32", (len(surface.controlled),)),
        TensorSpec("action", "INT64", (1,)),
        TensorSpec("values", "FP32", (objectives,)),
        TensorSpec("action_values", "FP32", (surface.num_actions, objectives)),
    )


def specs_as_json(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
    """Specifications as plain data, for model metadata and reports."""
    return [{"name": s.name, "datatype": s.datatype, "shape": list(s.shape)} for s in specs]
