"""``fit``: exploration logs → a run with the weights of a value network.

Order of events: find the log and split it by time, check every row of the windows, train on Ray Train,
judge what was learned on the hold-out (:mod:`ray_train.gate`), write the run. ``run.json`` comes last, so an
interrupted fit never looks finished; what it leaves behind (``fit.json`` and ``checkpoints/``) is what
``--resume`` goes on from.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from ray_train.drift_scan import write_reference
from ray_train.fit_plan import Plan, make_plan
from ray_train.fit_request import REQUEST, FitRequest, earlier_request, request_of, run_folder
from ray_train.learners import LEARNERS
from ray_train.learning_curve import learning_html
from ray_train.progress import counting, following
from ray_train.quarantine import write_quarantine
from ray_train.sample_ratio import sample_ratio
from ray_train.settings import FitSettings
from ray_train.shards import sample, stream
from ray_train.stopping import stoppable
from ray_train.summary import ratio_line
from triton_models.errors import LogError
from triton_models.files import or_null, write_atomically, write_json
from triton_models.network_config import NetworkConfig
from triton_models.runs import (
    SURFACE,
    WEIGHTS,
    DataWindow,
    RunManifest,
    RunVerdict,
    write_manifest,
)
from triton_models.state_sample import SAMPLE, SAMPLE_ROWS, pack_states
from triton_models.surface import Surface

if TYPE_CHECKING:
    from ray_train.epochs import Progress
    from ray_train.ingest import Arrays
    from triton_models.network import ValueNetwork

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
QUARANTINE = "quarantine"

SHRINKAGE_ROWS = 32_768
"""Most rows of the selection window that a committee is shrunk by."""
Say = Callable[[str], None]


def fit(
    *,
    surface: Surface,
    logs: str | Path,
    out: str | Path,
    settings: FitSettings,
    network: NetworkConfig | None = None,
    resume: bool = False,
    address: str | None = None,
    checkpoints: str | None = None,
    now: datetime | None = None,
    say: Say = logger.info,
) -> Path:
    """Fit a value network and write the run.

    Args:
        surface: the control surface that the logs were made with.
        logs: folder or URI of the exploration logs.
        out: folder of the run; must not hold a finished run.
        settings: how to fit.
        network: sizes of the network; default the learner's.
        resume: go on with an interrupted fit in ``out``.
        address: Ray cluster; a local one is started if there is none.
        checkpoints: where checkpoints go, if not below ``out``: storage that all nodes share.
        now: timestamps after it are bad rows; default the clock.
        say: told one line at a time what happens.

    Returns:
        The folder of the finished run.

    Raises:
        LogError: the logs cannot be used.
        RunError: ``out`` is taken, cannot be resumed, or training failed.
        ConfigurationError: the cluster is too small.
    """
    from ray_train.cluster import ray_cluster
    from ray_train.trainer import train

    folder = Path(out).absolute()
    earlier = earlier_request(folder, resume=resume)
    now = now or datetime.now(UTC)
    network = network or LEARNERS[settings.learner].network
    started = time.monotonic()
    with run_folder(folder), ray_cluster(settings, address) as mapper, stoppable():
        plan = make_plan(surface, logs, settings, now=now, mapper=following("checking", "rows", mapper))
        _say_plan(say, surface, plan)
        request = request_of(earlier, surface, logs, settings, network, plan)
        write_json(folder / REQUEST, request.model_dump(mode="json"))
        _set_aside(say, surface, plan, folder / QUARANTINE)
        # Not shared between runs: a run would take another one's checkpoint for its own.
        storage = f"{checkpoints.rstrip('/')}/{request.run_id}" if checkpoints else str(folder / CHECKPOINTS)
        progress = train(surface, plan, network, settings, storage, say)
        say("judging    the run on the hold-out")
        progress, verdict = _judged(surface, plan, request, progress, say)
        states = _holdout_states(surface, plan, settings.seed)
        window = (plan.split.train_start, plan.split.holdout_start)
        write_reference(folder, surface, plan.files, plan.units, window, plan.now)
    _write_run(folder, surface, plan, request, progress, states, verdict, time.monotonic() - started)
    if checkpoints is None:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return folder


def _set_aside(say: Say, surface: Surface, plan: Plan, folder: Path) -> None:
    """Write the bad rows where a person can look at them; a resumed fit has done so already."""
    if not plan.report.bad:
        return
    if not folder.exists():
        write_quarantine(surface, plan.files, plan.report, folder, plan.now)
    say(f"           set aside with their reasons in {folder}")


def _say_plan(say: Say, surface: Surface, plan: Plan) -> None:
    split = plan.split
    if split.by_share:
        say("the log is shorter than the days asked for: split by share instead")
    say(f"training   {split.train_window[0]} to {split.train_window[1]}")
    say(f"           {plan.rows_train:,} rows to learn from, the newest {plan.rows_selection:,} to choose by")
    say(f"hold-out   {split.holdout_window[0]} to {split.holdout_window[1]}, {plan.rows_holdout:,} rows")
    if plan.report.bad:
        counts = ", ".join(f"{name} {count:,}" for name, count in plan.report.by_reason().items())
        say(f"left out   {plan.report.bad:,} bad rows: {counts}")
    ratio = sample_ratio(plan.report.totals)
    if ratio.suspicious:
        say(ratio_line(surface, ratio))


# ------------------------------------------------------------------------------------------- outputs


def _holdout_states(surface: Surface, plan: Plan, seed: int) -> bytes:
    split = plan.split
    reader = plan.reader(surface, split.holdout_start, split.holdout_end)
    rows = sample(reader, plan.units, rows=SAMPLE_ROWS, seed=seed)
    if rows is None:
        raise LogError(f"{plan.files.source}: no good row in the hold-out window")
    return pack_states(surface, rows)


def _judged(
    surface: Surface, plan: Plan, request: FitRequest, progress: Progress, say: Say
) -> tuple[Progress, RunVerdict]:
    """Shrink what was learned to what the newest training rows support, then judge it on the hold-out."""
    from ray_train.shrinkage import shrink_to_data
    from triton_models.network import ValueNetwork

    split, seed = plan.split, request.settings.seed
    earlier = sample(
        plan.reader(surface, plan.selection_start, split.holdout_start),
        plan.units,
        rows=SHRINKAGE_ROWS,
        seed=seed,
    )
    if earlier is None:
        raise LogError(f"{plan.files.source}: no good row at the end of the training window")
    network = ValueNetwork(surface, request.network)
    network.load_state_dict(progress.best)
    network.eval()
    slopes = shrink_to_data(surface, network, earlier)
    if slopes is not None:
        told = (
            f"{name} {shrunk:.2f} (slope {slope:.2f} ± {error:.2f})"
            for name, shrunk, slope, error in zip(
                surface.objectives, slopes.shrunk_M, slopes.slope_M, slopes.error_M, strict=True
            )
        )
        say(f"shrinkage  of what differs between requests, 1 is none: {', '.join(told)}")
        progress.best = {name: value.clone() for name, value in network.state_dict().items()}
    verdict = _verdict(surface, plan, request, network, earlier)
    say(f"verdict    {verdict.text}")
    return progress, verdict


def _verdict(
    surface: Surface, plan: Plan, request: FitRequest, network: ValueNetwork, earlier: Arrays
) -> RunVerdict:
    """The gate's, on the hold-out's rows as they are read."""
    from ray_train.gate import Gate

    gate, most, done = Gate(surface, network, earlier), request.settings.gate_rows, 0
    total = plan.rows_holdout if most is None else min(plan.rows_holdout, most)
    reader = plan.reader(surface, plan.split.holdout_start, plan.split.holdout_end)
    with counting("judging", "rows") as progress:
        for rows in stream(reader, plan.units, rows=most, seed=request.settings.seed):
            gate.add(rows)
            done += len(rows["action"])
            progress(done, max(total, done))
    if not done:
        raise LogError(f"{plan.files.source}: no good row in the hold-out window")
    return gate.verdict(log_rows=sum(request.rows))


def _write_run(
    folder: Path,
    surface: Surface,
    plan: Plan,
    request: FitRequest,
    progress: Progress,
    states: bytes,
    verdict: RunVerdict,
    seconds: float,
) -> None:
    from ray_train.epochs import serialize

    best = progress.history[progress.best_epoch - 1]
    trained_s = sum(record["seconds"] for record in progress.history)
    learning = {
        "run_id": request.run_id,
        "best_epoch": progress.best_epoch,
        "constant_loss": or_null(progress.constant_loss),
        "epochs": [{name: or_null(value) for name, value in record.items()} for record in progress.history],
    }
    write_atomically(folder / WEIGHTS, serialize(progress.best))
    write_atomically(folder / SURFACE, surface.to_yaml())
    write_atomically(folder / SAMPLE, states)
    write_json(folder / "learning.json", learning)
    page = learning_html(
        f"Learning curve of {request.run_id}",
        progress.history,
        best_epoch=progress.best_epoch,
        constant_loss=progress.constant_loss,
    )
    write_atomically(folder / "learning.html", page)
    metrics = {
        "train_loss": best["train_loss"],
        "selection_loss": best["selection_loss"],
        "holdout_sample_loss": best["holdout_loss"],
        "constant_loss": progress.constant_loss,
        "rows_per_s": sum(record["rows"] for record in progress.history) / max(trained_s, 1e-9),
    }
    manifest = RunManifest(
        run_id=request.run_id,
        created_at=datetime.now(UTC).isoformat(),
        surface=surface.to_dict(),
        surface_fingerprint=surface.fingerprint,
        network=request.network.model_dump(mode="json"),
        training={
            **request.settings.model_dump(mode="json"),
            "best_epoch": progress.best_epoch,
            "rows_per_epoch": int(best["rows"]),
            "bad_rows": plan.report.by_reason(),
            "seconds": round(seconds, 1),
        },
        data=DataWindow(
            logs=request.logs,
            rows_train=request.rows[0],
            rows_holdout=request.rows[1],
            train_window=plan.split.train_window,
            holdout_window=plan.split.holdout_window,
        ),
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        code_version=_code_version(),
        verdict=verdict,
    )
    write_manifest(folder, manifest)


def _code_version() -> str:
    try:
        return os.environ.get("PUTS_CODE_VERSION") or version("prl-puts")
    except PackageNotFoundError:
        return "unknown"
