"""ONNX stand-ins with known answers: which action and which order they give can be said beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from triton_models.repository import publish_model
from triton_models.surface import Surface
from triton_models.tensors import VALUE_NETWORK, TensorSpec, input_specs, output_specs, state_specs

KINDS = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64}


def _info(spec: TensorSpec) -> object:
    shape = ["batch", *("n" if size < 0 else size for size in spec.shape)]
    return helper.make_tensor_value_info(spec.name, KINDS[spec.datatype], shape)


def _bytes(nodes: list, inputs: tuple, outputs: tuple, constants: dict[str, np.ndarray]) -> bytes:
    graph = helper.make_graph(
        nodes,
        "stand-in",
        [_info(spec) for spec in inputs],
        [_info(spec) for spec in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def publish_value_network(repository: Path, surface: Surface) -> None:
    """Chooses action floor(λ_0 * (A - 1)); its values are all 0.5."""
    objectives, actions = len(surface.objectives), surface.num_actions
    nodes = [
        helper.make_node("Slice", ["scalarization", "zero", "one", "axis"], ["first"]),
        helper.make_node("Mul", ["first", "scale"], ["scaled"]),
        helper.make_node("Cast", ["scaled"], ["action"], to=TensorProto.INT64),
        helper.make_node("Gather", ["grid", "action"], ["weights_3d"], axis=0),
        helper.make_node("Squeeze", ["weights_3d", "axis"], ["weights"]),
        helper.make_node("Mul", ["scalarization", "nought"], ["zeros"]),
        helper.make_node("Add", ["zeros", "half"], ["values"]),
        helper.make_node("Unsqueeze", ["values", "axis"], ["values_3d"]),
        helper.make_node("Tile", ["values_3d", "repeats"], ["action_values"]),
    ]
    constants = {
        "zero": np.array([0]),
        "one": np.array([1]),
        "axis": np.array([1]),
        "scale": np.array([actions - 1], dtype=np.float32),
        "grid": surface.actions.astype(np.float32),
        "nought": np.zeros(objectives, dtype=np.float32),
        "half": np.full(objectives, 0.5, dtype=np.float32),
        "repeats": np.array([1, actions, 1]),
    }
    inputs, outputs = input_specs(surface), output_specs(surface)
    publish_model(
        repository,
        name=VALUE_NETWORK,
        onnx_bytes=_bytes(nodes, inputs, outputs, constants),
        inputs=inputs,
        outputs=outputs,
        parameters={
            "surface": json.dumps(surface.to_dict()),
            "surface_fingerprint": surface.fingerprint,
            "run_id": "stand-in",
        },
        input_rules={"scalarization": "finite"},
    )


def publish_ranker(repository: Path, surface: Surface) -> None:
    """The first controlled head scores id / 1e6, all other heads score nothing: best are the largest ids."""
    heads = len(surface.heads)
    nodes = [
        helper.make_node("Cast", ["candidate_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["ids", "last"], ["ids_3d"]),
        helper.make_node("Mul", ["ids_3d", "scale"], ["scores"]),
    ]
    scale = np.zeros(heads, dtype=np.float32)
    scale[0] = 1e-6
    state = tuple(s for s in state_specs(surface) if s.name in ("user_embedding", "context"))
    inputs = (*state, TensorSpec("candidate_ids", "INT64", (-1,)))
    outputs = (TensorSpec("scores", "FP32", (-1, heads)),)
    publish_model(
        repository,
        name="ranker",
        onnx_bytes=_bytes(nodes, inputs, outputs, {"last": np.array([2]), "scale": scale}),
        inputs=inputs,
        outputs=outputs,
    )
