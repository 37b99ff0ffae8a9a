"""Settings of ``distil``, and the student that it makes by default; without torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from triton_models.network_config import NetworkConfig

COMMITTEE_WIDTH = 128
"""Of the backbone of a committee's student."""


class DistilSettings(BaseModel):
    """How to distil."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: Annotated[int, Field(ge=100)] = 200_000
    """Most logged states to learn from, spread over the training window."""
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 10
    batch_size: Annotated[int, Field(ge=2)] = 1024
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-2
    """Peak of the schedule: linear warm-up, then half a cosine down to zero."""
    warmup_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    gradient_clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    selection_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """Share of the rows that choose the epoch."""
    seed: Annotated[int, Field(ge=0)] = 0


def student_config(teacher: NetworkConfig, **sizes: int) -> NetworkConfig:
    """The teacher's widths with the cheap parts in the place of the costly ones."""
    cheap = {"history_encoder": "pooling", "action_head": "grid", "backbone_blocks": 2}
    if teacher.action_head == "committee":  # its widths are those of one member
        teacher = NetworkConfig(encoder="plain", action_head="grid", backbone_width=COMMITTEE_WIDTH)
    return NetworkConfig.model_validate({**teacher.model_dump(), **cheap, **sizes})
