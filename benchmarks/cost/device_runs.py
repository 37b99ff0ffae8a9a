"""Runs bound to a device: inputs resident there, pinned copies on the host, captured as CUDA graphs.

With ``device="cpu"`` the same code runs without graphs, which is how it is tested.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.cost.compiling import Function
from benchmarks.cost.contestants import CHOICE, OUTPUTS
from triton_models.parity import Inputs

Precision = Literal["float32", "tf32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")

GRAPH_WARMUP_RUNS = 3
ROUNDS = 7
MOST_RUNS = 5000


@dataclass(frozen=True)
class BoundRun:
    """One way to make the choice, bound to one batch."""

    run: Callable[[], object]
    """Run on the resident inputs; may return before the device is done."""
    call: Callable[[], object]
    """Host → device, run, choice → host."""
    outputs: Callable[[], Inputs]
    """Run, and all outputs on the host."""
    device: str


@contextmanager
def matrix_precision_kept() -> Iterator[None]:
    """Whatever the block does to the process-wide switch ends with it."""
    before = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def set_matrix_precision(precision: Precision) -> None:
    """Whether float32 matrix products may use the tensor cores' TF32."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def bind(function: Function, inputs: Inputs, device: str, precision: Precision, *, graph: bool) -> BoundRun:
    """Put inputs on the device, and capture a graph if asked to."""
    cuda = device.startswith("cuda")
    host = [_host(torch.from_numpy(np.ascontiguousarray(array)), cuda) for array in inputs.values()]
    resident = [tensor.to(device, copy=True) for tensor in host]

    def run() -> tuple[Tensor, ...]:
        # A process-wide switch, and contestants take turns.
        set_matrix_precision(precision)
        with torch.no_grad():
            return function(*resident)

    running = _captured(run) if graph else run
    answers = running()
    chosen = [_host(torch.empty_like(answer, device="cpu"), cuda) for answer in answers[: len(CHOICE)]]

    def call() -> object:
        for inside, outside in zip(resident, host, strict=True):
            inside.copy_(outside, non_blocking=True)
        for outside, answer in zip(chosen, running()[: len(CHOICE)], strict=True):
            outside.copy_(answer, non_blocking=True)
        synchronize(device)
        return chosen

    def outputs() -> Inputs:
        return {name: x.cpu().numpy().copy() for name, x in zip(OUTPUTS, running(), strict=True)}

    return BoundRun(running, call, outputs, device)


def _host(tensor: Tensor, cuda: bool) -> Tensor:
    return tensor.pin_memory() if cuda else tensor


def _captured(run: Callable[[], tuple[Tensor, ...]]) -> Callable[[], tuple[Tensor, ...]]:
    """Record one run as a CUDA graph; each call replays it into the same output tensors."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(GRAPH_WARMUP_RUNS):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answers = run()

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return answers

    return replay


def bind_onnx(onnx_bytes: bytes, inputs: Inputs, device: str, *, threads: int = 1) -> BoundRun:
    """The served ONNX in ONNX Runtime on the device: inputs and outputs bound there.

    Raises:
        RuntimeError: this ONNX Runtime has no execution provider for the device.
    """
    import onnxruntime

    kind = "cuda" if device.startswith("cuda") else "cpu"
    provider = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}[kind]
    if provider not in onnxruntime.get_available_providers():
        raise RuntimeError(f"this ONNX Runtime has no {provider}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Without this it would use TF32, whatever the label says.
    settings: dict[str, Any] = {"use_tf32": 0} if kind == "cuda" else {}
    session = onnxruntime.InferenceSession(onnx_bytes, options, providers=[(provider, settings)])
    binding = session.io_binding()
    resident = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(array, kind, 0) for name, array in inputs.items()
    }
    for name, value in resident.items():
        binding.bind_ortvalue_input(name, value)
    for name in OUTPUTS:
        binding.bind_output(name, kind, 0)

    def run() -> object:
        return session.run_with_iobinding(binding)

    def call() -> object:
        for name, value in resident.items():
            value.update_inplace(inputs[name])
        run()
        return [value.numpy() for value in binding.get_outputs()[: len(CHOICE)]]

    def outputs() -> Inputs:
        run()
        return dict(zip(OUTPUTS, binding.copy_outputs_to_cpu(), strict=True))

    return BoundRun(run, call, outputs, device)


def device_time_s(bound: BoundRun, *, budget_s: float) -> float:
    """Seconds of one run among queued ones, everything resident; the median of seven rounds."""

    def seconds(count: int) -> float:
        synchronize(bound.device)
        start = time.perf_counter()
        for _ in range(count):
            bound.run()
        synchronize(bound.device)
        return (time.perf_counter() - start) / count

    seconds(1)
    count = int(np.clip(budget_s / ROUNDS / seconds(1), 1, MOST_RUNS))
    return float(np.median([seconds(count) for _ in range(ROUNDS)]))
