"""The generic Python-backend model against a fake of Triton's utilities and a model made by hand."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import triton_models
from tests.support.onnx_models import TABLE, TABLE_INPUTS, TABLE_OUTPUTS, table_model
from triton_models.config_pbtxt import ModelSettings, build_config

SOURCE = Path(triton_models.__file__).parent / "python_backend" / "model.py"


class Tensor:
    def __init__(self, name: str, value: np.ndarray) -> None:
        self._name, self.value = name, value

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self.value


@dataclass
class Response:
    output_tensors: list[Tensor]
    error: Any = None


@dataclass
class Request:
    arrays: dict[str, np.ndarray]
    outputs: tuple[str, ...] = ("y", "total")

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, value) for name, value in reversed(self.arrays.items())]

    def requested_output_names(self) -> list[str]:
        return list(self.outputs)


class Error(str):
    INTERNAL, INVALID_ARG = 1, 3
    code: int

    def __new__(cls, message: str, code: int) -> Error:
        made = super().__new__(cls, message)
        made.code = code
        return made


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake = types.ModuleType("triton_python_backend_utils")
    fake.__dict__.update(
        Tensor=Tensor,
        InferenceResponse=Response,
        TritonError=Error,
        TritonModelException=RuntimeError,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake)
    spec = importlib.util.spec_from_file_location("python_backend_model", SOURCE)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def start(module: Any, folder: Path, rules: dict[str, str]) -> Any:
    from google.protobuf import json_format

    (folder / "1").mkdir()
    (folder / "1" / "model.onnx").write_bytes(table_model())
    config = build_config(
        ModelSettings(name="m", inputs=TABLE_INPUTS, outputs=TABLE_OUTPUTS, input_rules=rules)
    )
    text = json.dumps(json_format.MessageToDict(config, preserving_proto_field_name=True))
    model = module.TritonPythonModel()
    model.initialize({"model_config": text, "model_repository": str(folder), "model_version": "1"})
    return model


class Counting:
    """Counts the runs of a session."""

    def __init__(self, session: Any) -> None:
        self.session, self.calls = session, []

    def run(self, names: list[str], feed: dict[str, np.ndarray]) -> Any:
        self.calls.append((tuple(names), feed["x"].shape))
        return self.session.run(names, feed)


def request(x: list[float], code: int, *outputs: str, rows: int = 1) -> Request:
    arrays = {
        "x": np.array([x] * rows, dtype=np.float32),
        "code": np.full((rows, 1), code, dtype=np.int64),
    }
    return Request(arrays, outputs or ("y", "total"))


def test_one_run_for_all_requests_of_one_shape(module: Any, tmp_path: Path) -> None:
    model = start(module, tmp_path, {"x": "finite"})
    model.session = Counting(model.session)
    requests = [request([1, 2], 0), request([3, 4], 2, rows=3), request([5], 1), request([6, 7], 3)]
    answers = model.execute(requests)
    assert sorted(shape for _, shape in model.session.calls) == [(1, 1), (5, 2)]
    for asked, answer in zip(requests, answers, strict=True):
        want = TABLE[asked.arrays["code"]] * asked.arrays["x"]
        got = {tensor.name(): tensor.value for tensor in answer.output_tensors}
        np.testing.assert_allclose(got["y"], want)
        np.testing.assert_allclose(got["total"], want.sum(axis=1, keepdims=True))


def test_nobody_gets_what_was_not_asked_for(module: Any, tmp_path: Path) -> None:
    model = start(module, tmp_path, {})
    model.session = Counting(model.session)
    answers = model.execute([request([1], 0, "total"), request([1], 0, "total")])
    assert model.session.calls == [(("total",), (2, 1))], "an output that nobody wants is not computed"
    answers = model.execute([request([1], 0, "total"), request([1], 0, "y")])
    assert [[t.name() for t in answer.output_tensors] for answer in answers] == [["total"], ["y"]]


def test_a_request_that_breaks_the_joint_run_fails_alone(module: Any, tmp_path: Path) -> None:
    model = start(module, tmp_path, {})
    answers = model.execute([request([1], 0), request([1], 9), request([2], 1)])
    assert [answer.error is None for answer in answers] == [True, False, True]
    assert "ONNX Runtime" in answers[1].error
    assert answers[1].error.code == Error.INTERNAL
    assert answers[2].output_tensors[0].value.tolist() == [[20.0]]


def test_a_bad_request_is_told_by_its_rule(module: Any, tmp_path: Path) -> None:
    model = start(module, tmp_path, {"x": "finite", "code": "codes:3"})
    answers = model.execute([request([1], 0), request([float("nan")], 0), request([1], -1)])
    assert answers[0].error is None
    assert answers[1].error == "x: holds NaN or infinity"
    assert answers[1].error.code == answers[2].error.code == Error.INVALID_ARG
    assert answers[2].error == "code: codes must lie in 0..3"
    assert model.execute([]) == []


@pytest.mark.parametrize(
    ("rule", "value", "good"),
    [
        ("finite", [[1.0, -1e38]], True),
        ("finite", [[1.0, np.inf]], False),
        ("simplex", [[0.0, 3.0]], True),
        ("simplex", np.empty((0, 2)), True),
        ("codes:2", np.empty((0, 2)), True),
        ("codes:2", [[np.iinfo(np.int64).min, 0]], False),
        ("simplex", [[0.0, 0.0]], False),
        ("simplex", [[2.0, -1.0]], False),
        ("simplex", [[1.0, np.nan]], False),
        ("simplex", [[1.0, 0.0], [0.0, 0.0]], False),
        ("codes:2", [[0, 1, 2]], True),
        ("codes:2", [[0, 1, 3]], False),
        ("codes:2,5", [[2, 5]], True),
        ("codes:2,5", [[3, 5]], False),
        ("codes:2,5", [[2, -1]], False),
    ],
)
def test_rules(module: Any, rule: str, value: Any, good: bool) -> None:
    dtype = np.int64 if rule.startswith("codes") else np.float32
    assert (module.InputCheck("x", rule).problem(np.array(value, dtype=dtype)) is None) == good


def test_a_huge_scalarization_is_served(module: Any) -> None:
    """The graph divides by the maximum first, so a sum beyond float32 is no reason to refuse."""
    assert module.InputCheck("x", "simplex").problem(np.array([[3e38, 3e38]], dtype=np.float32)) is None


def test_a_damaged_file_and_a_new_numpy_are_refused(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(module, tmp_path, {})
    (tmp_path / "1" / "model.onnx").write_bytes(b"nonsense")
    text = json.dumps({"input": [], "output": [], "parameters": {}})
    arguments = {"model_config": text, "model_repository": str(tmp_path), "model_version": "1"}
    with pytest.raises(RuntimeError, match="ONNX Runtime cannot load it"):
        module.TritonPythonModel().initialize(arguments)
    monkeypatch.setattr(np, "__version__", "2.1.0")
    with pytest.raises(RuntimeError, match="needs < 2"):
        module.TritonPythonModel().initialize(arguments)
