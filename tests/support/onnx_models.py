"""Tiny ONNX models made by hand, whose answers are known beforehand."""

from __future__ import annotations

import numpy as np

from triton_models.tensors import TensorSpec

TABLE = np.array([1.0, 10.0, 100.0, 1000.0], dtype=np.float32)

TABLE_INPUTS = (TensorSpec("x", "FP32", (-1,)), TensorSpec("code", "INT64", (1,)))
TABLE_OUTPUTS = (TensorSpec("y", "FP32", (-1,)), TensorSpec("total", "FP32", (1,)))


def table_model() -> bytes:
    """``y = TABLE[code] · x`` and ``total = Σ y``; x of variable length, codes outside 0..3 fail."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Gather", ["table", "code"], ["factor"]),
        helper.make_node("Mul", ["x", "factor"], ["y"]),
        helper.make_node("ReduceSum", ["y", "axis"], ["total"], keepdims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "table",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length"]),
            helper.make_tensor_value_info("code", TensorProto.INT64, ["batch", 1]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length"]),
            helper.make_tensor_value_info("total", TensorProto.FLOAT, ["batch", 1]),
        ],
        [
            numpy_helper.from_array(TABLE, "table"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())
