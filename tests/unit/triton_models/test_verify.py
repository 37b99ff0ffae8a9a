"""What verification compares, without a server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2 as pb

from tests.support.surfaces import small_surface
from triton_models.errors import ConfigurationError
from triton_models.measure import batch_sizes
from triton_models.parity import Cases
from triton_models.remote import ServedModel, Statistics, grpc_address
from triton_models.tensors import TensorSpec, input_specs, output_specs
from triton_models.verify import Evaluated, VerifyReport, identity_differences, tensor_differences

SURFACE = small_surface()
PARAMETERS = {"surface_fingerprint": "f", "run_id": "r", "model_sha256": "s", "metrics": "{}"}


def served(**changes: Any) -> ServedModel:
    fields: dict[str, Any] = {
        "versions": (3,),
        "config": pb.ModelConfig(max_batch_size=8),
        "parameters": PARAMETERS,
        "inputs": input_specs(SURFACE),
        "outputs": output_specs(SURFACE),
    }
    return ServedModel(**(fields | changes))


def evaluated(**changes: Any) -> Evaluated:
    fields: dict[str, Any] = {
        "source": "REPO/value_network/3",
        "version": 3,
        "surface": SURFACE,
        "parameters": PARAMETERS,
        "cases": Cases({"x": np.zeros(1)}, {}),
        "tolerance": 1e-5,
    }
    return Evaluated(**(fields | changes))


def test_the_same_model_differs_in_nothing() -> None:
    assert identity_differences(evaluated(), served()) == []
    assert tensor_differences(SURFACE, served()) == []


@pytest.mark.parametrize("name", PARAMETERS)
def test_each_parameter_counts(name: str) -> None:
    expected = f"{name}: expected {PARAMETERS[name]}, the server says other"
    assert identity_differences(evaluated(), served(parameters=PARAMETERS | {name: "other"})) == [expected]
    without = {key: value for key, value in PARAMETERS.items() if key != name}
    assert identity_differences(evaluated(), served(parameters=without))[0].endswith(
        "the server says nothing"
    )
    assert identity_differences(evaluated(parameters=without), served()) == [], "a run knows no file"


def test_the_version_counts_where_it_is_known() -> None:
    differences = identity_differences(evaluated(), served(versions=(2, 3)))
    assert differences == ["version: expected 3, the server serves 2, 3"]
    assert identity_differences(evaluated(version=None), served(versions=(2,))) == []


def test_long_values_stay_on_one_line() -> None:
    (line,) = identity_differences(evaluated(parameters={"metrics": "x" * 500}), served(parameters={}))
    assert len(line) < 200 and "\n" not in line


def test_tensors() -> None:
    inputs = [spec for spec in input_specs(SURFACE) if spec.name != "context"]
    inputs.append(TensorSpec("more", "FP32", (1,)))
    outputs = [TensorSpec("action", "FP32", (1,)) if s.name == "action" else s for s in output_specs(SURFACE)]
    assert tensor_differences(SURFACE, served(inputs=tuple(inputs), outputs=tuple(outputs))) == [
        "input context: expected INT64 [2], the server has none",
        "input more: expected none, the server has FP32 [1]",
        "output action: expected INT64 [1], the server has FP32 [1]",
    ]
    unbatched = served(config=pb.ModelConfig())
    assert tensor_differences(SURFACE, unbatched) == [
        "max_batch_size: expected at least 1, the server batches nothing"
    ]


@pytest.mark.parametrize(
    ("largest", "expected"), [(1, (1,)), (8, (1, 2, 4, 8)), (12, (1, 2, 4, 8, 12)), (0, (1,))]
)
def test_batch_sizes(largest: int, expected: tuple[int, ...]) -> None:
    assert batch_sizes(largest) == expected


def test_counters_are_differences() -> None:
    before, after = Statistics(1, 2, 3, 4.0, 5.0), Statistics(11, 22, 33, 44.0, 55.0)
    assert after.since(before) == Statistics(10, 20, 30, 40.0, 50.0)


@pytest.mark.parametrize("url", ["host:8001", "grpc://host:8001", "host:8001/"])
def test_addresses(url: str) -> None:
    assert grpc_address(url) == "host:8001"


@pytest.mark.parametrize("url", ["", "host", ":8001", "host:", "host:port", "http://host:8000"])
def test_what_is_no_grpc_address(url: str) -> None:
    with pytest.raises(ConfigurationError, match="expected host:port"):
        grpc_address(url)


def test_the_verdict_is_part_of_the_report() -> None:
    fields: dict[str, Any] = {
        "url": "u",
        "model": "m",
        "source": "s",
        "versions": (1,),
        "run_id": None,
        "surface_fingerprint": None,
        "cases": 0,
        "largest_difference": None,
        "tolerance": 1e-5,
    }
    assert VerifyReport(**fields, differences=()).as_json()["is_evaluated_model"] is True
    assert VerifyReport(**fields, differences=("x",)).as_json()["is_evaluated_model"] is False
