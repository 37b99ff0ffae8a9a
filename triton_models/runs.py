"""A training run on disk: what ``fit`` writes, and ``sweep`` and ``export`` read.

::

    RUN/run.json      the manifest below; written last, so a run without it is not finished
    RUN/model.pt      state dict of :class:`triton_models.network.ValueNetwork`
    RUN/surface.yaml  the control surface, for people
    RUN/states.npz    some logged states (:mod:`triton_models.state_sample`)
    RUN/reference.json  daily figures of the training window, for ``validate --run``
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from triton_models.errors import RunError
from triton_models.files import write_json
from triton_models.surface import Surface, describe_validation_error

if TYPE_CHECKING:
    from triton_models.network import ValueNetwork

MANIFEST = "run.json"
WEIGHTS = "model.pt"
SURFACE = "surface.yaml"


class DataWindow(BaseModel):
    """Which logs a run saw. Windows are ISO 8601 instants, start inclusive, end exclusive."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    logs: str
    rows_train: int = Field(ge=0)
    rows_holdout: int = Field(ge=0)
    train_window: tuple[str, str]
    holdout_window: tuple[str, str]


Level = Literal["better", "calibrated", "not yet", "static", "worse"]
"""``better``: intervals above zero; the others do not pass. ``calibrated`` occurs in older runs only."""


class Estimate(BaseModel):
    """A relative difference with its 95 % interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    estimate: float
    low: float
    high: float


class RunVerdict(BaseModel):
    """What ``fit`` found on the hold-out (:mod:`ray_train.gate`): shares of production's value."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: Level
    text: str
    versus_static: Estimate
    """Against the best static vector, chosen on other rows, by projection DR."""
    versus_strongest: Estimate | None = None
    """Against the static vector that the same rows like best, which flatters it; None in older runs."""
    versus_production: Estimate
    exact: Estimate | None = None
    """Against the static vector of other rows with exact matching, which assumes nothing; None in older
    runs."""
    calibrated: Estimate
    """What the run promises for itself, by calibration slopes: a diagnosis that decides nothing."""
    slopes: tuple[float, ...]
    """Calibration slope of the personal contrasts, per objective."""
    slope_errors: tuple[float, ...]
    scalarizations: tuple[tuple[float, ...], ...]
    static_weights: tuple[tuple[float, ...], ...]
    """The best static vector of every scalarization: what to serve instead, if not the run."""
    same_as_static: float
    """Share of requests that get the static vector anyway."""
    rows: int
    more_rows: int | None

    @property
    def passed(self) -> bool:
        """Whether the run may be exported without being forced."""
        return self.level == "better"


class RunManifest(BaseModel):
    """Everything that is needed to evaluate, export and explain a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    run_id: str
    created_at: str
    surface: dict[str, Any]
    surface_fingerprint: str
    network: dict[str, Any]
    training: dict[str, Any]
    data: DataWindow
    metrics: dict[str, float]
    code_version: str
    verdict: RunVerdict | None = None
    """None in runs that were made without a gate."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    path: Path
    manifest: RunManifest

    @cached_property
    def surface(self) -> Surface:
        """The surface that the run was fitted for."""
        return Surface.from_dict(self.manifest.surface, source=f"{self.path / MANIFEST}: surface")

    def require_passed(self) -> None:
        """Refuse a run that its gate did not pass.

        Raises:
            RunError: with the verdict and what to do.
        """
        verdict = self.manifest.verdict
        if verdict is not None and not verdict.passed:
            raise RunError(f"{self.path}: {verdict.text}; not exported; --force exports it all the same")

    def load_network(self) -> ValueNetwork:
        """The fitted network on the CPU, in evaluation mode. Imports torch.

        Raises:
            RunError: the weights are missing, damaged, or of another architecture.
        """
        import torch

        from triton_models.network import ValueNetwork
        from triton_models.network_config import NetworkConfig

        weights = self.path / WEIGHTS
        try:
            network = ValueNetwork(self.surface, NetworkConfig.model_validate(self.manifest.network))
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except Exception as error:  # torch raises many kinds for a damaged file
            reason = " ".join(str(error).split())[:300]
            raise RunError(
                f"{weights}: cannot be loaded ({type(error).__name__}: {reason}); fit again"
            ) from error
        return network.eval()


def new_run_id(surface: Surface) -> str:
    """A name that sorts by time and that no other run has."""
    return f"{surface.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def write_manifest(path: str | Path, manifest: RunManifest) -> None:
    """Write ``run.json``; do it last, it declares the run finished."""
    write_json(Path(path) / MANIFEST, manifest.model_dump(mode="json"))


def load_run(path: str | Path) -> Run:
    """Read a finished run.

    Raises:
        RunError: it is missing, unfinished or damaged.
    """
    folder = Path(path)
    file = folder / MANIFEST
    try:
        manifest = RunManifest.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise RunError(
            f"{folder}: holds no finished run ({MANIFEST} is missing); make one with python -m ray_train fit"
        ) from error
    except ValidationError as error:
        raise RunError(f"{file}: not a run manifest: {describe_validation_error(error)}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{file}: cannot be read: {error}") from error
    run = Run(folder, manifest)
    if run.surface.fingerprint != manifest.surface_fingerprint:
        raise RunError(f"{file}: the surface does not have the recorded fingerprint; the file was edited")
    return run
