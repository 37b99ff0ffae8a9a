"""A finished run → a version of ``value_network`` in a Triton model repository.

Nothing is written before the ONNX file, run by ONNX Runtime, equals the torch network: values within
:data:`VALUE_TOLERANCE` on random and edge inputs, and the same action wherever the best two scalarised
values are further apart than that tolerance can blur.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from triton_models.config_pbtxt import Backend, config_parameters
from triton_models.errors import ConfigurationError, ParityError, RepositoryError, SurfaceError
from triton_models.network import ValueNetwork
from triton_models.repository import publish_model, read_model
from triton_models.runs import Run, load_run
from triton_models.served import ServedValueNetwork, input_rules
from triton_models.surface import Surface
from triton_models.tensors import VALUE_NETWORK, input_specs, output_specs

OPSET = 20
"""Newest operator set that the ONNX Runtime 1.19 of Triton 24.10 loads with IR 10."""
IR_VERSION = 10
VALUE_TOLERANCE = 1e-5
MAX_BATCH_SIZE = 64
WARMUP_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
RANDOM_CASES = 96

Inputs = dict[str, npt.NDArray[Any]]


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


def export_run(
    run_path: str | Path,
    repository: str | Path,
    *,
    backend: Backend = "python",
    keep: int = 3,
    intra_op_threads: int = 1,
    force: bool = False,
) -> ExportReport:
    """Export a run as the next version of ``value_network``.

    Raises:
        RunError: the run is missing, unfinished or damaged.
        SurfaceMismatchError: the repository serves another surface, and ``force`` is off.
        ParityError: the exported model does not equal the network; nothing is written.
        RepositoryError: the repository cannot be read or written.
    """
    run = load_run(run_path)
    if not force:
        require_same_surface(run.surface, repository, this=str(run.path))
    network = run.load_network()
    onnx_bytes = to_onnx(run.surface, network)
    cases = parity_cases(run.surface)
    parity = check_parity(run.surface, network, onnx_bytes, cases)
    version = publish_model(
        repository,
        name=VALUE_NETWORK,
        onnx_bytes=onnx_bytes,
        inputs=input_specs(run.surface),
        outputs=output_specs(run.surface),
        max_batch_size=MAX_BATCH_SIZE,
        backend=backend,
        parameters=run_parameters(run),
        input_rules=input_rules(run.surface),
        keep=keep,
        warmup_batch_sizes=WARMUP_BATCH_SIZES,
        intra_op_threads=intra_op_threads,
    )
    return ExportReport(
        folder=Path(repository) / VALUE_NETWORK / str(version),
        version=version,
        backend=backend,
        run_id=run.manifest.run_id,
        fingerprint=run.surface.fingerprint,
        parity=parity,
        cases=len(cases["scalarization"]),
        num_bytes=len(onnx_bytes),
    )


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


# -------------------------------------------------------------------- torch → ONNX


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its own deprecations and optional passes; none of them is the caller's."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def to_onnx(surface: Surface, network: ValueNetwork) -> bytes:
    """Export the served module: opset ≤ 20, IR ≤ 10, every tensor with a dynamic batch dimension.

    Raises:
        ConfigurationError: a package of the export is missing.
        ParityError: the graph is not what Triton's older ONNX Runtime loads.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(f"export needs {error.name}; pip install 'prl-puts[train]'") from error
    module = ServedValueNetwork(surface, network).eval()
    specs = input_specs(surface)
    example = tuple(torch.from_numpy(array) for array in _example(surface, 2).values())
    batch = torch.export.Dim("batch", min=1, max=65536)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            example,
            input_names=[spec.name for spec in specs],
            output_names=[spec.name for spec in output_specs(surface)],
            dynamic_shapes=(tuple({0: batch} for _ in specs),),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ParityError("torch.onnx.export returned no program")
    model = program.model_proto
    _strip(model)
    model.ir_version = min(model.ir_version, IR_VERSION)
    opset = max(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    if opset > OPSET:
        raise ParityError(f"the exporter used opset {opset}, Triton 24.10 loads up to {OPSET}")
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _strip(model: Any) -> None:
    """Remove what the exporter notes for debugging: stack traces with paths of this machine."""
    del model.metadata_props[:]
    for item in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]


def _example(surface: Surface, batch: int) -> Inputs:
    inputs: Inputs = {}
    for spec in input_specs(surface):
        fill = 1 if spec.name == "scalarization" else 0
        inputs[spec.name] = np.full((batch, *spec.shape), fill, dtype=spec.dtype)
    return inputs


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
    zero = _example(surface, 1)
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


def check_parity(surface: Surface, network: ValueNetwork, onnx_bytes: bytes, cases: Inputs) -> float:
    """Compare ONNX Runtime with torch; the largest difference of a value.

    Raises:
        ParityError: naming the case and both answers.
    """
    outputs = run_onnx(onnx_bytes, cases)
    return compare(surface, reference_outputs(surface, network, cases), outputs)


def compare(surface: Surface, expected: Inputs, got: Inputs, *, tolerance: float = VALUE_TOLERANCE) -> float:
    """The largest difference of ``action_values``; every output consistent with them.

    Raises:
        ParityError: values differ by more than ``tolerance``, an action differs although its advantage is
            larger than the tolerance, or weights or values are not those of the action.
    """
    difference = np.abs(got["action_values"] - expected["action_values"])
    worst = float(difference.max())
    if not worst <= tolerance:  # also catches NaN
        case = np.unravel_index(int(np.nan_to_num(difference, nan=np.inf).argmax()), difference.shape)
        raise ParityError(
            f"exported values differ from torch by {worst:g}, more than {tolerance:g}, at case {case[0]}: "
            f"{got['action_values'][case]:g} against {expected['action_values'][case]:g}; nothing was written"
        )
    action_B = got["action"][:, 0]
    rows = np.arange(len(action_B))
    if ((action_B < 0) | (action_B >= surface.num_actions)).any():
        raise ParityError("the exported model chose an action that does not exist; nothing was written")
    lost_B = expected["scores"].max(axis=1) - expected["scores"][rows, action_B]
    if (lost_B > 2 * tolerance).any():
        case_number = int(lost_B.argmax())
        raise ParityError(
            f"exported model chooses action {action_B[case_number]} at case {case_number}, torch "
            f"{int(expected['scores'][case_number].argmax())}; nothing was written"
        )
    weights = surface.actions.astype(np.float32)[action_B]
    if not np.array_equal(got["weights"], weights):
        raise ParityError("exported weights are not those of the chosen action; nothing was written")
    if not np.array_equal(got["values"], got["action_values"][rows, action_B]):
        raise ParityError("exported values are not those of the chosen action; nothing was written")
    return worst


def run_onnx(onnx_bytes: bytes, inputs: Inputs) -> Inputs:
    """Every output of an ONNX model from ONNX Runtime on one CPU thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx_bytes, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))
