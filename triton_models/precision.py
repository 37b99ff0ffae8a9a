"""Cheaper number formats of the served model, each judged against the float32 one on logged states.

``float16`` and ``bfloat16`` keep the interface in float32 and calculate in half precision; ``int8``
quantises weights and activations of the linear layers (QDQ, per channel, ranges from the sample). None of
them equals torch, so none is held to the float32 tolerance. A variant is refused unless, on the run's own
sample of logged states and over a sweep of λ,

* at least :data:`LEAST_AGREEMENT` of the choices are the float32 model's, and
* no value differs by more than :data:`~triton_models.parity.VALUE_BOUND` of the format.

What is judged was not calibrated on: ``int8`` takes its ranges from every other state.

A format that this machine cannot run cannot be judged here, and is refused as well.

Shape legend: n states, P scalarizations, A actions, M objectives.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from triton_models.errors import ParityError
from triton_models.network import ValueNetwork
from triton_models.onnx_export import to_onnx
from triton_models.parity import VALUE_BOUND, VALUE_TOLERANCE, Inputs, Precision
from triton_models.state_sample import with_even_scalarization
from triton_models.surface import Surface

LEAST_AGREEMENT = 0.999

LARGEST_WEIGHT = 1e4

JUDGED_POINTS = 25
JUDGED_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A variant against the float32 model."""

    agreement: float
    """Share of choices that are the same action."""
    tied: float
    """Share of choices that are the same action, or as good to the float32 tolerance."""
    difference: float
    """Largest difference of any value."""
    choices: int


def variant(
    surface: Surface, network: ValueNetwork, onnx_bytes: bytes, precision: Precision, states: Inputs
) -> bytes:
    """The served model in another number format; its inputs and outputs stay as they are.

    Args:
        surface: the control surface.
        network: what is exported.
        onnx_bytes: its float32 export.
        precision: the format.
        states: logged states, for the ranges of ``int8``.
    """
    if precision == "float32":
        return onnx_bytes
    if precision == "int8":
        every_other = {name: value[::2] for name, value in states.items()}
        return _int8(onnx_bytes, with_even_scalarization(surface, every_other))
    return to_onnx(surface, network, torch.float16 if precision == "float16" else torch.bfloat16)


class _Calibration:
    """Batches of logged states for ONNX Runtime's quantiser."""

    def __init__(self, inputs: Inputs) -> None:
        self._batches = _batches(inputs)

    def get_next(self) -> Inputs | None:
        """The next batch, None at the end."""
        return next(self._batches, None)


def _int8(onnx_bytes: bytes, inputs: Inputs) -> bytes:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        source, prepared, target = (str(Path(folder) / name) for name in ("in.onnx", "pre.onnx", "out.onnx"))
        Path(source).write_bytes(onnx_bytes)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        import onnx

        graph = onnx.load(prepared).graph
        quantize_static(
            prepared,
            target,
            _Calibration(inputs),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=_plain_layers(graph),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return Path(target).read_bytes()


def _last_layer(graph: Any) -> set[str]:
    """Outputs on the way back from the sigmoid to the layer that makes logits."""
    maker = {output: node for node in graph.node for output in node.output}
    (name,) = (node.input[0] for node in graph.node if node.op_type == "Sigmoid")
    found = {name}
    while name in maker and maker[name].op_type not in ("MatMul", "Gemm"):
        name = maker[name].input[0]
        found.add(name)
    return found


def _plain_layers(graph: Any) -> list[str]:
    """Linear layers with weights of ordinary size: masking weights would take the whole range of int8."""
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in graph.initializer}
    last = _last_layer(graph)
    return [
        node.name
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm")
        and node.input[1] in weights
        and node.output[0] not in last
        and np.abs(numpy_helper.to_array(weights[node.input[1]])).max(initial=0) < LARGEST_WEIGHT
    ]


def _batches(inputs: Inputs) -> Iterator[Inputs]:
    count = len(inputs["scalarization"])
    for start in range(0, count, JUDGED_BATCH):
        yield {
            name: np.ascontiguousarray(value[start : start + JUDGED_BATCH]) for name, value in inputs.items()
        }


def judge(
    surface: Surface, reference: bytes, other: bytes, precision: Precision, states: Inputs
) -> Judgement:
    """Compare a variant with the float32 model on logged states.

    Raises:
        ParityError: this machine cannot run it, or it is not close enough.
    """
    unseen = {name: value[1::2] if precision == "int8" else value for name, value in states.items()}
    inputs = with_even_scalarization(surface, unseen)
    expected_nAM = _action_values(reference, inputs)
    try:
        got_nAM = _action_values(other, inputs)
    except Exception as error:  # onnxruntime raises kinds of its own
        reason = " ".join(str(error).split())[:200]
        raise ParityError(
            f"{precision}: ONNX Runtime on this machine cannot run it, so it cannot be checked ({reason}); "
            "nothing was written"
        ) from error
    agreement, tied = _agreement(surface, expected_nAM, got_nAM)
    judgement = Judgement(
        agreement=agreement,
        tied=tied,
        difference=float(np.nan_to_num(np.abs(got_nAM - expected_nAM), nan=np.inf).max()),
        choices=len(expected_nAM) * JUDGED_POINTS,
    )
    told = (
        f"{precision}: {judgement.agreement:.3%} of {judgement.choices:,} choices on logged states agree "
        f"with float32 (needed {LEAST_AGREEMENT:.1%}; {judgement.tied:.3%} with those that tie), "
        f"values differ by up to {judgement.difference:.2g} (allowed {VALUE_BOUND[precision]:g})"
    )
    if judgement.agreement < LEAST_AGREEMENT or not judgement.difference <= VALUE_BOUND[precision]:
        raise ParityError(f"{told}; nothing was written")
    return judgement


def _agreement(
    surface: Surface, expected_nAM: npt.NDArray[np.float32], got_nAM: npt.NDArray[np.float32]
) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    objectives = len(surface.objectives)
    lambda_PM = rng.dirichlet(np.ones(objectives), size=JUDGED_POINTS)
    rows = np.arange(len(expected_nAM))
    agreeing = tied = 0
    for lambda_M in lambda_PM:
        score_nA = expected_nAM.astype(np.float64) @ lambda_M
        chosen_n = (got_nAM.astype(np.float64) @ lambda_M).argmax(axis=1)
        agreeing += int((score_nA.argmax(axis=1) == chosen_n).sum())
        tied += int((score_nA.max(axis=1) - score_nA[rows, chosen_n] <= VALUE_TOLERANCE).sum())
    choices = len(rows) * JUDGED_POINTS
    return agreeing / choices, tied / choices


def _action_values(onnx_bytes: bytes, inputs: Inputs) -> npt.NDArray[np.float32]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, and told by the caller
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    session = onnxruntime.InferenceSession(onnx_bytes, options, providers=providers)
    parts = [session.run(["action_values"], batch)[0] for batch in _batches(inputs)]
    return np.concatenate(parts)
