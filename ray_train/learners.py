"""The ways to learn a value network, behind one interface: what ``fit --learner NAME`` means.

A learner is a network and the settings to fit it with; training, checkpoints, export and the gate are the
same for all. A new one needs an entry here, and, if its parts are new, a head in ``triton_models``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray_train.settings import FitSettings, LearnerName
from triton_models.network_config import NetworkConfig


@dataclass(frozen=True, kw_only=True)
class Learner:
    """One way to learn."""

    name: LearnerName
    summary: str
    """One line for help and reports."""
    network: NetworkConfig
    settings: dict[str, Any]
    """What differs from the defaults of :class:`FitSettings`."""

    def fit_settings(self, **given: Any) -> FitSettings:
        """Settings of this learner, with what the caller wants otherwise.

        Raises:
            pydantic.ValidationError: an impossible value.
        """
        return FitSettings.model_validate({**self.settings, "learner": self.name, **given})


PAPER = Learner(
    name="paper",
    summary="the paper's single network (Section 4.3), squared error: the baseline",
    network=NetworkConfig(),
    settings={
        "loss": "mse",
        "count_weight": 0.0,
        "epochs": 8,
        "batch_size": 2048,
        "weight_decay": 1e-2,
        "weight_decay_rows": None,
        "gradient_clip": 1.0,
    },
)

COMMITTEE = Learner(
    name="committee",
    summary="small networks averaged in log-odds, shrunk to static contrasts as far as data ask",
    network=NetworkConfig(
        encoder="plain",
        action_head="committee",
        members=8,
        state_width=8,
        backbone_width=64,
        backbone_blocks=2,
    ),
    settings={},
)

LEARNERS: dict[str, Learner] = {learner.name: learner for learner in (COMMITTEE, PAPER)}
DEFAULT_LEARNER: LearnerName = FitSettings.model_fields["learner"].default
