"""Who runs the choice: ONNX Runtime, eager torch, compiled torch; checked before anybody is timed.

Every ONNX contestant runs with the same session options: the given threads, sequential execution, all
graph optimisations, no spinning. A contestant whose answers differ from the network's own definition
(one forward pass per state and action) is refused; a slow one is measured, a wrong one is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cost.compiling import Function
from benchmarks.cost.compiling import compiled as compile_module
from benchmarks.cost.naive import NAIVE_EXPORTS, as_tensors, choice_module, naive_network
from benchmarks.cost.networks import Subject
from triton_models.errors import BenchmarkError, ParityError
from triton_models.export import parity_cases, reference_outputs
from triton_models.onnx_export import to_onnx
from triton_models.parity import VALUE_TOLERANCE, Inputs, compare
from triton_models.served import ServedValueNetwork

CHOICE = ("weights", "action", "values")
"""Outputs that a client asks for."""
OUTPUTS = (*CHOICE, "action_values")


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to make the choice of one network."""

    key: str
    label: str
    network: str
    """Key of the subject whose choice it makes."""
    bind: Callable[[Inputs], Callable[[], object]]
    """Inputs → a call that makes the choice for them."""
    outputs: Callable[[Inputs], Inputs]
    tolerance: float = VALUE_TOLERANCE
    """Largest difference of a value from the network's own."""


def new_session(onnx_bytes: bytes, *, threads: int, provider: str = "CPUExecutionProvider") -> Any:
    """An ONNX Runtime session with the options that all contestants share."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(onnx_bytes, options, providers=[provider])


def onnx_contestant(
    key: str,
    label: str,
    network: str,
    onnx_bytes: bytes,
    *,
    threads: int,
    provider: str = "CPUExecutionProvider",
    tolerance: float = VALUE_TOLERANCE,
) -> Contestant:
    """A graph in ONNX Runtime."""
    session = new_session(onnx_bytes, threads=threads, provider=provider)
    fixed = [item.name for item in session.get_inputs() if isinstance(item.shape[0], int)]
    if fixed:
        # The exporter bakes a batch size in, without a word, where a module asks for a tensor's len().
        raise BenchmarkError(f"{label}: exported for one batch size only (inputs {', '.join(fixed)})")

    def bind(inputs: Inputs) -> Callable[[], object]:
        return lambda: session.run(CHOICE, inputs)

    def outputs(inputs: Inputs) -> Inputs:
        return dict(zip(OUTPUTS, session.run(OUTPUTS, inputs), strict=True))

    return Contestant(key=key, label=label, network=network, bind=bind, outputs=outputs, tolerance=tolerance)


def file_contestants(
    files: Sequence[Path], subject: Subject, *, threads: int, tolerance: float
) -> tuple[Contestant, ...]:
    """Exported files of the subject in other precisions, such as a version's ``model.onnx``.

    Raises:
        BenchmarkError: a file cannot be read, or is no export of a value network.
    """
    found = []
    for number, file in enumerate(files, start=1):
        try:
            graph = file.read_bytes()
        except OSError as error:
            raise BenchmarkError(f"{file}: cannot be read: {error.strerror}") from error
        try:
            contestant = onnx_contestant(
                f"file{number}", str(file), subject.key, graph, threads=threads, tolerance=tolerance
            )
            contestant.outputs(choice_inputs(subject, 2))
        except BenchmarkError:
            raise
        except Exception as error:  # ONNX Runtime has many kinds
            reason = " ".join(str(error).split())[:200]
            raise BenchmarkError(f"{file}: not an export for {subject.surface.name}: {reason}") from error
        found.append(contestant)
    return tuple(found)


def torch_contestant(key: str, label: str, subject: Subject, *, compiled: bool) -> Contestant:
    """The served module in torch on the CPU: structure used, BatchNorm folded once, choice inside."""
    module = choice_module(ServedValueNetwork(subject.surface, subject.network))
    run: Function = compile_module(module) if compiled else module

    def bind(inputs: Inputs) -> Callable[[], object]:
        tensors = as_tensors(inputs)

        def call() -> object:
            with torch.inference_mode():
                return run(*tensors)

        return call

    def outputs(inputs: Inputs) -> Inputs:
        answers: Any = bind(inputs)()
        return {name: tensor.numpy() for name, tensor in zip(OUTPUTS, answers, strict=True)}

    return Contestant(key=key, label=label, network=subject.key, bind=bind, outputs=outputs)


def cpu_contestants(
    subjects: tuple[Subject, ...], *, threads: int, with_compile: bool = True
) -> tuple[tuple[Contestant, ...], Mapping[str, bytes], tuple[str, ...]]:
    """Everybody who runs on the CPU, the served ONNX files by subject, and remarks on who does not."""
    first = subjects[0]
    served = {subject.key: to_onnx(subject.surface, subject.network) for subject in subjects}
    found = [
        onnx_contestant(
            kind,
            label,
            first.key,
            to_onnx(first.surface, naive_network(first.network, kind)),
            threads=threads,
        )
        for kind, label in NAIVE_EXPORTS.items()
    ]
    for subject in subjects:
        found.append(
            onnx_contestant(
                subject.key,
                f"{subject.label}, served ONNX",
                subject.key,
                served[subject.key],
                threads=threads,
            )
        )
    found.append(torch_contestant("eager", "ours in eager torch", first, compiled=False))
    remarks: list[str] = []
    if with_compile:
        compiled = torch_contestant("compile", "ours in torch.compile", first, compiled=True)
        problem = why_not_compiled(compiled, first)
        if problem is None:
            found.append(compiled)
        else:
            remarks.append(f"torch.compile: not measured, compilation failed: {problem}")
    return tuple(found), served, tuple(remarks)


def why_not_compiled(contestant: Contestant, subject: Subject) -> str | None:
    """The first line of what the compiler says, or None."""
    try:
        contestant.bind(choice_inputs(subject, 1))()
    except Exception as error:  # whatever a compiler, a missing one included, may raise
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return None


def choice_inputs(subject: Subject, batch: int, *, seed: int = 1) -> Inputs:
    """Random requests of one batch size."""
    cases = parity_cases(subject.surface, random_cases=batch, seed=seed)
    return {name: np.ascontiguousarray(array[:batch]) for name, array in cases.items()}


@dataclass(frozen=True)
class Agreement:
    """How near a contestant's answers are to the network's own definition."""

    difference: float
    """Largest difference of a value."""
    same_action: float
    """Share of the cases with the same action."""
    cases: int


def check_contestants(
    contestants: tuple[Contestant, ...], subjects: tuple[Subject, ...], *, random_cases: int = 64
) -> dict[str, Agreement]:
    """Compare everybody with the network's own definition, on random and edge inputs.

    Raises:
        BenchmarkError: a contestant answers something else, so its speed means nothing.
    """
    cases = parity_cases(subjects[0].surface, random_cases=random_cases, seed=7)
    expected = {
        subject.key: reference_outputs(subject.surface, subject.network, cases) for subject in subjects
    }
    return {
        contestant.key: agreement(contestant, subjects[0], expected[contestant.network], cases)
        for contestant in contestants
    }


def agreement(contestant: Contestant, subject: Subject, expected: Inputs, cases: Inputs) -> Agreement:
    """Compare one contestant.

    Raises:
        BenchmarkError: it answers something else.
    """
    got = contestant.outputs(cases)
    try:
        difference = compare(subject.surface, expected, got, tolerance=contestant.tolerance)
    except ParityError as error:
        raise BenchmarkError(f"{contestant.label}: refused, {error}") from error
    same = float((got["action"][:, 0] == expected["scores"].argmax(axis=1)).mean())
    return Agreement(difference, same, len(got["action"]))


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Threads of torch's own operations inside the block; ONNX Runtime has its session options."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
