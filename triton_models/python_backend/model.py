"""Triton Python-backend model: ONNX Runtime inside, serving the ``model.onnx`` beside this file.

Self-contained on purpose: Triton's stub runs it, in an interpreter that may not have our package. All
requests of one ``execute`` call go through one ONNX Runtime run; each is checked alone beforehand, and
a bad one is answered with its own error while the others are served.

Parameters of ``config.pbtxt``: ``input_rules`` (JSON, input name → ``finite`` | ``simplex`` |
``codes:K`` | ``codes:K1,K2,…``) and ``intra_op_threads``.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

Arrays = dict[str, Any]


def check_input(name: str, value: Any, rule: str) -> str | None:
    """What is wrong with one input of one request, or None."""
    if rule.startswith("codes:"):
        largest = np.array([int(size) for size in rule.removeprefix("codes:").split(",")])
        if ((value < 0) | (value > largest)).any():
            return f"{name}: codes must lie in 0..{'/'.join(map(str, largest))}"
        return None
    if not np.isfinite(value).all():
        return f"{name}: holds NaN or infinity"
    # Not the sum, which may overflow where the graph, dividing by the maximum first, does not.
    if rule == "simplex" and ((value < 0).any() or (value.max(axis=-1) <= 0).any()):
        return f"{name}: entries must be >= 0 and not all zero in any row"
    return None


class TritonPythonModel:
    """What Triton's stub looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the ONNX file of this version."""
        if int(np.__version__.split(".")[0]) >= 2:
            raise pb_utils.TritonModelException(
                f"NumPy {np.__version__} in Triton's Python stub: outputs would come back empty; needs < 2"
            )
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.rules: dict[str, str] = json.loads(parameters.get("input_rules", "{}"))
        self.inputs = [item["name"] for item in config["input"]]
        self.outputs = [item["name"] for item in config["output"]]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters.get("intra_op_threads", "1"))
        options.inter_op_num_threads = 1
        # Spinning threads take the core from whatever shares the machine with this model.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")  # noqa: PTH118
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise pb_utils.TritonModelException(f"{path}: ONNX Runtime cannot load it: {error}") from error

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request of one dynamic batch."""
        answers: list[Any] = [None] * len(requests)
        groups: dict[tuple[Any, ...], list[tuple[int, Arrays]]] = {}
        for position, request in enumerate(requests):
            arrays = self._read(request)
            problem = self._problem(arrays)
            if problem is not None:
                # The request is wrong, not the server: a caller must not take it for a fault of ours.
                answers[position] = self._error(problem, pb_utils.TritonError.INVALID_ARG)
                continue
            # Only equal shapes behind the batch dimension can be joined.
            key = tuple(arrays[name].shape[1:] for name in self.inputs)
            groups.setdefault(key, []).append((position, arrays))
        for members in groups.values():
            self._run_group(requests, members, answers)
        return answers

    def _read(self, request: Any) -> Arrays:
        return {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}

    def _problem(self, arrays: Arrays) -> str | None:
        for name, rule in self.rules.items():
            problem = check_input(name, arrays[name], rule)
            if problem is not None:
                return problem
        return None

    def _run_group(self, requests: list[Any], members: list[tuple[int, Arrays]], answers: list[Any]) -> None:
        wanted = {position: set(requests[position].requested_output_names()) for position, _ in members}
        names = [name for name in self.outputs if any(name in asked for asked in wanted.values())]
        feed = {name: np.concatenate([arrays[name] for _, arrays in members]) for name in self.inputs}
        try:
            results = dict(zip(names, self.session.run(names, feed), strict=True))
        except Exception as error:
            if len(members) == 1:
                answers[members[0][0]] = self._error(f"ONNX Runtime: {error}")
                return
            # One of them broke the joint run; alone, only the culprit fails.
            for member in members:
                self._run_group(requests, [member], answers)
            return
        start = 0
        for position, arrays in members:
            end = start + len(arrays[self.inputs[0]])
            tensors = [
                pb_utils.Tensor(name, results[name][start:end]) for name in names if name in wanted[position]
            ]
            answers[position] = pb_utils.InferenceResponse(output_tensors=tensors)
            start = end

    def _error(self, message: str, code: int | None = None) -> Any:
        error = pb_utils.TritonError(message, code or pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse(output_tensors=[], error=error)
