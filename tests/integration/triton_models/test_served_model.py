"""The exported value network in the running server: same answers as torch, one request at a time."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.integration.triton_models.conftest import Exported
from tests.support.inference import infer, infer_together, row
from tests.support.onnx_models import TABLE
from triton_models.export import parity_cases, reference_outputs
from triton_models.parity import compare
from triton_models.runs import load_run
from triton_models.server import EmbeddedServer
from triton_models.surface import Surface
from triton_models.tensors import VALUE_NETWORK, input_specs, output_specs


@pytest.fixture(scope="module")
def cases(surface: Surface) -> dict[str, np.ndarray]:
    return parity_cases(surface, random_cases=60, seed=7)


@pytest.fixture(scope="module")
def expected(surface: Surface, exported: Exported, cases: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return reference_outputs(surface, load_run(exported.run).load_network(), cases)


def pieces(arrays: dict[str, np.ndarray], size: int) -> list[dict[str, np.ndarray]]:
    total = len(arrays["scalarization"])
    return [{n: a[i : i + size] for n, a in arrays.items()} for i in range(0, total, size)]


def joined(answers: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


@pytest.mark.parametrize("batch", [1, 16])
def test_running_server_equals_torch(
    surface: Surface, client: Any, cases: dict[str, Any], expected: dict[str, Any], batch: int
) -> None:
    got = joined([infer(client, VALUE_NETWORK, piece) for piece in pieces(cases, batch)])
    assert compare(surface, expected, got) <= 1e-5
    assert len(np.unique(got["action"])) > 1, "a network that always says the same would pass anything"


def test_rows_of_one_batch_have_their_own_scalarization(
    surface: Surface, client: Any, cases: dict[str, Any]
) -> None:
    lambdas = np.array([[1, 0], [0, 1], [0.5, 0.5], [20, 60]], dtype=np.float32)
    batch = {name: np.repeat(array[:1], len(lambdas), axis=0) for name, array in cases.items()}
    batch["scalarization"] = lambdas
    got = infer(client, VALUE_NETWORK, batch)
    for i, q_AM in enumerate(got["action_values"]):
        scores_A = q_AM @ (lambdas[i] / lambdas[i].sum())
        assert scores_A[got["action"][i, 0]] == pytest.approx(scores_A.max(), abs=1e-6)
        np.testing.assert_array_equal(got["values"][i], q_AM[got["action"][i, 0]])
        np.testing.assert_allclose(got["weights"][i], surface.actions[got["action"][i, 0]], rtol=1e-6)
    np.testing.assert_allclose(got["action_values"], got["action_values"][:1].repeat(4, axis=0), atol=1e-6)


def test_bad_requests_fail_alone(client: Any, cases: dict[str, Any], expected: dict[str, Any]) -> None:
    """Each of these lands in one dynamic batch with good requests around it."""
    spoils = {
        "user_embedding: holds NaN or infinity": ("user_embedding", np.nan),
        "history_embedding: holds NaN or infinity": ("history_embedding", np.inf),
        "scalarization: holds NaN": ("scalarization", np.nan),
        "scalarization: entries must be >= 0": ("scalarization", -1.0),
        "and not all zero": ("scalarization", 0.0),
        "history_action: codes must lie in 0..2": ("history_action", 3),
        "context: codes must lie in 0..2/2": ("context", -1),
    }
    requests, problems = [], []
    for i in range(140):
        request = {name: array.copy() for name, array in row(cases, i % 60).items()}
        problem = None
        if i % 5 == 2:
            problem = list(spoils)[(i // 5) % len(spoils)]
            name, value = spoils[problem]
            request[name][:] = value
        requests.append(request)
        problems.append(problem)
    answers = infer_together(client, VALUE_NETWORK, requests)
    for i, (problem, answer) in enumerate(zip(problems, answers, strict=True)):
        if problem is None:
            assert not isinstance(answer, str), answer
            np.testing.assert_allclose(
                answer["action_values"][0], expected["action_values"][i % 60], rtol=0, atol=1e-5
            )
        else:
            assert isinstance(answer, str) and problem in answer


def test_only_requested_outputs_are_sent(client: Any, cases: dict[str, Any]) -> None:
    assert set(infer(client, VALUE_NETWORK, row(cases, 0), ["weights", "action"])) == {"weights", "action"}
    assert set(infer(client, VALUE_NETWORK, row(cases, 0))) == {
        "weights",
        "action",
        "values",
        "action_values",
    }


def test_concurrent_requests_share_a_batch(client: Any, cases: dict[str, Any]) -> None:
    def counts() -> tuple[int, int]:
        stats = client.get_inference_statistics(VALUE_NETWORK).model_stats[0]
        return stats.inference_count, stats.execution_count

    # A client that a busy machine keeps from sending leaves nothing to join: it may try again.
    for _ in range(5):
        inferences, executions = counts()
        answers = infer_together(client, VALUE_NETWORK, [row(cases, i % 60) for i in range(300)])
        assert not [answer for answer in answers if isinstance(answer, str)]
        after_inferences, after_executions = counts()
        assert after_inferences - inferences == 300
        if after_executions - executions < 200:
            return
    pytest.fail("300 concurrent requests never shared a batch")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: {**a, "user_embedding": a["user_embedding"][:, :-1]},
        lambda a: {**a, "scalarization": np.ones((1, 3), dtype=np.float32)},
        lambda a: {**a, "scalarization": np.ones((1, 2), dtype=np.int64)},
        lambda a: {name: array for name, array in a.items() if name != "context"},
        lambda a: {name: np.repeat(array, 65, axis=0) for name, array in a.items()},
        lambda a: {**a, "user_embedding": np.repeat(a["user_embedding"], 2, axis=0)},
    ],
    ids=["short", "objectives", "type", "absent", "batch", "ragged"],
)
def test_wrong_tensors_are_protocol_errors(
    client: Any, server: EmbeddedServer, cases: dict[str, Any], spoil: Any
) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException):
        infer(client, VALUE_NETWORK, spoil(row(cases, 0)))
    assert server.probe(30.0), server.problem


def test_protocol_says_where_the_model_comes_from(client: Any, surface: Surface, exported: Exported) -> None:
    config = client.get_model_config(VALUE_NETWORK, as_json=True)["config"]
    parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
    assert Surface.from_dict(json.loads(parameters["surface"])) == surface
    assert parameters["surface_fingerprint"] == surface.fingerprint
    assert parameters["run_id"] == exported.report.run_id
    assert json.loads(parameters["data_window"])["rows_train"] == 0
    metadata = client.get_model_metadata(VALUE_NETWORK)
    for specs, tensors in (
        (input_specs(surface), metadata.inputs),
        (output_specs(surface), metadata.outputs),
    ):
        told = {t.name: (t.datatype, tuple(t.shape[1:])) for t in tensors}
        assert told == {spec.name: (spec.datatype, spec.shape) for spec in specs}


@pytest.mark.parametrize(("model", "status"), [("checked", "INVALID_ARGUMENT"), ("unchecked", "INTERNAL")])
def test_a_request_that_breaks_a_rule_is_told_from_a_server_that_fails(
    client: Any, model: str, status: str
) -> None:
    from tritonclient.utils import InferenceServerException

    wrong = {"x": np.ones((1, 1), dtype=np.float32), "code": np.array([[9]], dtype=np.int64)}
    with pytest.raises(InferenceServerException) as caught:
        infer(client, model, wrong)
    assert caught.value.status() == f"StatusCode.{status}"


@pytest.mark.parametrize("model", ["checked", "unchecked"])
def test_lengths_mix_and_a_failing_run_costs_only_its_request(client: Any, model: str) -> None:
    """``y = TABLE[code] · x``; x of lengths 1..3 in one dynamic batch, code 9 does not exist."""
    requests, expected = [], []
    for i in range(90):
        x = np.arange(1, 2 + i % 3, dtype=np.float32)[None, :] + i
        code = 9 if i % 10 == 4 else i % 4
        requests.append({"x": x, "code": np.array([[code]], dtype=np.int64)})
        expected.append(None if code == 9 else TABLE[code] * x)
    for want, answer in zip(expected, infer_together(client, model, requests), strict=True):
        if want is None:
            assert isinstance(answer, str)
            assert ("codes must lie in 0..3" if model == "checked" else "ONNX Runtime") in answer
        else:
            assert not isinstance(answer, str), answer
            np.testing.assert_allclose(answer["y"], want, rtol=1e-6)
            np.testing.assert_allclose(answer["total"], want.sum(axis=1, keepdims=True), rtol=1e-6)
