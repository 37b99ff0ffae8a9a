"""Everybody who is timed makes the same choice; whoever does not is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.cost.compiling import RECOMPILES, compiled, no_silent_fallback
from benchmarks.cost.contestants import (
    CHOICE,
    OUTPUTS,
    Contestant,
    agreement,
    check_contestants,
    choice_inputs,
    file_contestants,
    onnx_contestant,
    torch_contestant,
    torch_threads,
    why_not_compiled,
)
from benchmarks.cost.device_runs import bind_onnx, matrix_precision_kept
from benchmarks.cost.gpu import gpu_contestants
from benchmarks.cost.naive import NAIVE_EXPORTS, as_tensors, choice_module, naive_network
from benchmarks.cost.networks import Subject, untrained_network
from tests.integration.benchmarks.test_cost_counting import subject_of, surface_of
from triton_models.errors import BenchmarkError
from triton_models.export import parity_cases, reference_outputs
from triton_models.network_config import NetworkConfig
from triton_models.onnx_export import to_onnx
from triton_models.parity import Inputs
from triton_models.served import ServedValueNetwork
from triton_models.surface import Surface

SMALL: dict[str, Any] = {"history_width": 8, "state_width": 6, "user_width": 5, "backbone_width": 9}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the measurement runs; two threads that wait for each other on a busy machine take for ever."""
    with torch_threads(1):
        yield


def module_contestant(subject: Subject, kind: Any) -> Contestant:
    """A naive arrangement in eager torch: the mathematics without the seconds of an export."""
    module = choice_module(ServedValueNetwork(subject.surface, naive_network(subject.network, kind)))

    def outputs(inputs: Inputs) -> Inputs:
        with torch.no_grad():
            return {name: x.numpy() for name, x in zip(OUTPUTS, module(*as_tensors(inputs)), strict=True)}

    return Contestant(
        key=kind, label=kind, network=subject.key, bind=lambda inputs: lambda: None, outputs=outputs
    )


@settings(max_examples=8)
@given(
    history=st.integers(0, 6),
    weights=st.integers(1, 3),
    objectives=st.integers(1, 4),
    context=st.integers(0, 2),
    encoder=st.sampled_from(["transformer", "pooling"]),
    head=st.sampled_from(["backbone", "grid"]),
)
def test_contestants_agree_on_random_surfaces(
    history: int, weights: int, objectives: int, context: int, encoder: Any, head: Any
) -> None:
    surface = surface_of(history, weights, objectives, context)
    config = NetworkConfig(history_encoder=encoder, action_head=head, **SMALL)
    subject = subject_of(surface, config)
    everybody = (
        torch_contestant("eager", "eager", subject, compiled=False),
        *(module_contestant(subject, kind) for kind in NAIVE_EXPORTS),
    )
    found = check_contestants(everybody, (subject,), random_cases=8)
    assert {key: item.difference <= 1e-5 for key, item in found.items()} == dict.fromkeys(found, True)
    assert len(found) == 3


def test_a_committee_can_be_measured(surface: Surface) -> None:
    """Exported too: its head asks a question about its parameters that a graph cannot."""
    config = NetworkConfig(encoder="plain", action_head="committee", members=2, **SMALL)
    subject = subject_of(surface, config)
    found = [
        onnx_contestant(kind, kind, subject.key, to_onnx(surface, network), threads=1)
        for kind, network in {
            "ours": subject.network,
            "B": naive_network(subject.network, "B"),
        }.items()
    ]
    for item in check_contestants(tuple(found), (subject,), random_cases=8).values():
        assert item.difference <= 1e-5


def rows_seen(subject: Subject, kind: Any, batch: int) -> tuple[set[int], set[int]]:
    """Rows that the encoder's first layer and the BatchNorms see in one choice."""
    arranged = subject.network if kind is None else naive_network(subject.network, kind)
    module = choice_module(ServedValueNetwork(subject.surface, arranged))
    encoded: set[int] = set()
    normalised: set[int] = set()
    for name, part in module.named_modules():
        if name.endswith("encoder.user"):
            part.register_forward_hook(lambda _, args, out: encoded.add(len(args[0])))
        elif isinstance(part, torch.nn.BatchNorm1d):
            part.register_forward_hook(lambda _, args, out: normalised.add(len(args[0])))
    with torch.no_grad():
        module(*as_tensors(choice_inputs(subject, batch)))
    return encoded, normalised


def test_naive_exports_do_the_naive_work(surface: Surface) -> None:
    """Nine actions, four requests: A encodes every pair, B encodes requests, ours normalises nothing."""
    config = NetworkConfig(**SMALL)
    assert rows_seen(subject_of(surface, config), "A", 4) == ({36}, {36})
    assert rows_seen(subject_of(surface, config), "B", 4) == ({4}, {36})
    assert rows_seen(subject_of(surface, config), None, 4) == ({4}, set())


def test_a_graph_of_one_batch_size_is_refused() -> None:
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "fixed", [value[0]], [value[1]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    with pytest.raises(BenchmarkError, match="fixed: exported for one batch size only"):
        onnx_contestant("x", "fixed", "ours", bytes(model.SerializeToString()), threads=1)


def test_a_wrong_contestant_is_refused(surface: Surface) -> None:
    subject = subject_of(surface, NetworkConfig(**SMALL))
    other = replace(subject, network=untrained_network(surface, NetworkConfig(**SMALL), seed=5))
    wrong = replace(torch_contestant("eager", "somebody else", other, compiled=False), network=subject.key)
    with pytest.raises(BenchmarkError, match=r"^somebody else: refused, .*differ"):
        check_contestants((wrong,), (subject,))


def test_a_contestant_that_answers_another_action_is_refused(surface: Surface) -> None:
    subject = subject_of(surface, NetworkConfig(**SMALL))
    honest = torch_contestant("eager", "eager", subject, compiled=False)

    def outputs(inputs: Inputs) -> Inputs:
        right = honest.outputs(inputs)
        worst = right["action_values"].sum(axis=2).argmin(axis=1)[:, None]
        rows = np.arange(len(worst))
        values = right["action_values"][rows, worst[:, 0]]
        weights = surface.actions.astype(np.float32)[worst[:, 0]]
        return {**right, "action": worst, "weights": weights, "values": values}

    cases = parity_cases(surface, random_cases=8)
    expected = reference_outputs(surface, subject.network, cases)
    assert agreement(honest, subject, expected, cases).same_action == 1.0
    with pytest.raises(BenchmarkError, match="chooses action"):
        agreement(replace(honest, outputs=outputs), subject, expected, cases)


def test_a_missing_compiler_is_said_in_one_line(surface: Surface) -> None:
    def bind(inputs: Inputs) -> Any:
        def call() -> object:
            raise RuntimeError("no C++ compiler\nand a long story")

        return call

    subject = subject_of(surface, NetworkConfig(**SMALL))
    broken = replace(torch_contestant("compile", "compile", subject, compiled=False), bind=bind)
    assert why_not_compiled(broken, subject) == "RuntimeError: no C++ compiler"
    assert why_not_compiled(torch_contestant("e", "e", subject, compiled=False), subject) is None


def test_torch_gets_its_threads_back() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_device_contestants_agree_on_the_cpu(surface: Surface) -> None:
    subject = subject_of(surface, NetworkConfig(**SMALL))
    cases = parity_cases(surface, random_cases=16)
    expected = reference_outputs(surface, subject.network, cases)
    with matrix_precision_kept():
        everybody = gpu_contestants((subject,), "cpu", modes=("eager", "graph"))
        # No CUDA graphs and no TF32 on a CPU; naive ones in float32 only.
        assert [c.key for c in everybody] == [
            "A/float32/eager", "B/float32/eager", "ours/float32/eager", "ours/bfloat16/eager"
        ]  # fmt: skip
        # 7 does not divide the number of cases: the last part is filled up, and cut off again.
        found = {c.key: agreement(c.checked(7), subject, expected, cases) for c in everybody}
        bound = everybody[2].bind(choice_inputs(subject, 3))
        answers: Any = bound.call()
    assert {item.cases for item in found.values()} == {len(cases["scalarization"])}
    assert found["ours/float32/eager"].difference <= 1e-5
    assert 1e-5 < found["ours/bfloat16/eager"].difference <= 3e-2
    assert [tuple(answer.shape) for answer in answers] == [(3, 2), (3, 1), (3, 2)]
    assert np.array_equal(answers[1].numpy(), bound.outputs()["action"])
    # Another precision is a copy: the subject's own network is what it was.
    assert next(subject.network.parameters()).dtype == torch.float32


def test_onnx_runtime_bound_to_a_device() -> None:
    """y = relu(x) is not our model, but the binding neither knows nor cares; names are the served ones."""
    from onnx import TensorProto, helper

    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2])

    nodes = [helper.make_node("Relu", ["x"], [name]) for name in OUTPUTS]
    graph = helper.make_graph(nodes, "g", [value("x")], [value(name) for name in OUTPUTS])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    inputs = {"x": np.array([[-1.0, 2.0]], dtype=np.float32)}
    bound = bind_onnx(bytes(model.SerializeToString()), inputs, "cpu")
    answers: Any = bound.call()
    assert [answer.tolist() for answer in answers] == [[[0.0, 2.0]]] * len(CHOICE)
    inputs["x"][:] = 3.0
    bound.call()
    assert bound.outputs()["action_values"].tolist() == [[3.0, 3.0]]
    with pytest.raises(RuntimeError, match="no CUDAExecutionProvider"):
        bind_onnx(b"", inputs, "cuda")


def test_an_exported_file_joins_within_its_tolerance(tmp_path: Path) -> None:
    surface = surface_of(0, 1, 1, 0)
    subject = subject_of(surface, NetworkConfig(action_head="grid", **SMALL))
    nearby = replace(subject, network=copy.deepcopy(subject.network))
    with torch.no_grad():
        nearby.network.head.table.bias.add_(0.01)  # type: ignore[union-attr]
    (tmp_path / "model.onnx").write_bytes(to_onnx(surface, nearby.network))
    for tolerance, fits in ((0.02, True), (1e-5, False)):
        (found,) = file_contestants([tmp_path / "model.onnx"], subject, threads=1, tolerance=tolerance)
        assert found.key == "file1"
        with nullcontext() if fits else pytest.raises(BenchmarkError, match="refused"):
            check_contestants((found,), (subject,))


def test_compilations_have_code_of_their_own() -> None:
    """Else torch counts those of all contestants together and silently stops compiling after eight."""
    import torch._dynamo.config as dynamo

    one, other = (compiled(torch.nn.Identity()) for _ in range(2))
    codes = [function._torchdynamo_orig_callable.__code__ for function in (one, other)]  # type: ignore[attr-defined]
    assert codes[0] is not codes[1]
    with no_silent_fallback():
        assert dynamo.recompile_limit == RECOMPILES and dynamo.fail_on_recompile_limit_hit
    assert not dynamo.fail_on_recompile_limit_hit
