"""The driver's side of training: Ray Data in, Ray Train's ``TorchTrainer``, the final state out."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import ray
import ray.train
import torch
from ray.data import ExecutionOptions
from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ray_train.cluster import root_cause
from ray_train.epochs import Progress
from ray_train.fit_plan import Plan
from ray_train.settings import FitSettings
from ray_train.shards import dataset, row_bytes, sample
from ray_train.stopping import beside_main_thread
from ray_train.telling import following_epochs
from ray_train.training import WorkerConfig, train_worker
from triton_models.errors import LogError, RunError
from triton_models.network_config import NetworkConfig
from triton_models.surface import Surface

TRAIN_RUN = "fit"
"""Fixed name of the Ray Train run in the storage: a new driver finds the last checkpoint by it."""

SELECTION_ROWS = 65_536
"""Most rows that choose the best epoch."""

CURVE_ROWS = 16_384
"""Most hold-out rows behind the hold-out line of the learning curve."""

Say = Callable[[str], None]


def train(
    surface: Surface, plan: Plan, network: NetworkConfig, settings: FitSettings, storage: str, say: Say
) -> Progress:
    """Train, or go on from the last checkpoint in ``storage``.

    Raises:
        LogError: a file turned out damaged, or there are too few rows for the workers.
        RunError: training failed or diverged.
    """
    rows = min(plan.rows_train, settings.max_rows or plan.rows_train)
    shard_mb = rows * row_bytes(surface) / settings.workers / 2**20
    cached = shard_mb <= settings.cache_mb
    how = "kept in memory" if cached else f"more than --cache-mb {settings.cache_mb}: read again every epoch"
    say(f"workers    {settings.workers}, each {shard_mb:,.0f} MB of encoded rows, {how}")
    config = WorkerConfig(
        surface=surface,
        network=network,
        settings=settings,
        cached=cached,
        rows=rows,
        storage=storage,
        **_samples(surface, plan, settings),
    )
    split = plan.split
    data = dataset(
        plan.reader(surface, split.train_start, plan.selection_start),
        plan.units,
        seed=settings.seed,
        share=rows / plan.rows_train,
        reshuffle=not cached,
    )
    trainer = _trainer(config, data)
    say("           starting them takes half a minute or more; then one line an epoch")
    try:
        with following_epochs(storage, settings.epochs, say):
            result: Any = beside_main_thread(trainer.fit)
    except (ray.exceptions.RayError, ray.train.TrainingFailedError) as error:
        cause = root_cause(error)
        if cause is not error:
            raise cause from error
        raise RunError(f"training failed: {' '.join(str(error).split())[-300:]}") from error
    progress = Progress(**torch.load(io.BytesIO(result.return_value), map_location="cpu", weights_only=True))
    progress.require_converged()
    return progress


def _samples(surface: Surface, plan: Plan, settings: FitSettings) -> dict[str, Any]:
    split, seed = plan.split, settings.seed
    selection = plan.reader(surface, plan.selection_start, split.holdout_start)
    chosen_by = sample(selection, plan.units, rows=SELECTION_ROWS, seed=seed)
    if chosen_by is None or len(chosen_by["action"]) < settings.workers:
        raise LogError(f"{plan.files.source}: too few rows at the end of the training window to choose by")
    holdout = plan.reader(surface, split.holdout_start, split.holdout_end)
    shown = sample(holdout, plan.units, rows=CURVE_ROWS, seed=seed)
    return {"selection": ray.put(chosen_by), "holdout": ray.put(shown)}


def _trainer(config: WorkerConfig, data: ray.data.Dataset) -> TorchTrainer:
    settings = config.settings
    resources = {"CPU": settings.cpus_per_worker} | ({"GPU": 1} if settings.gpu else {})
    return TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # Ray's annotation does not know return values
        train_loop_config={"config": config},
        scaling_config=ScalingConfig(
            num_workers=settings.workers, use_gpu=settings.gpu, resources_per_worker=resources
        ),
        datasets={"train": data},
        # In order, so that a seed means the same rows on the same worker every time.
        dataset_config=DataConfig(execution_options=ExecutionOptions(preserve_order=True)),
        run_config=RunConfig(
            name=TRAIN_RUN,
            storage_path=config.storage,
            failure_config=FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
