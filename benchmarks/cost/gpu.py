"""Who makes the choice on a GPU: torch eager, compiled, replayed as CUDA graphs; ONNX Runtime if it can.

In float32, in TF32 and in bfloat16, whose sigmoid and choice stay in float32. Lower precisions are tried,
not promised: their answers are compared within a tolerance of their own, and how many actions agree is
shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

from benchmarks.cost.compiling import Function, compiled
from benchmarks.cost.contestants import Contestant
from benchmarks.cost.device_runs import (
    PRECISIONS,
    BoundRun,
    Precision,
    bind,
    bind_onnx,
)
from benchmarks.cost.naive import NAIVE_EXPORTS, Naive, choice_module, naive_network
from benchmarks.cost.networks import Subject
from triton_models.onnx_export import to_onnx
from triton_models.parity import VALUE_TOLERANCE, Inputs
from triton_models.served import ServedValueNetwork

TOLERANCE: dict[Precision, float] = {"float32": VALUE_TOLERANCE, "tf32": 5e-3, "bfloat16": 3e-2}
ELEMENT_BYTES: dict[Precision, int] = {"float32": 4, "tf32": 4, "bfloat16": 2}
Mode = Literal["eager", "compile", "graph", "compile + graph", "onnxruntime"]
MODES: tuple[Mode, ...] = ("eager", "compile", "graph", "compile + graph", "onnxruntime")
NAIVE_MODES: tuple[Mode, ...] = ("eager", "compile + graph")

Bind = Callable[[Inputs], BoundRun]


def served_module(
    subject: Subject, device: str, precision: Precision, naive: Naive | None = None
) -> nn.Module:
    """The served module on a device; it holds copies, so the subject stays where and what it is."""
    network = subject.network if naive is None else naive_network(subject.network, naive)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    return choice_module(ServedValueNetwork(subject.surface, network, dtype)).to(device)


@dataclass(frozen=True, kw_only=True)
class GpuContestant:
    """One way to make the choice on the device."""

    key: str
    label: str
    subject: Subject
    naive: Naive | None
    precision: Precision
    mode: Mode
    bind: Bind
    """Bind to a batch; compiles or captures a graph where the mode says so."""

    def checked(self, batch: int) -> Contestant:
        """The same, as :func:`benchmarks.cost.contestants.agreement` takes it, run with ``batch`` rows.

        A compilation or a graph is made for one batch size: checking with a size that is timed anyway
        checks that very one.
        """

        def outputs(inputs: Inputs) -> Inputs:
            count = len(inputs["scalarization"])
            parts = []
            for start in range(0, count, batch):
                rows = np.minimum(np.arange(start, start + batch), count - 1)
                parts.append(self.bind({name: array[rows] for name, array in inputs.items()}).outputs())
            return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}

        return Contestant(
            key=self.key,
            label=self.label,
            network=self.subject.key,
            bind=lambda inputs: self.bind(inputs).call,
            outputs=outputs,
            tolerance=TOLERANCE[self.precision],
        )


def gpu_contestants(
    subjects: tuple[Subject, ...],
    device: str,
    *,
    modes: tuple[Mode, ...] = MODES,
    precisions: tuple[Precision, ...] = PRECISIONS,
) -> tuple[GpuContestant, ...]:
    """Naive A and B of the first network in float32, then every network in every mode and precision."""
    if not device.startswith("cuda"):  # neither graphs nor TF32 there
        modes = tuple(mode for mode in modes if not mode.endswith("graph"))
        precisions = tuple(precision for precision in precisions if precision != "tf32")
    found: list[GpuContestant] = []
    for kind in NAIVE_EXPORTS:
        chosen = tuple(mode for mode in modes if mode in NAIVE_MODES)
        found += _torch_contestants(subjects[0], device, "float32", chosen, kind)
    for subject in subjects:
        for precision in precisions:
            found += _torch_contestants(subject, device, precision, modes, None)
        if "onnxruntime" in modes and "float32" in precisions:
            found.append(_onnx_contestant(subject, device))
    return tuple(found)


def _torch_contestants(
    subject: Subject, device: str, precision: Precision, modes: tuple[Mode, ...], naive: Naive | None
) -> list[GpuContestant]:
    """The modes of one module, compiled once for all of them."""
    module = served_module(subject, device, precision, naive)
    wanted = any(mode.startswith("compile") for mode in modes)
    functions: dict[bool, Function] = {False: module, True: compiled(module) if wanted else module}

    def binder(mode: Mode) -> Bind:
        function, graph = functions[mode.startswith("compile")], mode.endswith("graph")
        return lambda inputs: bind(function, inputs, device, precision, graph=graph)

    who = subject.label if naive is None else f"naive {naive}"
    return [
        GpuContestant(
            key=f"{subject.key if naive is None else naive}/{precision}/{mode}",
            label=f"{who}, {precision}, {mode}",
            subject=subject,
            naive=naive,
            precision=precision,
            mode=mode,
            bind=binder(mode),
        )
        for mode in modes
        if mode != "onnxruntime"
    ]


def _onnx_contestant(subject: Subject, device: str) -> GpuContestant:
    exported: list[bytes] = []

    def bind_served(inputs: Inputs) -> BoundRun:
        if not exported:  # not before somebody wants it: a machine may lack the exporter
            exported.append(to_onnx(subject.surface, subject.network))
        return bind_onnx(exported[0], inputs, device)

    return GpuContestant(
        key=f"{subject.key}/float32/onnxruntime",
        label=f"{subject.label}, float32, onnxruntime",
        subject=subject,
        naive=None,
        precision="float32",
        mode="onnxruntime",
        bind=bind_served,
    )
