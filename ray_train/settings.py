"""Settings of ``fit``. The network has its own, :class:`triton_models.network.NetworkConfig`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
LearnerName = Literal["committee", "paper"]


class FitSettings(BaseModel):
    """How to fit; everything but the log, the surface and the place of the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    learner: LearnerName = "committee"
    """Which of :data:`ray_train.learners.LEARNERS`; the defaults of training below are this one's."""
    train_days: Positive = 14.0
    """Length of the training window, which ends where the hold-out starts."""
    holdout_days: Positive = 7.0
    """Length of the hold-out at the end of the log; never trained on, and nothing is chosen by it."""
    selection_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """Newest part of the training window, kept back to choose the best epoch."""
    max_rows: Annotated[int, Field(ge=1)] | None = None
    """Train on about so many rows of the window, drawn by a hash of the request id."""
    max_bad_share: Share = 0.01
    """Stop if more of the rows are bad."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 6
    batch_size: Annotated[int, Field(ge=2)] = 1024
    """Rows per step over all workers."""
    learning_rate: Positive = 8e-3
    """Peak of the schedule: linear warm-up, then half a cosine down to zero."""
    warmup_share: Share = 0.1
    """Share of all steps in the warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.3
    """AdamW's, while the training rows are :attr:`weight_decay_rows` at most."""
    weight_decay_rows: Annotated[int, Field(ge=1)] | None = 315_000
    """More training rows lower the decay, as their inverse (:func:`ray_train.objective.weight_decay_of`);
    None: it stays."""
    gradient_clip: Positive = 1e3
    """Largest norm of the gradient; out of the way, since Adam's step does not depend on its size."""
    loss: Literal["mse", "bce"] = "bce"
    """``mse`` is Eq. 8, Σ_m (Q_m - r_m)²; ``bce`` the cross-entropy summed over the objectives."""
    count_weight: Share = 0.5
    """With ``bce``: weight of what counts above one add to the loss, see :mod:`ray_train.objective`."""
    jackknife: bool = False
    """Train each member of a committee without its share of the users, so that their spread is a standard
    error (:meth:`triton_models.committee.CommitteeHead.contrast_error`); costs some of what is learned."""
    seed: Annotated[int, Field(ge=0)] = 0

    gate_rows: Annotated[int, Field(ge=1)] | None = None
    """Judge the run on about so many rows of the hold-out, drawn by a hash of the request id; None: all."""

    workers: Annotated[int, Field(ge=1)] = 1
    cpus_per_worker: Annotated[int, Field(ge=1)] = 1
    gpu: bool = False
    """One GPU per worker."""
    amp: bool = False
    """Automatic mixed precision: bfloat16 where the device has it, else float16 with loss scaling."""
    cache_mb: Annotated[int, Field(ge=0)] = 4096
    """Encoded rows that one worker keeps in memory; a larger shard is read again every epoch."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Times that a lost worker is replaced, each time from the last checkpoint."""

    def differences(self, other: FitSettings) -> dict[str, tuple[Any, Any]]:
        """Fields that differ in what is learned; the number of workers and the like may change."""
        free = {
            "workers",
            "cpus_per_worker",
            "gpu",
            "cache_mb",
            "max_failures",
            "max_bad_share",
            "gate_rows",
        }
        return {
            name: (getattr(self, name), getattr(other, name))
            for name in type(self).model_fields
            if name not in free and getattr(self, name) != getattr(other, name)
        }
