"""A finished run → a version of ``value_network`` in a Triton model repository.

Nothing is written before the ONNX file, run by ONNX Runtime, equals the torch network: values within
:data:`~triton_models.parity.VALUE_TOLERANCE` on random and edge inputs, and the same action wherever the
best two scalarised values are further apart than that tolerance can blur. The version carries where it
comes from (in its configuration and in the ONNX file) and the compared cases with torch's answers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from triton_models.config_pbtxt import Backend, GpuOptions, ModelSettings, config_parameters
from triton_models.errors import ParityError, RepositoryError, SurfaceError
from triton_models.network import ValueNetwork
from triton_models.onnx_export import example_inputs, to_onnx
from triton_models.parity import (
    VALUE_BOUND,
    VALUE_TOLERANCE,
    VALUE_TOLERANCE_PARAMETER,
    Cases,
    Inputs,
    Precision,
    compare,
    pack_cases,
)
from triton_models.precision import Judgement, judge, variant
from triton_models.published import CASES_FILE
from triton_models.repository import publish_model, read_model, require_model
from triton_models.runs import Run, load_run
from triton_models.served import input_rules
from triton_models.state_sample import load_states
from triton_models.surface import Surface
from triton_models.tensors import VALUE_NETWORK, input_specs, output_specs

MAX_BATCH_SIZE = 64
LARGEST_FULL_WARMUP = 64
"""Up to this largest batch every size is warmed up, since the batcher forms every size; above, powers of
two."""
PRECISION = "precision"
"""Parameter of a version: the number format that it calculates in."""
RANDOM_CASES = 96


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What an export wrote."""

    folder: Path
    """The new version's folder."""
    version: int
    backend: Backend
    run_id: str
    fingerprint: str
    parity: float
    """Largest difference of any output value from torch."""
    cases: int
    """Inputs that were compared."""
    num_bytes: int
    """Size of the ONNX file."""
    served: int
    """The version that the repository serves now: this one, or another where it was only put beside."""
    judgement: Judgement | None
    """How a number format other than float32 compares with it."""


def export_run(
    run_path: str | Path,
    repository: str | Path,
    *,
    backend: Backend = "python",
    keep: int = 3,
    intra_op_threads: int = 1,
    force: bool = False,
    hold: bool = False,
    precision: Precision = "float32",
    max_batch_size: int = MAX_BATCH_SIZE,
    instance_count: int = 1,
    queue_delay_us: int = 0,
    gpu: GpuOptions | None = None,
) -> ExportReport:
    """Export a run as the next version of ``value_network``, and serve it unless it is put on ``hold``.

    Args:
        run_path: the run.
        repository: Triton model repository.
        backend: ``python`` for the embedded server, ``onnxruntime`` for a GPU container.
        keep: newest versions that stay.
        intra_op_threads: CPU threads of an instance.
        force: replace a model of another surface, and export a run whose verdict is negative.
        hold: only put the version beside the served one.
        precision: what the network calculates in; anything but float32 is judged on the run's logged states
            (:mod:`triton_models.precision`).
        max_batch_size: largest batch that the batcher forms.
        instance_count: instances of the model.
        queue_delay_us: how long the batcher may wait for more requests.
        gpu: TensorRT and queue options of the ``onnxruntime`` backend.

    Raises:
        RunError: the run is missing, unfinished or damaged, or its gate did not pass and ``force`` is off.
        SurfaceMismatchError: the repository serves another surface, and ``force`` is off.
        ParityError: the exported model does not equal the network; nothing is written.
        RepositoryError: the repository cannot be read or written.
    """
    gpu = gpu or GpuOptions()
    run = load_run(run_path)
    # Settings that do not fit together are refused before minutes go into the export.
    ModelSettings(
        name=VALUE_NETWORK,
        inputs=input_specs(run.surface),
        outputs=output_specs(run.surface),
        backend=backend,
        max_batch_size=max_batch_size,
        instance_count=instance_count,
        intra_op_threads=intra_op_threads,
        queue_delay_us=queue_delay_us,
        gpu=gpu,
    )
    if not force:
        run.require_passed()
        require_same_surface(run.surface, repository, this=str(run.path))
    network = run.load_network()
    onnx_bytes = to_onnx(run.surface, network)
    cases = reference_cases(run.surface, network)
    parity = check_cases(run.surface, onnx_bytes, cases)
    judgement: Judgement | None = None
    if precision != "float32":
        states = load_states(run.surface, run.path)
        other = variant(run.surface, network, onnx_bytes, precision, states)
        judgement = judge(run.surface, onnx_bytes, other, precision, states)
        tolerance = VALUE_BOUND[precision]
        onnx_bytes, parity = other, check_cases(run.surface, other, cases, tolerance=tolerance)
    parameters = {
        **run_parameters(run),
        PRECISION: precision,
        VALUE_TOLERANCE_PARAMETER: str(_tolerance(precision, gpu)),
    }
    onnx_bytes = with_provenance(onnx_bytes, parameters)
    version = publish_model(
        repository,
        name=VALUE_NETWORK,
        onnx_bytes=onnx_bytes,
        inputs=input_specs(run.surface),
        outputs=output_specs(run.surface),
        max_batch_size=max_batch_size,
        backend=backend,
        parameters=parameters,
        input_rules=input_rules(run.surface),
        keep=keep,
        warmup_batch_sizes=warmup_sizes(max_batch_size),
        instance_count=instance_count,
        intra_op_threads=intra_op_threads,
        queue_delay_us=queue_delay_us,
        gpu=gpu,
        files={CASES_FILE: pack_cases(cases)},
        select=not hold,
    )
    published = require_model(repository, VALUE_NETWORK)
    return ExportReport(
        folder=Path(repository) / VALUE_NETWORK / str(version),
        version=version,
        backend=backend,
        run_id=run.manifest.run_id,
        fingerprint=run.surface.fingerprint,
        parity=parity,
        cases=len(cases),
        num_bytes=len(onnx_bytes),
        served=published.served,
        judgement=judgement,
    )


def _tolerance(precision: Precision, gpu: GpuOptions) -> float:
    """What a server's answers may differ by: TensorRT calculates in TF32 or half precision by itself."""
    if gpu.tensorrt == "off":
        return VALUE_BOUND[precision]
    return max(VALUE_BOUND[precision], VALUE_BOUND["float16"])


def warmup_sizes(max_batch_size: int) -> tuple[int, ...]:
    """Batch sizes that are run once before a model is ready."""
    if max_batch_size <= LARGEST_FULL_WARMUP:
        return tuple(range(1, max_batch_size + 1))
    powers = {2**k for k in range(max_batch_size.bit_length()) if 2**k <= max_batch_size}
    return tuple(sorted(powers | {max_batch_size}))


def run_parameters(run: Run) -> dict[str, str]:
    """Where the model comes from, readable through the protocol's model configuration."""
    manifest = run.manifest
    return {
        "surface": json.dumps(run.surface.to_dict(), ensure_ascii=False),
        "surface_fingerprint": run.surface.fingerprint,
        "run_id": manifest.run_id,
        "data_window": json.dumps(manifest.data.model_dump(mode="json"), ensure_ascii=False),
        "code_version": manifest.code_version,
        "metrics": json.dumps(manifest.metrics),
    }


def with_provenance(onnx_bytes: bytes, parameters: dict[str, str]) -> bytes:
    """The ONNX file with the same provenance in its own metadata, for whoever finds the file alone."""
    import onnx

    model = onnx.load_model_from_string(onnx_bytes)
    onnx.helper.set_model_props(model, parameters)
    return bytes(model.SerializeToString())


def require_same_surface(surface: Surface, repository: str | Path, *, this: str) -> None:
    """Refuse to replace a model of another surface: its clients send other tensors.

    Raises:
        SurfaceMismatchError: naming the fields that differ.
        RepositoryError: what is published there cannot be read.
    """
    published = read_model(repository, VALUE_NETWORK)
    if published is None:
        return
    that = str(Path(repository) / VALUE_NETWORK)
    try:
        old = Surface.from_dict(json.loads(config_parameters(published.config)["surface"]), source=that)
    except (KeyError, ValueError, SurfaceError) as error:
        raise RepositoryError(
            f"{that}: carries no readable surface ({error}); remove it or use --force"
        ) from error
    surface.require_same(old, this=this, that=f"{that} (--force replaces it)")


# -------------------------------------------------------------------- parity


def parity_cases(surface: Surface, *, random_cases: int = RANDOM_CASES, seed: int = 0) -> Inputs:
    """Random states, then the edges: empty and full history, unknown codes, every kind of λ."""
    rng = np.random.default_rng(seed)
    blocks = [_random_inputs(surface, rng, random_cases)]
    empty, full, unknown = (_random_inputs(surface, rng, 8) for _ in range(3))
    if surface.state.history is not None:
        for name in ("history_embedding", "history_action", "history_age_s"):
            empty[name][:] = 0
        full["history_action"][:] = len(surface.state.history.actions)
        full["history_age_s"][:] = 3e7
    if "context" in unknown:
        unknown["context"][:] = 0
    zero = example_inputs(surface, 1)
    return _joined([*blocks, empty, full, unknown, zero, *_scalarization_edges(surface, rng)])


def _scalarization_edges(surface: Surface, rng: np.random.Generator) -> list[Inputs]:
    """λ at each corner, not normalised, tiny and huge, one state each."""
    count = len(surface.objectives)
    corners = np.eye(count)
    rows = [corners, corners * 1e-30, corners * 1e30, np.full((1, count), 1e38), np.full((1, count), 7.5)]
    scalarizations = np.concatenate(rows).astype(np.float32)
    edges = _random_inputs(surface, rng, len(scalarizations))
    edges["scalarization"] = scalarizations
    return [edges]


def _random_inputs(surface: Surface, rng: np.random.Generator, batch: int) -> Inputs:
    inputs: Inputs = {}
    for spec in input_specs(surface):
        inputs[spec.name] = rng.standard_normal((batch, *spec.shape)).astype(spec.dtype)
    history = surface.state.history
    if history is not None:
        lengths = rng.integers(0, history.length + 1, size=(batch, 1))
        real = np.arange(history.length)[None, :] < lengths
        codes = rng.integers(1, len(history.actions) + 1, size=(batch, history.length))
        inputs["history_action"] = np.where(real, codes, 0).astype(np.int64)
        inputs["history_age_s"] = (rng.exponential(86_400.0, real.shape) * real).astype(np.float32)
        inputs["history_embedding"] *= real[:, :, None]
    if surface.state.context:
        sizes = [len(words) for words in surface.state.context.values()]
        inputs["context"] = np.stack([rng.integers(0, k + 1, size=batch) for k in sizes], axis=1)
    simplex = rng.dirichlet(np.ones(len(surface.objectives)), size=batch)
    inputs["scalarization"] = (simplex * rng.uniform(0.1, 10.0, (batch, 1))).astype(np.float32)
    return inputs


def _joined(blocks: list[Inputs]) -> Inputs:
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def reference_outputs(surface: Surface, network: ValueNetwork, inputs: Inputs) -> Inputs:
    """What the torch network says, by its own definition: one forward pass per (state, action)."""
    state = {name: torch.from_numpy(array) for name, array in inputs.items() if name != "scalarization"}
    batch = len(inputs["scalarization"])
    with torch.no_grad():
        columns = [network(state, row.expand(batch, -1)) for row in network.action_grid_AW]
    q_BAM = torch.stack(columns, dim=1).numpy()
    lambda_BM = np.stack([surface.scalarization(row) for row in inputs["scalarization"]])
    scores_BA = np.einsum("bam,bm->ba", q_BAM.astype(np.float64), lambda_BM)
    return {"action_values": q_BAM, "scores": scores_BA}


def reference_cases(surface: Surface, network: ValueNetwork) -> Cases:
    """:func:`parity_cases` with torch's answers."""
    inputs = parity_cases(surface)
    return Cases(inputs, reference_outputs(surface, network, inputs))


def check_cases(
    surface: Surface, onnx_bytes: bytes, cases: Cases, *, tolerance: float = VALUE_TOLERANCE
) -> float:
    """Compare ONNX Runtime with torch's answers; the largest difference of a value.

    Raises:
        ParityError: naming the case and both answers.
    """
    try:
        return compare(surface, cases.expected, run_onnx(onnx_bytes, cases.inputs), tolerance=tolerance)
    except ParityError as error:
        raise ParityError(f"the exported model is not the network: {error}; nothing was written") from error


def run_onnx(onnx_bytes: bytes, inputs: Inputs) -> Inputs:
    """Every output of an ONNX model from ONNX Runtime on one CPU thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))
