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
    settings={},
)

COMMITTEE = Learner(
    name="committee",
    summary="eight small networks averaged in log-odds, shrunk to static contrasts as far as data ask",
    network=NetworkConfig(
        encoder="plain",
        action_head="committee",
        members=8,
        state_width=32,
        backbone_width=64,
        backbone_blocks=2,
    ),
    settings={
        "loss": "bce",
        "epochs": 6,
        "batch_size": 1024,
        "learning_rate": 8e-3,
        "weight_decay": 0.1,
        # Adam's step does not depend on the gradient's size; clipping the sum over members would.
        "gradient_clip": 1e3,
    },
)

LEARNERS: dict[str, Learner] = {learner.name: learner for learner in (COMMITTEE, PAPER)}
DEFAULT_LEARNER: LearnerName = "committee"
