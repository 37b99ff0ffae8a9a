"""The served module as an ONNX file that old and new Triton servers load."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from triton_models.config_pbtxt import LARGEST_BATCH
from triton_models.errors import ConfigurationError, ParityError
from triton_models.network import ValueNetwork
from triton_models.parity import Inputs
from triton_models.served import ServedValueNetwork
from triton_models.surface import Surface
from triton_models.tensors import input_specs, output_specs

OPSET = 20
"""Newest operator set that the ONNX Runtime 1.19 of Triton 24.10 loads with IR 10."""
IR_VERSION = 10


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its own deprecations and optional passes; none of them is the caller's."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def to_onnx(surface: Surface, network: ValueNetwork, dtype: torch.dtype = torch.float32) -> bytes:
    """Export the served module: opset ≤ 20, IR ≤ 10, every tensor with a dynamic batch dimension.

    Raises:
        ConfigurationError: a package of the export is missing.
        ParityError: the graph is not what Triton's older ONNX Runtime loads.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(f"export needs {error.name}; pip install 'prl-puts[train]'") from error
    module = ServedValueNetwork(surface, network, dtype).eval()
    specs = input_specs(surface)
    example = tuple(torch.from_numpy(array) for array in example_inputs(surface, 2).values())
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            example,
            input_names=[spec.name for spec in specs],
            output_names=[spec.name for spec in output_specs(surface)],
            dynamic_shapes=(tuple({0: batch} for _ in specs),),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ParityError("torch.onnx.export returned no program")
    model = program.model_proto
    _strip(model)
    model.ir_version = min(model.ir_version, IR_VERSION)
    opset = max(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    if opset > OPSET:
        raise ParityError(f"the exporter used opset {opset}, Triton 24.10 loads up to {OPSET}")
    for tensor in (*model.graph.input, *model.graph.output):
        if not tensor.type.tensor_type.shape.dim[0].dim_param:
            raise ParityError(f"the exporter fixed the batch dimension of {tensor.name}")
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _strip(model: Any) -> None:
    """Remove what the exporter notes for debugging: stack traces with paths of this machine."""
    del model.metadata_props[:]
    for item in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]


def example_inputs(surface: Surface, batch: int) -> Inputs:
    """An anonymous request, ``batch`` times: zeros, and every objective alike."""
    inputs: Inputs = {}
    for spec in input_specs(surface):
        fill = 1 if spec.name == "scalarization" else 0
        inputs[spec.name] = np.full((batch, *spec.shape), fill, dtype=spec.dtype)
    return inputs
