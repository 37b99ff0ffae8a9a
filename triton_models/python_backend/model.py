"""Triton Python-backend model: ONNX Runtime inside, serving the ``model.onnx`` beside this file.

Self-contained on purpose: Triton's stub runs it, in an interpreter that may not have our package. All
requests of one ``execute`` call go through one ONNX Runtime run; each is checked alone beforehand, and
a bad one is answered with its own error while the others are served.

Parameters of ``config.pbtxt``: ``input_rules`` (JSON, input name → ``finite`` | ``simplex`` |
``codes:K`` | ``codes:K1,K2,…``) and ``intra_op_threads``.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

Arrays = dict[str, Any]


class InputCheck:
    """One input's rule, read once: the checks are a good part of what a small request costs here."""

    def __init__(self, name: str, rule: str) -> None:
        self.name = name
        self.rule = rule
        codes = rule.startswith("codes:")
        largest = [int(size) for size in rule.removeprefix("codes:").split(",")] if codes else []
        self.largest = np.array(largest, dtype=np.uint64)

    def problem(self, value: Any) -> str | None:
        """What is wrong with this input of one request, or None."""
        if self.largest.size:
            # Seen without its sign, a negative code is larger than any vocabulary.
            if (value.view(np.uint64) > self.largest).any():
                return f"{self.name}: codes must lie in 0..{'/'.join(map(str, self.largest))}"
            return None
        flat = value.ravel()
        # A finite sum of squares has finite terms: one call instead of two, and a third of their time.
        if not math.isfinite(np.dot(flat, flat)) and not np.isfinite(value).all():
            return f"{self.name}: holds NaN or infinity"
        # Not the sum, which may overflow where the graph, dividing by the maximum first, does not.
        if self.rule == "simplex" and ((value < 0).any() or (value.max(axis=-1) <= 0).any()):
            return f"{self.name}: entries must be >= 0 and not all zero in any row"
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
        rules = json.loads(parameters.get("input_rules", "{}"))
        self.checks = [InputCheck(name, rule) for name, rule in rules.items()]
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
            # One walk: get_input_tensor_by_name would search all inputs for each.
            arrays = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
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

    def _problem(self, arrays: Arrays) -> str | None:
        for check in self.checks:
            problem = check.problem(arrays[check.name])
            if problem is not None:
                return problem
        return None

    def _run_group(self, requests: list[Any], members: list[tuple[int, Arrays]], answers: list[Any]) -> None:
        wanted = {position: set(requests[position].requested_output_names()) for position, _ in members}
        names = [name for name in self.outputs if any(name in asked for asked in wanted.values())]
        feed = members[0][1]
        if len(members) > 1:
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
