"""One pass of the value network over logged rows: the action of every scalarization's policy.

Row groups stream through Ray Data, on GPUs where the cluster has them, or through a running Triton
(:mod:`ray_train.served_network`). Whatever the number of operating points the network runs once per row, and
``[n, A, M]`` exists only for one micro-batch of one worker. The driver keeps ``2 P + 4 R + 24`` bytes a row
(about 90 for 25 points and 4 outcomes), ``2 F`` more where an estimator has a model of the reward (about
150), and each user id once.

Shape legend: n rows of a slice, N rows altogether, P scalarizations, M objectives, R outcomes
(objectives, then metrics), A actions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_train.collecting import Collector
from ray_train.duplicates import hash_strings
from ray_train.estimators import FloatArray
from ray_train.estimators_basis import ActionBasis, polynomial_basis
from ray_train.estimators_features import feature_width, row_features
from ray_train.finer import FinerGrid
from ray_train.ingest import encode_table
from ray_train.logs import LogFiles, log_schema
from ray_train.reading import SLICE_ROWS, Unit, Window, in_window, read_slices
from ray_train.rows import Reason, bad_rows
from ray_train.served_network import ServedNetwork
from ray_train.sweep import ScoredRows
from triton_models.errors import PutsError
from triton_models.network_config import NetworkConfig
from triton_models.surface import Surface
from triton_models.tensors import state_specs

if TYPE_CHECKING:
    import torch
    from ray import ObjectRef

    from triton_models.network import ValueNetwork

logger = logging.getLogger(__name__)

MICRO_BATCH_FLOATS = 1 << 20
"""Activations of one backbone layer per forward pass: they stay within the processor's caches."""

Progress = Callable[[int], None]
"""Told the number of rows of the window that have been scored so far."""


@dataclass(frozen=True, kw_only=True)
class ScoringTask:
    """What to score; travels to the workers."""

    surface: Surface
    files: LogFiles
    window: Window
    scalarization_PM: FloatArray
    now: datetime
    slice_rows: int = SLICE_ROWS
    features: bool = False
    """Whether rows carry what a model of the reward may know (:mod:`ray_train.estimators_features`)."""
    finer: FinerGrid | None = None
    """Also choose on this grid, for every scalarization."""

    def tables(self, unit: Unit) -> Iterator[pa.Table]:
        """Slices of a row group, cut to the window."""
        names = log_schema(self.surface).names
        for _, table in read_slices(self.files, unit, names, self.slice_rows):
            table = table.filter(pa.array(in_window(table, self.window)))
            if table.num_rows:
                yield table


def score_units(
    batch: dict[str, npt.NDArray[Any]],
    task: ScoringTask,
    units: Sequence[Unit],
    network: Sequence[ObjectRef[ValueNetwork | ServedNetwork]],
) -> Iterator[pa.Table]:
    """Score the row groups whose numbers are in column ``id``, slice by slice; a Ray Data task."""
    import ray
    import torch

    torch.set_num_threads(1)
    # The reference is in a list because Ray would otherwise send the network along with every task.
    model = ray.get(network[0])
    device = torch.device("cpu")
    if isinstance(model, torch.nn.Module):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = model.to(device).eval()
    for number in batch["id"]:
        for table in task.tables(units[number]):
            yield score_table(task, model, table, device)


def score_table(
    task: ScoringTask, network: ValueNetwork | ServedNetwork, table: pa.Table, device: torch.device
) -> pa.Table:
    """Everything that valuation needs from a slice of the log, one row per row, as Arrow.

    Rows that do not pass :func:`ray_train.rows.bad_rows` carry their reason and otherwise nothing.
    """
    surface, rows = task.surface, table.num_rows
    reason = bad_rows(surface, table, task.now)
    good = reason == Reason.GOOD
    outcomes = len(surface.objectives) + len(surface.metrics)
    action = np.zeros(rows, dtype=np.int16)
    propensity = np.ones(rows)
    outcome_nR = np.zeros((rows, outcomes), dtype=np.float32)
    points = len(task.scalarization_PM)
    chosen_nX = np.zeros((rows, points * (2 if task.finer else 1)), dtype=np.int16)
    feature_nF = np.zeros((rows, feature_width(surface) if task.features else 0), dtype=np.float16)
    user = np.full(rows, "", dtype=object)
    cohort = np.full(rows, None, dtype=object)
    identity = np.zeros(rows, dtype=np.uint64)
    if good.any():
        clean = table if good.all() else table.filter(pa.array(good))
        arrays = encode_table(surface, clean)
        action[good] = arrays["action"]
        propensity[good] = arrays["propensity"]
        outcome_nR[good] = np.concatenate([arrays["rewards"], arrays["metrics"]], axis=1)
        basis = polynomial_basis(surface) if task.features else None
        chosen_nX[good], coefficients = score_states(
            surface, network, arrays, task.scalarization_PM, device, basis, task.finer
        )
        if task.features:
            feature_nF[good] = row_features(surface, coefficients, arrays)
        user[good] = arrays["user_id"]
        cohort[good] = arrays["cohort"]
        identity[good] = hash_strings(clean.column("request_id").combine_chunks())
    columns = {
        "reason": pa.array(reason),
        "action": pa.array(action),
        "propensity": pa.array(propensity),
        "outcome": _vectors(outcome_nR),
        "chosen": _vectors(chosen_nX[:, :points]),
        "user": pa.array(user, pa.large_string()),
        "cohort": pa.array(cohort, pa.large_string()),
        "identity": pa.array(identity),
    }
    if task.features:
        columns["feature"] = _vectors(feature_nF)
    if task.finer:
        columns["finer"] = _vectors(chosen_nX[:, points:])
    return pa.table(columns)


def choose_actions(
    surface: Surface,
    network: ValueNetwork | ServedNetwork,
    arrays: dict[str, npt.NDArray[Any]],
    scalarization_PM: FloatArray,
    device: torch.device,
) -> npt.NDArray[np.int16]:
    """``a*(s; λ_p) = argmax_a Σ_m λ_pm Q_m(s, a)`` for every row and scalarization, [n, P]."""
    return score_states(surface, network, arrays, scalarization_PM, device, None)[0]


def score_states(
    surface: Surface,
    network: ValueNetwork | ServedNetwork,
    arrays: dict[str, npt.NDArray[Any]],
    scalarization_PM: FloatArray,
    device: torch.device,
    basis: ActionBasis | None,
    finer: FinerGrid | None = None,
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]:
    """The choices [n, P] and, for a basis, the coefficients of Q in it [n, M·B], in one pass.

    With a finer grid the choices on it follow, [n, 2 P].
    """
    import torch

    from triton_models.network import greedy_actions

    names = [spec.name for spec in state_specs(surface)]
    rows = len(arrays[names[0]])
    step = micro_batch_rows(surface, network)
    scalarization = torch.as_tensor(scalarization_PM, dtype=torch.float32, device=device)
    points = len(scalarization_PM)
    chosen_nX = np.empty((rows, points * (2 if finer else 1)), dtype=np.int16)
    mixture_TA = torch.as_tensor(finer.mixture_TA, dtype=torch.float32, device=device) if finer else None
    width = len(surface.objectives) * basis.size if basis else 0
    coefficient_nX = np.empty((rows, width), dtype=np.float32)
    with torch.inference_mode():
        for start in range(0, rows, step):
            part = slice(start, start + step)
            state = {name: torch.tensor(arrays[name][part], device=device) for name in names}
            q_BAM = network.action_values(state)
            chosen_nX[part, :points] = greedy_actions(q_BAM, scalarization).cpu().numpy()
            if mixture_TA is not None:
                q_BTM = torch.matmul(mixture_TA, q_BAM)
                chosen_nX[part, points:] = greedy_actions(q_BTM, scalarization).cpu().numpy()
            if basis:
                coefficient_nX[part] = basis.coefficients(q_BAM.cpu().numpy()).reshape(-1, width)
    return chosen_nX, coefficient_nX


def micro_batch_rows(surface: Surface, network: ValueNetwork | ServedNetwork) -> int:
    """Rows per forward pass; every member of a committee has activations of its own."""
    from triton_models.network import ValueNetwork

    # A served network's activations lie elsewhere; what is bounded for it is memory.
    config = network.config if isinstance(network, ValueNetwork) else NetworkConfig()
    members = config.members if config.action_head == "committee" else 1
    return max(1, MICRO_BATCH_FLOATS // (surface.num_actions * members * config.backbone_width))


def _vectors(values_nX: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ravel(values_nX)), values_nX.shape[1])


def score_log(
    task: ScoringTask,
    units: Sequence[Unit],
    network: ValueNetwork | ServedNetwork,
    *,
    max_bad_share: float = 0.01,
    progress: Progress | None = None,
) -> ScoredRows:
    """Score row groups on the running Ray cluster.

    Raises:
        LogError: a file is damaged, no row of the window is usable, or more than ``max_bad_share`` of
            them did not pass the checks.
    """
    collector = Collector()
    wanted = [unit for unit in units if unit.may_overlap(task.window)]
    if wanted:
        for table in _stream(task, wanted, network):
            collector.add(table)
            if progress is not None:
                progress(collector.rows)
    return collector.finish(task.surface, max_bad_share=max_bad_share)


def _stream(
    task: ScoringTask, units: list[Unit], network: ValueNetwork | ServedNetwork
) -> Iterator[pa.Table]:
    import ray
    import ray.data

    from ray_train.cluster import root_cause

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    # What fails on a worker is raised here; Ray Data would print it as well, with sixty lines of traceback.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    data = ray.data.range(len(units), override_num_blocks=len(units))
    # The order of rows decides which of two duplicates stays, and makes sums reproducible to the bit.
    data.context.execution_options.preserve_order = True
    data.context.enable_progress_bars = False
    served = isinstance(network, ServedNetwork)
    scored = data.map_batches(
        score_units,  # type: ignore[arg-type]  # Ray's stubs know no further arguments
        fn_kwargs={
            "task": task,
            "units": units,
            "network": [ray.put(network if isinstance(network, ServedNetwork) else network.cpu())],
        },
        batch_size=1,
        batch_format="numpy",
        num_cpus=1,
        num_gpus=1 if resources.get("GPU", 0) >= 1 and not served else 0,
        # One task asks the server at a time, whatever the size of the cluster.
        concurrency=1 if served else None,
    )
    try:
        yield from scored.iter_batches(batch_size=None, batch_format="pyarrow")
    except Exception as error:
        cause = root_cause(error)
        if isinstance(cause, PutsError):  # Ray Data adds lines of advice to the message
            raise type(cause)(str(cause).partition("\n")[0]) from error
        raise
