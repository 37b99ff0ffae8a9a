"""The training loop of one Ray Train worker.

Loss of a row (Eq. 8): ``L = Σ_m (Q_m(s, a) - r_m)²`` with the logged action a, or the cross-entropy of the
same ``Q_m``; of a committee, each member's, and what counts above one add to it (:mod:`ray_train.objective`).
Rows are weighted by nothing: this is a regression under the logging policy. AdamW, linear warm-up and half a
cosine, clipped gradients; the head biases start at the log-odds of the base rates.

Workers hold equal numbers of rows (Ray Data splits equally), so that each makes the same number of steps
and none waits for a gradient that does not come. BatchNorm is synchronised on GPUs; gloo cannot do that,
so on CPUs every worker normalises with its own batch and the running statistics are averaged at the end
of each epoch. Every epoch ends with a checkpoint from which a replaced worker group goes on.

Shape legend: B batch, M objectives, W controlled weights.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ray_train.epochs import Progress, serialize
from ray_train.ingest import Arrays
from ray_train.objective import (
    batch_loss,
    learning_rate_factor,
    optimizer_for,
    row_losses,
    weight_decay_of,
)
from ray_train.settings import FitSettings
from ray_train.shards import POOL_ROWS, read_all, read_blocks, shuffled_batches
from ray_train.telling import tell
from triton_models.errors import LogError
from triton_models.network import ValueNetwork
from triton_models.network_config import NetworkConfig
from triton_models.surface import Surface
from triton_models.tensors import state_specs

STATE_FILE = "state.pt"

EVALUATION_BATCH = 8192

TELL_INTERVAL_S = 5.0
"""Between two words of rank 0 about a long epoch."""


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What every worker is told; pickled."""

    surface: Surface
    network: NetworkConfig
    settings: FitSettings
    cached: bool
    """Whether the shard is kept in memory."""
    rows: int
    """Training rows over all workers, as far as known beforehand; sets the length of the schedule."""
    selection: Any
    """Object reference of the encoded rows that choose the epoch; workers share the evaluation."""
    holdout: Any
    """Object reference of the hold-out sample behind the learning curve, or of None."""
    storage: str
    """Where rank 0 tells the driver how far it is (:mod:`ray_train.telling`)."""


class Logits(nn.Module):
    """Every member's logits of the logged action as ``forward``, which is what DDP wraps."""

    def __init__(self, network: ValueNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, state: dict[str, Tensor], action_BW: Tensor) -> Tensor:
        """Logits [E, B, M]; E = 1 for a network without members."""
        return self.network.member_logits(state, action_BW)


def train_worker(loop_config: dict[str, Any]) -> bytes | None:
    """Train until the last epoch; rank 0 returns the final :class:`Progress`, serialised."""
    config: WorkerConfig = loop_config["config"]
    context = ray.train.get_context()
    torch.manual_seed(config.settings.seed)
    if not config.settings.gpu:
        torch.set_num_threads(config.settings.cpus_per_worker)
    worker = _Worker(config, context.get_world_rank(), context.get_world_size())
    worker.restore(ray.train.get_checkpoint())
    while worker.progress.epoch < config.settings.epochs and not worker.progress.diverged:
        worker.run_epoch()
        worker.report()
    return serialize(worker.progress.__dict__) if worker.rank == 0 else None


class _Worker:
    """One worker's network, optimiser and rows."""

    def __init__(self, config: WorkerConfig, rank: int, world: int) -> None:
        self.config, self.rank, self.world = config, rank, world
        settings = config.settings
        self.device = ray.train.torch.get_device()
        self.state_names = [spec.name for spec in state_specs(config.surface)]
        self.batch_rows = max(2, settings.batch_size // world)
        self.progress = Progress()
        self._read()
        self.steps_per_epoch = max(1, self.rows // self.batch_rows)
        self.network = ValueNetwork(config.surface, config.network)
        self._start_at_base_rates()
        module: nn.Module = Logits(self.network)
        if settings.gpu and world > 1:
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        module = module.to(self.device)
        self.module = (
            ray.train.torch.prepare_model(module, parallel_strategy_kwargs={"broadcast_buffers": False})
            if world > 1
            else module
        )
        decay = weight_decay_of(settings, self.rows * world)
        self.optimizer = optimizer_for(self.network, settings.learning_rate, decay)
        self.amp = self._amp_type()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp is torch.float16)

    def _amp_type(self) -> torch.dtype | None:
        if not self.config.settings.amp:
            return None
        if self.device.type == "cuda" and not torch.cuda.is_bf16_supported():
            return torch.float16
        return torch.bfloat16

    # ------------------------------------------------------------------------------------ rows

    def _read(self) -> None:
        """Read what stays in memory: a part of the samples, and the shard if it fits."""
        selection, holdout = ray.get([self.config.selection, self.config.holdout])
        self.selection = self._part(selection)
        self.holdout = None if holdout is None else self._part(holdout)
        self.shard = ray.train.get_dataset_shard("train")
        self.rows_in_memory = read_all(self.shard) if self.config.cached else None
        if self.config.cached:
            self.rows = 0 if self.rows_in_memory is None else len(self.rows_in_memory["action"])
        else:
            self.rows = self.config.rows // self.world
        if self.rows < 2:
            raise LogError("too few rows for so many workers; use fewer workers or a longer log")

    def _part(self, rows: Arrays) -> Arrays:
        """This worker's part of rows that all workers got; a copy, since shared memory is read-only."""
        return {name: array[self.rank :: self.world].copy() for name, array in rows.items()}

    def _start_at_base_rates(self) -> None:
        sums = torch.from_numpy(self.selection["rewards"].astype(np.float64)).sum(dim=0)
        total = self._summed(torch.cat([sums, torch.tensor([float(len(self.selection["action"]))])]))
        rate = ((total[:-1] + 0.5) / (total[-1] + 1.0)).to(torch.float32)
        self.base_logits = torch.logit(rate)
        self.network.start_at(self.base_logits.to(self.device))

    def _batches(self) -> Iterator[Arrays]:
        seed = (self.config.settings.seed, self.progress.epoch, self.rank)
        rng = np.random.default_rng(seed)
        if self.rows_in_memory is not None:
            return shuffled_batches([self.rows_in_memory], self.batch_rows, rng, pool_rows=self.rows)
        return shuffled_batches(read_blocks(self.shard), self.batch_rows, rng, POOL_ROWS)

    def _tensor(self, array: Any) -> Tensor:
        value = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type == "cuda":
            return value.pin_memory().to(self.device, non_blocking=True)
        return value

    def _to_device(self, batch: Arrays) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        tensor = self._tensor
        state = {name: tensor(batch[name]) for name in self.state_names}
        state = {name: value if value.is_floating_point() else value.long() for name, value in state.items()}
        action = self.network.action_grid_AW[tensor(batch["action"]).long()]
        return state, action, tensor(batch["rewards"])

    # ----------------------------------------------------------------------------------- steps

    def run_epoch(self) -> None:
        """One pass over the rows, then the losses on the samples."""
        self.module.train()
        started, losses, rows = time.perf_counter(), [], 0
        told = started
        for batch in self._batches():
            losses.append(self._step(batch))
            rows += len(batch["action"])
            if self.rank == 0 and time.perf_counter() - told > TELL_INTERVAL_S:
                told = time.perf_counter()
                tell(
                    self.config.storage,
                    self.progress.history,
                    step=len(losses),
                    steps=self.steps_per_epoch,
                )
        seconds = time.perf_counter() - started
        self._average_statistics()
        self.module.eval()
        train = self._mean(torch.stack(losses).double().sum(), len(losses))
        record = {
            "epoch": self.progress.epoch + 1,
            "train_loss": train,
            "selection_loss": self._loss_on(self.selection),
            "holdout_loss": self._loss_on(self.holdout),
            "rows": int(self._summed(torch.tensor([float(rows)]))[0]),
            "seconds": seconds,
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
        }
        if self.progress.epoch == 0:
            self.progress.constant_loss = self._loss_on(self.selection, constant=True)
        self.progress.keep(record, self.network.state_dict())

    def _step(self, batch: Arrays) -> Tensor:
        settings = self.config.settings
        steps = self.steps_per_epoch * settings.epochs
        factor = learning_rate_factor(self.progress.step, steps, settings.warmup_share)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        state, action, rewards = self._to_device(batch)
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            logits = self.module(state, action)
        counts, user = self._tensor(batch["counts"]), self._tensor(batch["user"])
        loss, reported = batch_loss(logits.float(), rewards, counts, user, settings)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), settings.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.progress.step += 1
        return reported

    @torch.inference_mode()
    def _loss_on(self, rows: Arrays | None, *, constant: bool = False) -> float:
        total, count = torch.zeros((), dtype=torch.float64), 0
        if rows is not None:
            count = len(rows["action"])
            for start in range(0, count, EVALUATION_BATCH):
                part = {name: array[start : start + EVALUATION_BATCH] for name, array in rows.items()}
                state, action, rewards = self._to_device(part)
                if constant:
                    logits = self.base_logits.to(self.device).expand_as(rewards)
                else:
                    logits = self.network.logits(state, action)
                total += row_losses(logits, rewards, self.config.settings.loss).double().sum().cpu()
        return self._mean(total, count)

    # --------------------------------------------------------------------- across the workers

    def _summed(self, values: Tensor) -> Tensor:
        values = values.to(self.device, torch.float64)
        if self.world > 1:
            dist.all_reduce(values)
        return values.cpu()

    def _mean(self, total: Tensor, count: int) -> float:
        both = self._summed(torch.stack([total.cpu(), torch.tensor(float(count), dtype=torch.float64)]))
        return float(both[0] / both[1]) if both[1] else math.nan

    def _average_statistics(self) -> None:
        """Average BatchNorm's running statistics, so that all workers evaluate and save one network."""
        if self.world == 1:
            return
        for buffer in self.network.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= self.world

    # ------------------------------------------------------------------------------ checkpoints

    def report(self) -> None:
        """Save a checkpoint (rank 0) and tell Ray Train and the driver about the epoch."""
        record = self.progress.history[-1]
        if self.rank:
            ray.train.report(record)
            return
        tell(self.config.storage, self.progress.history)
        with tempfile.TemporaryDirectory() as folder:
            torch.save(
                {
                    "progress": self.progress.__dict__,
                    "network": self.network.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                },
                Path(folder) / STATE_FILE,
            )
            ray.train.report(record, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def restore(self, checkpoint: ray.train.Checkpoint | None) -> None:
        """Go on from a checkpoint, if there is one."""
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / STATE_FILE, map_location="cpu", weights_only=True)
        self.progress = Progress(**state["progress"])
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
